"""The reaper requeues a job once, at any point at which its worker may die."""

import time
from collections.abc import Callable

import pytest
from rq.executions import Execution
from rq.job import Job
from rq.worker import BaseWorker

from img2img.domain.job import JobFailure, JobStatus
from img2img.errors import UnreadableJob
from img2img.redis.job_queue import MAX_ATTEMPTS
from img2img.redis.keys import JOB, REAPER_LOCK
from img2img.redis.model_definitions import ModelDefinitions
from img2img.redis.model_registry import ModelRegistry
from img2img.redis.rq_adapter import InertJob
from img2img.worker.queue.reaper import Reaper
from tests.support.model_cards import CARD
from tests.support.processes import MODEL, Service

LEASE_S = 0.2  # of the reapers; RQ's clock has whole seconds, so the tests set expiry times directly


class DyingWorker(BaseWorker):
    """Fetches a job like BatchWorker, one step at a time, and never runs it."""

    job_class = InertJob

    def __init__(self, service: Service) -> None:
        super().__init__([service.queue], connection=service.redis, serializer=service.queue.serializer)
        self.service = service

    def get_heartbeat_ttl(self, job: Job, working_time: float = 0.0) -> int:
        return 1

    def move(self, job_id: str) -> None:
        """Move this job from the queue, as LMOVE moves the first."""
        queue = self.service.queue
        with self.connection.pipeline() as pipe:
            pipe.lrem(queue.key, 1, job_id)
            pipe.rpush(queue.intermediate_queue_key, job_id)
            pipe.execute()

    def fetch(self, job_id: str) -> Job:
        return InertJob.fetch(job_id, connection=self.connection, serializer=self.serializer)

    def lease(self, job_id: str) -> Execution:
        self.move(job_id)
        return self.prepare_execution(self.fetch(job_id))

    def start(self, job_id: str) -> Execution:
        execution = self.lease(job_id)
        assert self.service.job_store.start(job_id, execution=execution.id, worker=self.name)
        return execution

    def run(self, job_id: str) -> Execution:
        execution = self.start(job_id)
        self.prepare_job_execution(self.fetch(job_id), remove_from_intermediate_queue=True)
        return execution


def lose(worker: DyingWorker, job_id: str) -> None:
    """Remove the job from all lists. No worker does so, but a failover of Redis can."""
    worker.service.queue.remove(job_id)


def requeue_halfway(worker: DyingWorker, job_id: str) -> None:
    """Requeue the record but not the job in RQ, as a reaper that dies."""
    execution = worker.run(job_id)
    assert worker.service.job_store.release(job_id, execution=execution.id)


ABANDONED: dict[str, Callable[[DyingWorker, str], object]] = {
    "between LMOVE and lease": DyingWorker.move,
    "between lease and record": DyingWorker.lease,
    "between record and start in RQ": DyingWorker.start,
    "while it ran": DyingWorker.run,
    "in no list": lose,
    "between record and queue while requeued": requeue_halfway,
}


def end_leases(service: Service) -> None:
    registry = service.queue.started_job_registry.key
    for lease in service.redis.zrange(registry, 0, -1):
        service.redis.zadd(registry, {lease: 1})


def reap_long_enough(service: Service) -> None:
    """Run a reaper for longer than all of its time limits."""
    reaper = Reaper(service.redis, lease_s=LEASE_S)
    for _ in range(11):
        reaper.reap()
        time.sleep(LEASE_S / 2)


def assert_queued(service: Service, job_id: str) -> None:
    """Assert that the job is queued once, in its record and in RQ."""
    assert service.record(job_id).status is JobStatus.QUEUED
    assert service.record(job_id).execution is None
    assert service.queue.get_job_ids() == [job_id]
    assert service.queue.intermediate_queue.get_job_ids() == []
    assert service.redis.zcard(service.queue.started_job_registry.key) == 0
    assert service.redis.ttl(Job.key_for(job_id)) == -1


@pytest.mark.parametrize("abandon", ABANDONED.values(), ids=ABANDONED)
def test_abandoned_job_is_requeued(abandon: Callable[[DyingWorker, str], object], idle_service: Service) -> None:
    job_id = idle_service.submit()
    abandon(DyingWorker(idle_service), job_id)
    end_leases(idle_service)
    reap_long_enough(idle_service)
    assert_queued(idle_service, job_id)


