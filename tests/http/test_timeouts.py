"""Clients that trickle, on bare sockets: none holds a connection for ever."""

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

SUBMIT = "POST /img2img HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


@pytest.fixture(scope="module")
def url(settings: ApiSettings) -> Iterator[str]:
    """A service with less patience."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("img2img.app.http.uvicorn_protocol.HEADER_TIMEOUT_S", 1.0)
        patch.setattr("img2img.app.http.body_limits.LINGER_S", 0.5)
        with http_server(settings.model_copy(update={"port": free_port(), "body_timeout": 1.5})) as url:
            yield url


@contextmanager
def trickling(connection: socket, piece: bytes) -> Iterator[None]:
    """Sends the piece again and again, until the end of the block or of the connection."""
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
def test_a_body_that_trickles(url: str, redis: Redis, size: str, piece: bytes) -> None:
    with connected(url) as connection:
        connection.sendall(f"{SUBMIT}{size}\r\n\r\n".encode())
        with trickling(connection, piece):
            answer = until_closed(connection)
    assert answer.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
    assert b'"code":"request_timeout"' in answer


def test_a_body_that_stops(url: str, redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("img2img.app.http.body_limits.IDLE_TIMEOUT_S", 0.3)
    with connected(url) as connection:
        connection.sendall(f"{SUBMIT}Content-Length: 1000\r\n\r\n".encode() + b'{"image":')
        answer = until_closed(connection)
    assert answer.startswith(b"HTTP/1.1 408 Request Timeout\r\n")


def test_silence(url: str) -> None:
    with connected(url) as connection:
        assert until_closed(connection) == b""


def test_headers_that_trickle(url: str) -> None:
    with connected(url) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Long: ")
        with trickling(connection, b"x"):
            assert until_closed(connection) == b""


@pytest.mark.parametrize("piece", [b"\r\n", b"G"])
def test_what_trickles_after_an_answer(url: str, piece: bytes) -> None:
    with connected(url) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        with trickling(connection, piece):
            answer = until_closed(connection)
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")


def test_who_is_answered_early_and_goes_on_sending(url: str) -> None:
    with connected(url) as connection:
        connection.sendall(f"{SUBMIT}Content-Length: 100000000\r\n\r\n".encode())
        with trickling(connection, b"x" * 1000):
            answer = until_closed(connection)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert answer.endswith(b"}")


def test_patience_with_those_who_wait_for_us(http: httpx.Client, url: str, picture: bytes, queue: JobQueue) -> None:
    """What is bounded is how long we wait for a client, not how long it waits for a job."""
    with httpx.Client(base_url=url, timeout=30) as client:
        job = client.post("/img2img", files={"image": picture}).json()
        started_at = time.monotonic()
        assert client.get(f"/jobs/{job['id']}?wait=3").json()["status"] == "queued"
        assert time.monotonic() - started_at >= 3
        with client.stream("GET", f"/jobs/{job['id']}/events") as events:
            lines = events.iter_lines()
            assert any(line == "event: queued" for line in lines)
            time.sleep(3)
            queue.cancel(job["id"])
            assert any(line == "event: cancelled" for line in lines)
