"""Hosts whose clocks differ: everything that hosts compare goes by the clock of Redis."""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import httpx
import pytest
from redis import Redis

from img2img.domain.blob_keys import upload_key
from img2img.domain.job import JobOptions, JobStatus
from img2img.domain.webhook import Delivery, DeliveryStatus, Webhook
from img2img.redis.clock import redis_clock
from img2img.redis.keys import DEADLINES, EXPIRING_JOBS, INPUT_IMAGES, OUTBOX
from img2img.redis.webhook_outbox import WebhookOutbox
from img2img.worker.queue.reaper import Reaper
from img2img.worker.queue.retention import Retention
from tests.support.processes import Service, run_worker
from tests.support.specs import make_spec

SKEW_S = 40.0
SKEW = "TEST_CLOCK_SKEW_S"
Skewed = Callable[[], AbstractContextManager[None]]


def skew_clock(skew_s: float) -> Callable[[], None]:
    """Move the wall clock of this process: `time.time`, and `now` in all modules of RQ. Returns the way back."""
    from rq.utils import now

    real_time = time.time
    modules = [module for name, module in sys.modules.items() if name.startswith("rq.") and hasattr(module, "now")]

    def set_clock(clock: Callable[[], float], rq_now: Callable[[], object]) -> None:
        time.time = clock
        for module in modules:
            module.now = rq_now  # type: ignore[attr-defined]

    set_clock(lambda: real_time() + skew_s, lambda: type(now()).fromtimestamp(real_time() + skew_s, now().tzinfo))
    return lambda: set_clock(real_time, now)


def run_skewed_worker(environment: dict[str, str], log: str) -> None:
    import rq.executions
    import rq.registry
    import rq.worker.base  # noqa: F401

    skew_clock(float(environment[SKEW]))
    run_worker(environment, log)


@contextmanager
def on_a_host_with_another_clock(skew_s: float) -> Iterator[None]:
    restore = skew_clock(skew_s)
    try:
        yield
    finally:
        restore()


def test_workers_with_different_clocks_lose_no_job(service: Service) -> None:
    """The lease is a seventh of the difference of each clock, and jobs run for several leases."""
    lease_s = 3
    service.start_worker(lease_s=lease_s, slots=2)
    service.start_worker(lease_s=lease_s, slots=2, run=run_skewed_worker, **{SKEW: str(SKEW_S)})
    service.start_worker(lease_s=lease_s, slots=2, run=run_skewed_worker, **{SKEW: str(-SKEW_S)})
    started_at = time.monotonic()
    ids: list[str] = []
    while time.monotonic() - started_at < 3 * lease_s:
        active = service.jobs.job_store.active_ids()
        ids += [service.submit(seed=len(ids) + i, num_inference_steps=150) for i in range(9 - len(active))]
        time.sleep(0.05)
    records = service.wait_until_ended(ids)
    service.assert_finished_once(records)
    assert {record.attempts for record in records} == {1}
    assert len({record.worker for record in records}) == 3
    assert all(0 <= record.started_at - record.created_at < 60 for record in records if record.started_at)
    assert all(0 <= record.finished_at - record.started_at < 60 for record in records if record.finished_at)  # type: ignore[operator]
    log = (service.folder / "workers.log").read_text()
    assert "the clock of this host is 40.0 s ahead of that of Redis" in log
    assert "the clock of this host is 40.0 s behind that of Redis" in log


@pytest.fixture(params=[SKEW_S, -SKEW_S, 3600.0, -3600.0])
def skewed(request: pytest.FixtureRequest) -> Skewed:
    return lambda: on_a_host_with_another_clock(request.param)


def test_lease_goes_by_redis(idle_service: Service, skewed: Skewed) -> None:
    from tests.redis.test_reaper import DyingWorker

    job_id = idle_service.submit()
    registry = idle_service.queue.started_job_registry.key
    with skewed():
        DyingWorker(idle_service).run(job_id)
        Reaper(idle_service.redis, lease_s=1).reap()
    [(_, end)] = idle_service.redis.zrange(registry, 0, -1, withscores=True)
    assert end == pytest.approx(time.time() + 1, abs=0.9)
    Reaper(idle_service.redis, lease_s=1).reap()
    assert idle_service.record(job_id).status is JobStatus.RUNNING
    time.sleep(1.1)
    with skewed():
        Reaper(idle_service.redis, lease_s=1).reap()
    assert idle_service.record(job_id).status is JobStatus.QUEUED