def test_live_worker_recovers_and_finishes_abandoned_jobs(service: Service) -> None:
    dead = DyingWorker(service)
    jobs = {service.submit(seed=i): abandon for i, abandon in enumerate(ABANDONED.values())}
    for job_id, abandon in jobs.items():
        abandon(dead, job_id)
    service.start_worker(lease_s=2)
    records = service.wait_until_ended(jobs, timeout_s=30)
    service.assert_finished_once(records)


@pytest.mark.parametrize("stage", [DyingWorker.lease, DyingWorker.start, DyingWorker.run])
def test_job_with_valid_lease_is_not_touched(
    stage: Callable[[DyingWorker, str], Execution], idle_service: Service
) -> None:
    job_id = idle_service.submit()
    execution = stage(DyingWorker(idle_service), job_id)
    idle_service.redis.zadd(idle_service.queue.started_job_registry.key, {execution.composite_key: time.time() + 60})
    before = idle_service.record(job_id)
    reap_long_enough(idle_service)
    assert idle_service.record(job_id) == before
    assert idle_service.queue.get_job_ids() == []


def test_jobs_of_a_removed_model_are_watched_as_all_others(idle_service: Service) -> None:
    lost, running = idle_service.submit(), idle_service.submit()
    worker = DyingWorker(idle_service)
    execution = worker.run(lost)
    held = DyingWorker(idle_service).run(running)
    ModelDefinitions(idle_service.redis).remove(MODEL)
    assert MODEL not in ModelRegistry(idle_service.redis).known()
    idle_service.redis.zadd(
        idle_service.queue.started_job_registry.key, {execution.composite_key: 1, held.composite_key: time.time() + 60}
    )
    reap_long_enough(idle_service)
    assert idle_service.record(lost).status is JobStatus.QUEUED
    assert idle_service.queue.get_job_ids() == [lost]
    assert idle_service.record(running).execution == held.id, "its worker is alive"


def test_expired_lease_does_not_take_job_from_live_worker(idle_service: Service) -> None:
    job_id = idle_service.submit()
    dead, live = DyingWorker(idle_service), DyingWorker(idle_service)
    lost = dead.run(job_id)
    idle_service.jobs.requeue(job_id, execution=lost.id)
    held = live.run(job_id)
    registry = idle_service.queue.started_job_registry.key
    idle_service.redis.zadd(registry, {lost.composite_key: 1, held.composite_key: time.time() + 60})
    before = idle_service.record(job_id)
    assert before.execution == held.id
    reap_long_enough(idle_service)
    assert idle_service.record(job_id) == before
    assert idle_service.queue.get_job_ids() == []
    assert [
        execution for _, execution in idle_service.queue.started_job_registry.get_job_and_execution_ids(cleanup=False)
    ] == [held.id]


def test_job_lost_too_often_fails_and_is_removed(idle_service: Service) -> None:
    job_id = idle_service.submit()
    for attempt in range(1, MAX_ATTEMPTS + 1):
        DyingWorker(idle_service).run(job_id)
        assert idle_service.record(job_id).attempts == attempt
        end_leases(idle_service)
        Reaper(idle_service.redis, lease_s=LEASE_S).reap()
    record = idle_service.record(job_id)
    assert record.status is JobStatus.FAILED
    assert record.error is not None
    assert record.error.code == "worker_lost"
    assert idle_service.is_idle()
    assert not idle_service.redis.exists(Job.key_for(job_id))


@pytest.mark.parametrize("end", ["cancel", "fail"])
def test_ended_job_is_not_requeued(end: str, idle_service: Service) -> None:
    job_id = idle_service.submit()
    DyingWorker(idle_service).run(job_id)
    if end == "cancel":
        assert idle_service.job_store.cancel(job_id)
    else:
        assert idle_service.job_store.fail(job_id, JobFailure(code="job_failed", message="no"))
    before = idle_service.record(job_id)
    end_leases(idle_service)
    reap_long_enough(idle_service)
    assert idle_service.record(job_id) == before
    assert idle_service.is_idle()
    assert not idle_service.redis.exists(Job.key_for(job_id))


