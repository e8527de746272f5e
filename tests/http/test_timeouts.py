"""Slow clients on bare sockets: no connection is held indefinitely."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from socket import socket
from threading import Event, Thread

import httpx
import pytest
from redis import Redis

from img2img.app.settings import ApiSettings
from img2img.app.supervisor.supervisor import free_port
from img2img.redis.job_queue import JobQueue
from tests.support.authenticated import connected, until_closed
from tests.support.servers import http_server

SUBMIT = "POST /img2img HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


@pytest.fixture(scope="module")
def url(settings: ApiSettings) -> Iterator[str]:
    """A service with short timeouts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("img2img.app.http.uvicorn_protocol.HEADER_TIMEOUT_S", 1.0)
        patch.setattr("img2img.app.http.body_limits.LINGER_S", 0.5)
        with http_server(settings.model_copy(update={"port": free_port(), "body_timeout": 1.5})) as url:
            yield url


@contextmanager
def trickling(connection: socket, piece: bytes) -> Iterator[None]:
    """Send `piece` repeatedly until the context or the connection ends."""
    enough = Event()

    def trickle() -> None:
        with suppress(OSError):
            while not enough.wait(0.1):
                connection.sendall(piece)

    thread = Thread(target=trickle)
    thread.start()
    try:
        yield
    finally:
        enough.set()
        thread.join()


@pytest.mark.parametrize(
    ("size", "piece"), [("Content-Length: 100000", b"x"), ("Transfer-Encoding: chunked", b"1\r\nx\r\n")]
)
def test_slow_body_times_out(url: str, redis: Redis, size: str, piece: bytes) -> None:
    with connected(url) as connection:
        connection.sendall(f"{SUBMIT}{size}\r\n\r\n".encode())
        with trickling(connection, piece):
            received = until_closed(connection)
    assert received.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
    assert b'"code":"request_timeout"' in received


def test_stalled_body_times_out(url: str, redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("img2img.app.http.body_limits.IDLE_TIMEOUT_S", 0.3)
    with connected(url) as connection:
        connection.sendall(f"{SUBMIT}Content-Length: 1000\r\n\r\n".encode() + b'{"image":')
        received = until_closed(connection)
    assert received.startswith(b"HTTP/1.1 408 Request Timeout\r\n")


def test_connection_without_request_is_closed(url: str) -> None:
    with connected(url) as connection:
        assert until_closed(connection) == b""


def test_slow_headers_time_out(url: str) -> None:
    with connected(url) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Long: ")
        with trickling(connection, b"x"):
            assert until_closed(connection) == b""


@pytest.mark.parametrize("piece", [b"\r\n", b"G"])
def test_slow_headers_after_a_response_time_out(url: str, piece: bytes) -> None:
    with connected(url) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        with trickling(connection, piece):
            received = until_closed(connection)
    assert received.startswith(b"HTTP/1.1 200 OK\r\n")


def test_early_response_is_delivered_while_the_client_sends(url: str) -> None:
    with connected(url) as connection:
        connection.sendall(f"{SUBMIT}Content-Length: 100000000\r\n\r\n".encode())
        with trickling(connection, b"x" * 1000):
            received = until_closed(connection)
    assert received.startswith(b"HTTP/1.1 413 ")
    assert received.endswith(b"}")


def test_long_poll_does_not_time_out(http: httpx.Client, url: str, image_bytes: bytes, queue: JobQueue) -> None:
    """The timeouts limit the wait for a client, not the wait of a client for a job."""
    with httpx.Client(base_url=url, timeout=30) as client:
        job = client.post("/img2img", files={"image": image_bytes}).json()
        started_at = time.monotonic()
        assert client.get(f"/jobs/{job['id']}?wait=3").json()["status"] == "queued"
        assert time.monotonic() - started_at >= 3
        with client.stream("GET", f"/jobs/{job['id']}/events") as events:
            lines = events.iter_lines()
            assert any(line == "event: queued" for line in lines)
            time.sleep(3)
            queue.cancel(job["id"])
            assert any(line == "event: cancelled" for line in lines)
