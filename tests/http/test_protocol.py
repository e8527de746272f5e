"""Requests on bare sockets that no HTTP library sends: malformed, endless, cut off; and clients that never read."""

import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from hashlib import sha256
from typing import Any

import httpx
import pytest
from PIL import Image
from redis import Redis

from img2img.app.http.uvicorn_protocol import MAX_HEADER_BYTES, MAX_HEADERS, MAX_PIPELINED
from img2img.app.settings import ApiSettings
from img2img.app.supervisor.supervisor import free_port
from img2img.blobs import ObjectStore
from img2img.domain.blob_keys import result_key
from img2img.domain.job import ImageInfo
from img2img.redis.job_queue import JobQueue
from img2img.redis.model_registry import ModelRegistry
from tests.support.authenticated import connected, until_closed
from tests.support.images import encoded
from tests.support.problems import assert_problem
from tests.support.processes import wait_for
from tests.support.servers import http_server

GET = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"
POST = b"POST /img2img HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\n"


@contextmanager
def server(settings: ApiSettings, **changes: object) -> Iterator[str]:
    with http_server(settings.model_copy(update={"port": free_port(), **changes})) as url:
        yield url


@pytest.fixture(scope="module")
def url(settings: ApiSettings) -> Iterator[str]:
    with server(settings) as url:
        yield url


def exchange(url: str, *parts: bytes, half_close: bool = False) -> bytes:
    """Send the parts, and return all that the server sends until it closes the connection."""
    with connected(url) as connection:
        for part in parts:
            try:
                connection.sendall(part)
            except (BrokenPipeError, ConnectionResetError):
                break
        if half_close:
            connection.shutdown(socket.SHUT_WR)
        return until_closed(connection)


def problem(response: bytes, status: int, code: str) -> dict[str, Any]:
    """Assert that the response is one problem document, after which the connection ends, and return it."""
    head, _, body = response.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status), response[:300]
    assert b"content-type: application/problem+json" in head
    assert b"connection: close" in head
    document: dict[str, Any] = json.loads(body)
    assert (document["status"], document["code"]) == (status, code)
    return document


# -- headers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "parts",
    [
        [GET + b"X-Long: ", *[b"a" * 50_000] * 200],
        [GET, *[b"X-Many: %s\r\n" % (b"b" * 1000)] * 100],
        [b"GET /", b"a" * 100_000, b" HTTP/1.1\r\nHost: localhost\r\n\r\n"],
        [b"GET / HTTP/1.1\r\n", b"a" * 100_000],
        [CHUNKED, b"1\r\n{\r\n0\r\nX-Trailer: ", *[b"a" * 50_000] * 200],
        [CHUNKED, b"1;extension=", *[b"a" * 50_000] * 200],
    ],
    ids=["one long header", "many headers", "long path", "long name", "trailer", "chunk extension"],
)
def test_endless_headers_are_rejected(url: str, parts: list[bytes]) -> None:
    started_at = time.monotonic()
    problem(exchange(url, *parts), 431, "headers_too_large")
    assert time.monotonic() - started_at < 60


def test_too_many_headers_are_rejected(url: str) -> None:
    many = b"".join(b"X-%d: y\r\n" % index for index in range(MAX_HEADERS))
    problem(exchange(url, GET + many + b"\r\n"), 431, "headers_too_large")


def test_headers_within_the_limits_are_accepted(url: str) -> None:
    many = b"".join(b"X-%d: y\r\n" % index for index in range(MAX_HEADERS - 3))
    long = b"X-Long: " + b"a" * (MAX_HEADER_BYTES - len(GET + many) - 100) + b"\r\n"
    response = exchange(url, GET + many + long + b"Connection: close\r\n\r\n")
    assert response.startswith(OK)


def test_many_requests_of_one_connection_are_not_one_long_header(url: str) -> None:
    with connected(url) as connection:
        for _ in range(100):
            connection.sendall(GET + b"X-Long: " + b"a" * 5000 + b"\r\n\r\n")
            response = connection.recv(65536)
            while not response.endswith(b"}"):
                response += connection.recv(65536)
            assert response.startswith(OK)


