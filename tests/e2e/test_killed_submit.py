"""API servers that are killed with -9 in the middle of a submit or an upload leave no half job and no blob for ever."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import pytest
from redis import Redis

from img2img.app.settings import ApiSettings
from img2img.app.supervisor.supervisor import free_port
from img2img.blobs import ObjectStore
from img2img.domain.blob_keys import input_key
from img2img.durable_files import UNFINISHED_S
from img2img.redis.job_queue import JobQueue
from img2img.redis.keys import EXPIRING_JOBS, INPUT_IMAGES, JOBS
from img2img.redis.model_registry import ModelRegistry
from img2img.worker.queue.retention import Retention
from tests.support.dying_server import POINTS
from tests.support.model_cards import CARD
from tests.support.processes import wait_for
from tests.support.servers import http_server, redis_server

KEY = {"Idempotency-Key": "one-submit"}


@pytest.fixture
def folder() -> Iterator[Path]:
    with TemporaryDirectory(prefix="i2i-") as name:
        yield Path(name)


@pytest.fixture
def redis(folder: Path) -> Iterator[Redis]:
    with redis_server(folder) as url, Redis.from_url(url) as redis:
        ModelRegistry(redis).register("w", [CARD], ttl_s=600)
        yield redis


@contextmanager
def dying_server(folder: Path, point: str) -> Iterator[str]:
    """Run an API server that dies at this point, and yield its URL. It must have died at the end."""
    port = free_port()
    environment = {"IMG2IMG_DATA_DIR": str(folder), "IMG2IMG_MODEL": "demo", "IMG2IMG_PORT": str(port)}
    command = [sys.executable, "-m", "tests.support.dying_server", point]
    process = subprocess.Popen(command, env=os.environ | environment)
    try:
        wait_for(lambda: is_up(port), 60)
        yield f"http://127.0.0.1:{port}"
        assert process.wait(30) == -signal.SIGKILL
    finally:
        process.kill()
        process.wait()


def is_up(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/healthz", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def files_of(folder: Path) -> list[Path]:
    return [path for path in (folder / "store").rglob("*") if path.is_file() and path.name != "check"]


@pytest.mark.parametrize("point", POINTS)
def test_submit_of_a_killed_server_can_be_repeated(folder: Path, redis: Redis, point: str, image_bytes: bytes) -> None:
    with dying_server(folder, point) as url, pytest.raises(httpx.TransportError):
        httpx.post(f"{url}/img2img", files={"image": image_bytes}, headers=KEY, timeout=30, trust_env=False)
    assert redis.zcard(JOBS) == (point == "job queued")
    settings = ApiSettings(_env_file=None, data_dir=folder, model="demo", redis_url=None, port=free_port())
    with http_server(settings) as url, httpx.Client(base_url=url, timeout=20) as http:
        response = http.post("/img2img", files={"image": image_bytes}, headers=KEY)
        assert response.status_code == 202
        assert response.headers.get("idempotency-replayed") == ("true" if point == "job queued" else None)
        assert [job["id"] for job in http.get("/jobs").json()["jobs"]] == [response.json()["id"]]
    job_id = response.json()["id"]
    record = JobQueue(redis).job_store.find(job_id)
    store = ObjectStore((folder / "store").as_uri())
    assert all(store.get(input_key(digest)) for digest in record.spec.inputs)
    assert JobQueue(redis).claim("demo") == job_id.encode()
    assert JobQueue(redis).claim("demo") is None


@pytest.mark.parametrize("point", POINTS)
def test_images_of_a_killed_server_are_deleted(folder: Path, redis: Redis, point: str, image_bytes: bytes) -> None:
    with dying_server(folder, point) as url, pytest.raises(httpx.TransportError):
        httpx.post(f"{url}/img2img", files={"image": image_bytes}, timeout=30, trust_env=False)
    left = files_of(folder)
    assert len(left) == (point != "nothing stored")
    for job_id in JobQueue(redis).job_store.active_ids():
        JobQueue(redis).cancel(job_id)
        redis.zadd(EXPIRING_JOBS, {job_id: 1})
    for key in redis.zrange(INPUT_IMAGES, 0, -1):
        redis.zadd(INPUT_IMAGES, {key: 1})
    for file in left:
        os.utime(file, (0, time.time() - UNFINISHED_S - 1))
    Retention(redis, ObjectStore((folder / "store").as_uri())).sweep()
    assert files_of(folder) == []
    assert redis.zcard(INPUT_IMAGES) == 0