def test_unreadable_record_is_left_to_a_later_version(idle_service: Service) -> None:
    unreadable, other = idle_service.submit(), idle_service.submit()
    worker = DyingWorker(idle_service)
    worker.run(unreadable)
    worker.run(other)
    idle_service.redis.hset(JOB.format(id=unreadable), "spec", '{"from": "the future"}')
    end_leases(idle_service)
    Reaper(idle_service.redis, lease_s=LEASE_S).reap()
    assert idle_service.record(other).status is JobStatus.QUEUED
    assert idle_service.redis.hget(JOB.format(id=unreadable), "status") == b"queued"
    assert sorted(idle_service.queue.get_job_ids()) == sorted([unreadable, other])
    with pytest.raises(UnreadableJob):
        idle_service.record(unreadable)


def test_one_reaper_works_at_a_time(idle_service: Service) -> None:
    job_id = idle_service.submit()
    DyingWorker(idle_service).run(job_id)
    end_leases(idle_service)
    with idle_service.redis.lock(REAPER_LOCK, timeout=10):
        Reaper(idle_service.redis, lease_s=LEASE_S).reap()
        assert idle_service.queue.get_job_ids() == []
    Reaper(idle_service.redis, lease_s=LEASE_S).reap()
    assert_queued(idle_service, job_id)


def test_requeue_is_idempotent(idle_service: Service) -> None:
    job_id = idle_service.submit()
    execution = DyingWorker(idle_service).run(job_id)
    end_leases(idle_service)
    idle_service.redis.zrem(idle_service.queue.started_job_registry.key, execution.composite_key)
    for _ in range(3):
        idle_service.jobs.requeue(job_id, execution=execution.id)
    assert_queued(idle_service, job_id)


def test_orphaned_job_is_found_among_many_jobs(idle_service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("img2img.worker.queue.reaper.MAX_AUDITED_JOBS", 2)
    ids = [idle_service.submit(seed=seed) for seed in range(4)]
    audits: list[str] = []
    active_ids = idle_service.job_store.active_ids
    reaper = Reaper(idle_service.redis, lease_s=LEASE_S)
    monkeypatch.setattr(reaper._jobs.job_store, "active_ids", lambda: audits.append("all") or active_ids())
    time.sleep(LEASE_S * 2)
    reaper.reap()
    assert not audits, "the counts show that all jobs are listed"
    idle_service.queue.remove(ids[1])
    for _ in range(2):
        time.sleep(LEASE_S * 3.5)
        reaper.reap()
    assert audits
    assert sorted(idle_service.queue.get_job_ids()) == sorted(ids)


def test_expired_results_are_deleted_from_registries_of_rq(idle_service: Service) -> None:
    idle_service.submit()
    registries = [idle_service.queue.finished_job_registry.key, idle_service.queue.failed_job_registry.key]
    for key in registries:
        idle_service.redis.zadd(key, {"expired": time.time() - 10, "kept": time.time() + 60})
    Reaper(idle_service.redis, lease_s=LEASE_S).reap()
    assert [idle_service.redis.zrange(key, 0, -1) for key in registries] == [[b"kept"]] * 2


def test_jobs_of_a_removed_model_fail(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("img2img.worker.queue.reaper.REMOVED_S", 0.2)
    reaper, registry = Reaper(service.redis, lease_s=60), ModelRegistry(service.redis)
    registry.register("worker", [CARD.model_copy(update={"name": MODEL})], ttl_s=60)
    registry.unregister("worker")
    job_id = service.submit()
    for _ in range(2):
        # Its workers may all be down for a while.
        reaper.reap()
        time.sleep(0.3)
    assert service.record(job_id).status is JobStatus.QUEUED
    registry.forget(MODEL)
    reaper.reap()
    assert service.record(job_id).status is JobStatus.QUEUED, "another worker may still have it"
    time.sleep(0.3)
    reaper.reap()
    record = service.record(job_id)
    assert record.status is JobStatus.FAILED
    assert record.error is not None
    assert record.error.code == "model_unavailable"
    assert service.queue.count == 0