def test_endless_header_does_not_delay_other_clients(url: str) -> None:
    with connected(url) as connection, httpx.Client(base_url=url) as other:
        connection.sendall(GET + b"X-Long: ")
        times = []
        for _ in range(100):
            try:
                connection.sendall(b"a" * 1_000_000)
            except (BrokenPipeError, ConnectionResetError):
                break
            started_at = time.monotonic()
            assert other.get("/healthz").status_code == 200
            times.append(time.monotonic() - started_at)
    # Of up to 4.8 s.
    assert sorted(times)[len(times) // 2] < 1


@pytest.mark.parametrize(
    "request_head",
    [
        b"GET /healthz HTTP/1.1\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: a\r\nHost: a\r\n",
        b"GET /healthz HTTP/1.0\r\nHost: a\r\nHost: b\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: a b\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: [\r\n",
        b"GET /jobs/ HTTP/1.1\r\nHost: a]:x/y?z@\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: \xff\xfe\r\n",
    ],
)
def test_request_needs_one_valid_host(url: str, request_head: bytes) -> None:
    problem(exchange(url, request_head + b"\r\n"), 400, "bad_request")


@pytest.mark.parametrize("host", [b"", b"a.example", b"127.0.0.1:80", b"[::1]:8000", b"xn--bcher-kva.example:"])
def test_valid_hosts_are_accepted(url: str, host: bytes) -> None:
    request = b"GET /healthz HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n" % host
    # The service without API keys rejects names that are not its names, but not as invalid.
    assert exchange(url, request).startswith((OK, b"HTTP/1.1 403 "))


def test_http_1_0_needs_no_host(url: str) -> None:
    assert exchange(url, b"GET /healthz HTTP/1.0\r\n\r\n").startswith(OK)


# -- requests that cannot be parsed, or end early ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET\r\n\r\n",
        GET + b"No colon\r\n\r\n",
        GET + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\n",
        GET + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
        CHUNKED + b"zz\r\n",
        CHUNKED + b"3\r\n{}\r\nxxxx",
    ],
)
def test_malformed_request_is_a_problem(url: str, request_bytes: bytes) -> None:
    problem(exchange(url, request_bytes), 400, "bad_request")


@pytest.mark.parametrize(
    "request_bytes", [POST + b"Content-Length: 100\r\n\r\n{}", CHUNKED + b"2\r\n{}\r\n", CHUNKED + b"9\r\n{}"]
)
def test_body_that_ends_early_is_a_problem(url: str, redis: Redis, request_bytes: bytes) -> None:
    before = redis.zcard("i2i:jobs")
    problem(exchange(url, request_bytes, half_close=True), 400, "bad_request")
    assert redis.zcard("i2i:jobs") == before


@pytest.mark.usefixtures("http")
def test_body_longer_than_declared_is_not_taken(url: str) -> None:
    response = exchange(url, POST + b"Content-Length: 2\r\n\r\n{}}}}}}\r\n\r\n")
    assert response.startswith(b"HTTP/1.1 4")
    assert b"HTTP/1.1 2" not in response


@pytest.mark.parametrize("count", [1, 2, 10])
@pytest.mark.parametrize(
    "rest",
    [b"GARBAGE\x00\r\n\r\n", CHUNKED + b"x\r\n", GET + b"Host: y\r\n\r\n"],
    ids=["garbage", "bad chunk", "two hosts"],
)
def test_responses_to_requests_precede_the_rejection_of_the_next(url: str, count: int, rest: bytes) -> None:
    started_at = time.monotonic()
    response = exchange(url, (GET + b"\r\n") * count + rest)
    assert response.count(OK) == response.count(b"HTTP/1.1 ") == count
    assert time.monotonic() - started_at < 4  # not by the timeout of idle connections


def test_requests_that_wait_on_one_connection_are_limited(url: str) -> None:
    """5,000 requests of 40 bytes held 25 MB, and nothing limited the number of connections that do so."""
    response = exchange(url, (GET + b"\r\n") * 5000)
    assert response.count(OK) == response.count(b"HTTP/1.1 ") == MAX_PIPELINED + 1


@pytest.mark.parametrize("protocol", [b"websocket", b"h2c", b"x"])
@pytest.mark.parametrize("method", [b"GET", b"POST"])
def test_upgrades_are_ignored(url: str, method: bytes, protocol: bytes) -> None:
    """A WebSocket connection would have no timeouts."""
    upgrade = b"Connection: Upgrade\r\nUpgrade: " + protocol + b"\r\n"
    path = {b"GET": b"/healthz", b"POST": b"/img2img"}[method]
    head = method + b" " + path + b" HTTP/1.1\r\nHost: localhost\r\n" + upgrade
    response = exchange(url, head + b"Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}" + GET + b"\r\n")
    assert response.count(b"HTTP/1.1 ") == 1
    assert response.startswith(OK if method == b"GET" else b"HTTP/1.1 422 ")


def test_content_length_may_have_zeros(url: str) -> None:
    response = exchange(url, POST + b"Connection: close\r\nContent-Length: " + b"0" * 5000 + b"2\r\n\r\n{}")
    assert response.startswith(b"HTTP/1.1 422 ")


