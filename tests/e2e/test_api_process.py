"""The process of the API server: SIGTERM with open streams, and too few file descriptors."""

import shutil
import signal
import socket
import time
from base64 import b64encode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import psutil
import pytest
from redis import Redis

from img2img.redis.model_registry import ModelRegistry
from tests.support.api_process import ApiProcess, api_process
from tests.support.authenticated import connected, until_closed
from tests.support.images import encoded, gradient
from tests.support.model_cards import CARD
from tests.support.processes import wait_for
from tests.support.servers import redis_server

IMAGE = encoded(gradient(160, 120))
STREAMS = 500
# Docker kills a process after 10 s.
GRACE_S = 8


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """A folder with a running Redis."""
    with TemporaryDirectory(prefix="i2i-") as name, redis_server(Path(name)) as url, Redis.from_url(url) as redis:
        ModelRegistry(redis).register("w", [CARD], ttl_s=600)
        yield Path(name)


def submit(url: str) -> str:
    job_id: str = httpx.post(f"{url}/img2img", files={"image": IMAGE}).json()["id"]
    return job_id


def get(url: str, path: str, **options: Any) -> httpx.Response:
    return httpx.get(f"{url}{path}", timeout=60, **options)


def test_sigterm_ends_streams_and_long_polls_properly(data_dir: Path, tmp_path: Path) -> None:
    with api_process(data_dir, tmp_path / "log") as api, ExitStack() as stack, ThreadPoolExecutor(30) as pool:
        jobs = [submit(api.url) for _ in range(4)]
        streams = [stack.enter_context(connected(api.url)) for _ in range(STREAMS)]
        for index, stream in enumerate(streams):
            path = f"/jobs/{jobs[index % 4]}/events?preview=true"
            stream.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        for stream in streams:
            assert b"event: queued" in _until(stream, b"event: queued")
        polls = [pool.submit(get, api.url, f"/jobs/{job_id}", params={"wait": 50}) for job_id in jobs * 5]
        a1111 = pool.submit(_a1111, api.url)
        wait_for(lambda: _open_connections(api) == STREAMS + len(polls) + 1)
        time.sleep(1)
        stopped_at = time.monotonic()
        api.process.send_signal(signal.SIGTERM)
        assert api.process.wait(GRACE_S + 20) in (0, -signal.SIGTERM)
        assert time.monotonic() - stopped_at < GRACE_S
        for stream in streams:
            rest = until_closed(stream)
            assert b": the server is stopping" in rest
            assert b"retry: " in rest
            assert rest.endswith(b"\r\n0\r\n\r\n")
        for poll in polls:
            assert (poll.result().status_code, poll.result().json()["status"]) == (200, "queued")
        assert a1111.result().status_code == 503
        assert int(a1111.result().headers["retry-after"]) > 0
    log = api.log.read_text()
    assert "ERROR" not in log
    assert "Traceback" not in log


def _until(stream: socket.socket, marker: bytes) -> bytes:
    received = b""
    while marker not in received:
        piece = stream.recv(65536)
        assert piece
        received += piece
    return received


def _open_connections(api: ApiProcess) -> int:
    connections = psutil.Process(api.process.pid).net_connections("tcp")
    return sum(connection.status == psutil.CONN_ESTABLISHED for connection in connections)


def _a1111(url: str) -> httpx.Response:
    body = {"init_images": [b64encode(IMAGE).decode()], "width": 128, "height": 128}
    return httpx.post(f"{url}/sdapi/v1/img2img", json=body, timeout=60)


def test_sigterm_with_clients_that_never_read(data_dir: Path, tmp_path: Path) -> None:
    with api_process(data_dir, tmp_path / "log") as api, ExitStack() as stack:
        for _ in range(20):
            connection = stack.enter_context(socket.socket())
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(("127.0.0.1", httpx.URL(api.url).port))
            connection.sendall(b"GET /static-offline-docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: localhost\r\n\r\n")
        time.sleep(1)
        stopped_at = time.monotonic()
        api.process.send_signal(signal.SIGTERM)
        api.process.wait(GRACE_S + 20)
        assert time.monotonic() - stopped_at < GRACE_S
    assert "Traceback" not in api.log.read_text()


@pytest.mark.skipif(not shutil.which("prlimit"), reason="needs prlimit, of util-linux")
def test_too_few_file_descriptors(data_dir: Path, tmp_path: Path) -> None:
    """The server neither ends nor spins, and accepts connections again afterwards."""
    limit = ["prlimit", "--nofile=160:160"]
    with api_process(data_dir, tmp_path / "log", limit) as api:
        with ExitStack() as stack:
            for _ in range(400):
                _open(api, stack)
            before = api.cpu_s()
            time.sleep(3)
            assert api.process.poll() is None
            assert api.cpu_s() - before < 1.5
            assert get(api.url, "/healthz").status_code == 200
        time.sleep(1)
        assert get(api.url, "/healthz").status_code == 200
        assert submit(api.url)
    assert "Too many open files" not in api.log.read_text()


def _open(api: ApiProcess, stack: ExitStack) -> None:
    connection = stack.enter_context(socket.socket())
    connection.settimeout(5)
    try:
        connection.connect(("127.0.0.1", httpx.URL(api.url).port))
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n")
    except OSError:
        return
