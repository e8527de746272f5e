"""A blob store or a Redis that accepts connections and never responds: other requests are served as usual."""

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import httpx
import pytest
from redis import Redis

from img2img.app.backends import readiness
from img2img.app.settings import ApiSettings
from img2img.app.supervisor.supervisor import free_port
from img2img.domain.job import ImageInfo
from img2img.redis.job_queue import JobQueue
from img2img.redis.model_registry import ModelRegistry
from tests.support.buckets import bucket_at
from tests.support.model_cards import CARD
from tests.support.problems import assert_problem
from tests.support.processes import wait_for
from tests.support.servers import http_server, redis_server

# Requests that hang at the same time: more than a server has threads.
HANGING = 60


@pytest.fixture
def finished(submit: Callable[..., httpx.Response], queue: JobQueue) -> str:
    """A job with a result, which the store does not return."""
    job_id: str = submit().json()["id"]
    info = ImageInfo(index=0, seed=0, width=160, height=120, sha256="0" * 64, bytes=1000)
    assert queue.job_store.start(job_id, execution="e", worker="w")
    assert queue.job_store.succeed(job_id, execution="e", images=[info], timings={}, steps=1)
    return job_id


@pytest.fixture
def hung(settings: ApiSettings) -> Iterator[httpx.Client]:
    """A client of a service whose bucket accepts connections and never responds."""
    with socket.create_server(("127.0.0.1", 0), backlog=500) as bucket:
        store = bucket_at(f"http://127.0.0.1:{bucket.getsockname()[1]}")
        changes = {"port": free_port(), "store_url": store.url}
        with (
            patch.dict(os.environ, store.environment),
            http_server(settings.model_copy(update=changes)) as url,
            httpx.Client(base_url=url, timeout=60) as client,
        ):
            yield client


def timed(client: httpx.Client, path: str) -> tuple[httpx.Response, float]:
    """Return the response and the seconds that it took."""
    started_at = time.monotonic()
    response = client.get(path)
    return response, time.monotonic() - started_at


def fastest(client: httpx.Client, path: str) -> float:
    """Return the seconds of the fastest of several requests: the machine may be busy, too."""
    return min(timed(client, path)[1] for _ in range(5))


@contextmanager
def in_parallel(client: httpx.Client, path: str) -> Iterator[list[Future[tuple[httpx.Response, float]]]]:
    """Send the same request many times at once, on connections of their own."""
    with ThreadPoolExecutor(HANGING) as pool:

        def send(_: int) -> tuple[httpx.Response, float]:
            with httpx.Client(base_url=client.base_url, timeout=60) as own:
                return timed(own, path)

        futures = [pool.submit(send, index) for index in range(HANGING)]
        time.sleep(0.5)
        yield futures


def test_requests_without_images_are_served_while_the_store_hangs(hung: httpx.Client, finished: str) -> None:
    with in_parallel(hung, f"/jobs/{finished}/result") as results:
        assert not any(result.done() for result in results)
        slowest = []
        for path in (f"/jobs/{finished}", "/jobs", "/models", "/healthz", f"/jobs/{finished}/events", "/openapi.json"):
            assert hung.get(path).status_code == 200
            slowest.append(fastest(hung, path))
        # About 5 ms, and without threads for the store the time of its timeout.
        assert max(slowest) < 0.5
    for result in results:
        response, seconds = result.result()
        assert_problem(response, 503, "unavailable")
        assert int(response.headers["retry-after"]) > 0
        assert seconds < 11
    # The last ones failed at once.
    response, seconds = timed(hung, f"/jobs/{finished}/result")
    assert_problem(response, 503, "unavailable")
    assert seconds < 6


def test_submits_and_uploads_end_in_time_while_the_store_hangs(hung: httpx.Client, image_bytes: bytes) -> None:
    for path in ("/images", "/img2img"):
        started_at = time.monotonic()
        assert_problem(hung.post(path, files={"image": image_bytes}), 503, "unavailable")
        assert time.monotonic() - started_at < 11


def test_readiness_is_reported_in_time_while_the_store_hangs(hung: httpx.Client) -> None:
    with in_parallel(hung, "/readyz") as checks:
        pass
    stores = []
    for check in checks:
        response, seconds = check.result()
        assert response.status_code == 503
        stores.append(response.json()["store"])
        assert (response.json()["redis"]["ok"], stores[-1]["ok"]) == (True, False)
        assert seconds < 11
    # They did not wait for the end of the check, which gives the store more time.
    assert readiness.NO_RESPONSE.model_dump(exclude_none=True).items() <= stores[0].items()


def test_readiness_checks_of_many_clients_are_one_check(http: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    checks = []
    states = ModelRegistry.states

    def counted(self: ModelRegistry) -> object:
        checks.append(None)
        time.sleep(0.3)
        return states(self)

    monkeypatch.setattr(readiness, "MAX_AGE_S", 1.0)
    monkeypatch.setattr(ModelRegistry, "states", counted)
    with in_parallel(http, "/readyz") as responses:
        pass
    assert {response.result()[0].status_code for response in responses} == {200}
    assert 1 <= len(checks) <= 3
    time.sleep(readiness.MAX_AGE_S + 0.1)
    before = len(checks)
    assert http.get("/readyz").status_code == 200
    assert len(checks) > before


def test_requests_fail_soon_while_redis_hangs(settings: ApiSettings) -> None:
    with TemporaryDirectory(prefix="i2i-") as name, redis_server(Path(name)) as redis_url:
        with Redis.from_url(redis_url) as redis:
            ModelRegistry(redis).register("w", [CARD], ttl_s=60)
            pid = redis.info("server")["process_id"]
        changed = settings.model_copy(update={"port": free_port(), "redis_url": redis_url})
        with http_server(changed) as url, httpx.Client(base_url=url, timeout=60) as client:
            assert client.get("/models").status_code == 200
            os.kill(pid, signal.SIGSTOP)
            try:
                with in_parallel(client, "/jobs/x") as responses:
                    assert fastest(client, "/healthz") < 0.5
                for one in responses:
                    response, seconds = one.result()
                    assert_problem(response, 503, "unavailable")
                    assert seconds < 15
                # The next ones do not wait for a thread, nor for Redis, except for one that tries.
                for path in ("/static-offline-docs/favicon.png", "/docs", "/healthz"):
                    assert client.get(path).status_code == 200
                    assert fastest(client, path) < 0.5
                assert fastest(client, "/jobs/x") < 0.5
            finally:
                os.kill(pid, signal.SIGCONT)
            wait_for(lambda: client.get("/models").status_code == 200, 5)
