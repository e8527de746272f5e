"""Responses while Redis or the blob store is unavailable."""

import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import pytest
from redis import Redis

from img2img.app.settings import ApiSettings
from img2img.app.supervisor.supervisor import free_port
from img2img.redis.model_registry import ModelRegistry
from tests.support.model_cards import CARD
from tests.support.problems import assert_problem
from tests.support.servers import http_server, redis_server

CALLS = [
    ("POST", "/img2img"),
    ("GET", "/jobs/x"),
    ("GET", "/jobs/x/events"),
    ("GET", "/jobs"),
    ("DELETE", "/jobs/x"),
    ("POST", "/jobs/x/cancel"),
    ("GET", "/jobs/x/result"),
    ("GET", "/models"),
]


@pytest.fixture
def folder() -> Iterator[Path]:
    with TemporaryDirectory(prefix="i2i-") as name:
        yield Path(name)


@pytest.fixture
def client(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[httpx.Client]:
    monkeypatch.setattr("img2img.app.backends.readiness.MAX_AGE_S", 0)
    settings = ApiSettings(_env_file=None, data_dir=folder, model="demo", redis_url=None, port=free_port())
    with http_server(settings) as url, httpx.Client(base_url=url, timeout=10) as client:
        yield client


def assert_unavailable(client: httpx.Client, image: bytes, calls: list[tuple[str, str]] = CALLS) -> None:
    """Assert that requests that need Redis fail soon with 503."""
    for method, path in calls:
        started_at = time.monotonic()
        response = client.request(method, path, files={"image": image} if path == "/img2img" else None)
        assert time.monotonic() - started_at < 2, path
        assert_problem(response, 503, "unavailable")
        assert int(response.headers["retry-after"]) > 0
    started_at = time.monotonic()
    ready = client.get("/readyz")
    assert time.monotonic() - started_at < 2
    assert (ready.status_code, ready.json()["redis"]["ok"], ready.json()["store"]["ok"]) == (503, False, True)
    assert client.get("/healthz").status_code == 200


def test_service_recovers_from_a_redis_outage(client: httpx.Client, folder: Path, image_bytes: bytes) -> None:
    assert_unavailable(client, image_bytes)
    with redis_server(folder) as url:
        with Redis.from_url(url) as redis:
            ModelRegistry(redis).register("w", [CARD], ttl_s=60)
        job = client.post("/img2img", files={"image": image_bytes}).json()
        assert client.get("/readyz").status_code == 200
    assert_unavailable(client, image_bytes)
    with redis_server(folder):
        assert client.get(f"/jobs/{job['id']}").json() == job


def test_service_responds_while_redis_hangs(client: httpx.Client, folder: Path, image_bytes: bytes) -> None:
    with redis_server(folder) as url:
        with Redis.from_url(url) as redis:
            ModelRegistry(redis).register("w", [CARD], ttl_s=60)
            pid = redis.info("server")["process_id"]
        assert client.get("/models").status_code == 200
        os.kill(pid, signal.SIGSTOP)
        try:
            assert_unavailable(client, image_bytes, CALLS[:2])
        finally:
            os.kill(pid, signal.SIGCONT)


def test_service_responds_without_the_store(client: httpx.Client, folder: Path, image_bytes: bytes) -> None:
    with redis_server(folder) as url:
        with Redis.from_url(url) as redis:
            ModelRegistry(redis).register("w", [CARD], ttl_s=60)
        shutil.rmtree(folder / "store")
        (folder / "store").write_text("not a folder")
        assert_problem(client.post("/img2img", files={"image": image_bytes}), 503, "unavailable")
        ready = client.get("/readyz")
        assert (ready.status_code, ready.json()["redis"]["ok"], ready.json()["store"]["ok"]) == (503, True, False)