def test_times_of_jobs_go_by_redis(idle_service: Service, skewed: Skewed) -> None:
    """One host writes, another one with the right clock compares, and the other way round."""
    jobs, redis = idle_service.jobs, idle_service.redis
    webhook = Webhook(url="https://receiver.example", events=["job.succeeded"])
    options = JobOptions(result_ttl_s=30, deadline_s=20, webhook=webhook)
    digest = "0" * 64
    with skewed():
        jobs.input_images.retain_upload(upload_key(digest), 9, 30, "")
        record = jobs.submit(make_spec(), options)
        ended = jobs.submit(make_spec(), options)
        jobs.job_store.start(ended.id, execution="e", worker="w")
        jobs.job_store.succeed(ended.id, execution="e", images=[], timings={}, steps=1)
        [claimed], _ = WebhookOutbox(redis).claim(limit=9, lease_s=20, in_flight={}, owner_limit=9, host_limit=9)
    near = pytest.approx(time.time(), abs=5)
    ended = idle_service.record(ended.id)
    assert (record.created_at, ended.started_at, ended.finished_at) == (near, near, near)
    assert redis.zscore(DEADLINES, record.id) == pytest.approx(time.time() + 20, abs=5)
    assert redis.zscore(EXPIRING_JOBS, ended.id) == pytest.approx(time.time() + 30, abs=5)
    assert redis.zscore(INPUT_IMAGES, upload_key(digest)) == pytest.approx(time.time() + 30, abs=5)
    assert redis.zscore(OUTBOX, ended.id) == claimed.lease_until == pytest.approx(time.time() + 20, abs=5)
    with skewed():
        Retention(redis, idle_service.store).sweep()
        assert jobs.job_store.find(record.id).status is JobStatus.QUEUED
        assert jobs.job_store.find(ended.id).status is JobStatus.SUCCEEDED
        assert {job.id for job in jobs.job_store.page(None, None, 9)[0]} == {record.id, ended.id}
        assert redis.zcard(INPUT_IMAGES) == 1
        assert WebhookOutbox(redis).claim(limit=9, lease_s=20, in_flight={}, owner_limit=9, host_limit=9)[0] == []
    for index in (DEADLINES, EXPIRING_JOBS, INPUT_IMAGES):
        for member in redis.zrange(index, 0, -1):
            redis.zadd(index, {member: time.time() - 1})
    redis.zadd(OUTBOX, {ended.id: time.time() - 1})
    with skewed():
        [again], _ = WebhookOutbox(redis).claim(limit=9, lease_s=20, in_flight={}, owner_limit=9, host_limit=9)
        assert WebhookOutbox(redis).record_attempt(again, Delivery(status=DeliveryStatus.DELIVERED))
        Retention(redis, idle_service.store).sweep()
    assert idle_service.record(record.id).status is JobStatus.CANCELLED
    assert jobs.job_store.get(ended.id) is None


def test_difference_of_the_clocks_is_reported(
    http: httpx.Client, redis: Redis, caplog: pytest.LogCaptureFixture, service_url: str
) -> None:
    clock = redis_clock(redis)
    clock.read()
    assert clock.skew_s == pytest.approx(0, abs=1)
    assert clock.warning is None
    with on_a_host_with_another_clock(2.5), caplog.at_level(logging.WARNING):
        for _ in range(3):
            clock.read()
    assert clock.warning == "the clock of this host is 2.5 s ahead of that of Redis"
    assert [record.message for record in caplog.records if "clock" in record.message] == [
        f"{clock.warning}; jobs go by that of Redis. Check NTP on both hosts"
    ]
    assert clock.now() == pytest.approx(time.time(), abs=1)
    clock.read()
    assert clock.warning is None


def test_readyz_and_metrics_report_the_difference(http: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("img2img.redis.clock.INTERVAL_S", 0)
    assert http.get("/readyz").json()["redis"]["detail"] == "responds"
    with on_a_host_with_another_clock(-SKEW_S):
        detail = http.get("/readyz").json()["redis"]["detail"]
        metrics = http.get("/metrics").text
    assert detail == "responds; the clock of this host is 40.0 s behind that of Redis"
    [value] = [line.split()[1] for line in metrics.splitlines() if line.startswith("img2img_clock_skew_seconds ")]
    assert float(value) == pytest.approx(-SKEW_S, abs=1)