def test_connection_is_closed_after_an_unexpected_error(
    http: httpx.Client, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """uvicorn closes it. The client has to know, or its next request fails."""
    monkeypatch.setattr(ModelRegistry, "live", lambda _: 1 / 0)
    for _ in range(3):
        response = http.get("/models")
        assert (response.status_code, response.json()["code"]) == (500, "internal_error")
        assert response.headers["connection"] == "close"


# -- connections ------------------------------------------------------------------------------------------------------


def test_connections_above_the_limit_are_rejected(settings: ApiSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("img2img.app.http.uvicorn_protocol.SPARE_PART", 0.5)
    with server(settings, max_connections=10) as url, ExitStack() as idle:
        for _ in range(10):
            idle.enter_context(connected(url)).sendall(GET)
        time.sleep(0.2)
        rejected = exchange(url, b"GET /jobs HTTP/1.1\r\nHost: localhost\r\n\r\n")
        problem(rejected, 503, "overloaded")
        assert b"retry-after: " in rejected
        assert exchange(url, GET + b"Connection: close\r\n\r\n").startswith(OK)
        # Further ones replace those that have waited longest.
        for _ in range(30):
            idle.enter_context(connected(url))
        time.sleep(0.2)
        assert exchange(url, GET + b"Connection: close\r\n\r\n").startswith(OK)
        idle.close()
        time.sleep(0.2)
        assert httpx.get(f"{url}/jobs").status_code == 200


def test_three_hundred_slow_connections_do_not_delay_others(url: str, http: httpx.Client) -> None:
    with ExitStack() as slow, httpx.Client(base_url=url) as client:
        connections = [slow.enter_context(connected(url)) for _ in range(300)]
        for index, connection in enumerate(connections):
            connection.sendall((GET, POST + b"Content-Length: 1000000\r\n\r\n{", CHUNKED + b"1")[index % 3])
        started_at = time.monotonic()
        for _ in range(20):
            for connection in connections[::10]:
                connection.sendall(b"a")
            assert client.get("/jobs").status_code == 200
        assert time.monotonic() - started_at < 60


def never_read(url: str, path: str, count: int, stack: ExitStack) -> list[socket.socket]:
    """Send requests on connections whose responses are not read."""
    connections = []
    for _ in range(count):
        connection = stack.enter_context(socket.socket())
        # Small, so that the server's part of the response is large.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", httpx.URL(url).port))
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        connections.append(connection)
    return connections


def resident_bytes() -> int:
    with open("/proc/self/statm", "rb") as pages:  # noqa: PTH123
        return int(pages.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_clients_that_never_read_are_disconnected_and_hold_bounded_memory(
    settings: ApiSettings,
    submit: Callable[..., httpx.Response],
    queue: JobQueue,
    store: ObjectStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("img2img.app.http.uvicorn_protocol.WRITE_TIMEOUT_S", 2.0)
    monkeypatch.setattr("img2img.app.http.uvicorn_protocol.CHECK_S", 0.5)
    job_id = submit().json()["id"]
    size = finish_with_noise(job_id, queue, store)
    assert size > 7_000_000
    with server(settings, max_inflight_bytes=40_000_000) as url, ExitStack() as stack:
        before = resident_bytes()
        never_read(url, f"/jobs/{job_id}/result", 60, stack)
        time.sleep(1)
        assert resident_bytes() - before < 200_000_000  # of 480 MB
        assert httpx.get(f"{url}/jobs/{job_id}").status_code == 200
        result = wait_for(lambda: downloaded(url, job_id))
        assert len(result) == size


def finish_with_noise(job_id: str, queue: JobQueue, store: ObjectStore) -> int:
    """Complete a job with an image that cannot be compressed, and return the size of its file."""
    side = 1600
    png = encoded(Image.frombytes("RGB", (side, side), os.urandom(3 * side * side)))
    digest = sha256(png).hexdigest()
    info = ImageInfo(index=0, seed=0, width=side, height=side, sha256=digest, bytes=len(png))
    assert queue.job_store.start(job_id, execution="e", worker="test-worker")
    store.put(result_key(job_id, 0), png)
    assert queue.job_store.succeed(job_id, execution="e", images=[info], timings={}, steps=1)
    return len(png)


def downloaded(url: str, job_id: str) -> bytes | None:
    """Return the result, or None if the server has too many in progress."""
    response = httpx.get(f"{url}/jobs/{job_id}/result")
    if response.status_code == 200:
        return response.content
    assert_problem(response, 503, "overloaded")
    return None
