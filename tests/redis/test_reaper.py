"""Wherever on its way to a worker a job is abandoned, the sweeper finds it and puts it back, once."""

import time
from collections.abc import Callable

import pytest
from rq.executions import Execution
from rq.job import Job
from rq.worker import BaseWorker

from img2img.domain.job import JobFailure, JobStatus
from img2img.redis.job_queue import MAX_ATTEMPTS
from img2img.redis.keys import JOB, REAPER_LOCK
from img2img.redis.rq_adapter import InertJob
from img2img.worker.queue.reaper import Reaper
from tests.support.processes import MODEL, Service

LEASE_S = 0.2  # of the sweepers here; RQ's clock has whole seconds, so leases are given and ended by hand


class DiesWhileClaiming(BaseWorker):
    """Does what BatchWorker does to claim a job, one step at a time, and never runs it."""

    job_class = InertJob

    def __init__(self, service: Service) -> None:
        super().__init__([service.queue], connection=service.redis, serializer=service.queue.serializer)
        self.service = service

    def get_heartbeat_ttl(self, job: Job, working_time: float = 0.0) -> int:
        return 1

    def move(self, job_id: str) -> None:
        """Takes exactly this job from the queue, as LMOVE does the first."""
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


def lose(worker: DiesWhileClaiming, job_id: str) -> None:
    """A record that stands in no list: not something that a worker does, but Redis may come back from a failover so."""
    worker.service.queue.remove(job_id)


def hand_back_halfway(worker: DiesWhileClaiming, job_id: str) -> None:
    """The sweeper itself dies: the record is queued again, the queue does not have it yet."""
    execution = worker.run(job_id)
    assert worker.service.job_store.release(job_id, execution=execution.id)


ABANDONED: dict[str, Callable[[DiesWhileClaiming, str], object]] = {
    "between LMOVE and lease": DiesWhileClaiming.move,
    "between lease and record": DiesWhileClaiming.lease,
    "between record and start in RQ": DiesWhileClaiming.start,
    "while it ran": DiesWhileClaiming.run,
    "in no list": lose,
    "between record and queue on its way back": hand_back_halfway,
}


def end_leases(service: Service) -> None:
    registry = service.queue.started_job_registry.key
    for lease in service.redis.zrange(registry, 0, -1):
        service.redis.zadd(registry, {lease: 1})


def sweep_long_enough(service: Service) -> None:
    """One sweeper, for longer than any of its patiences."""
    sweeper = Reaper(service.redis, lease_s=LEASE_S)
    for _ in range(11):
        sweeper.sweep(["tiny"])
        time.sleep(LEASE_S / 2)


def assert_waiting(service: Service, job_id: str) -> None:
    """The job is queued for one claim, by record and by RQ."""
    assert service.record(job_id).status is JobStatus.QUEUED
    assert service.record(job_id).execution is None
    assert service.queue.get_job_ids() == [job_id]
    assert service.queue.intermediate_queue.get_job_ids() == []
    assert service.redis.zcard(service.queue.started_job_registry.key) == 0
    assert service.redis.ttl(Job.key_for(job_id)) == -1


@pytest.mark.parametrize("abandon", ABANDONED.values(), ids=ABANDONED)
def test_an_abandoned_job_waits_in_its_queue_again(
    abandon: Callable[[DiesWhileClaiming, str], object], front_end: Service
) -> None:
    job_id = front_end.submit()
    abandon(DiesWhileClaiming(front_end), job_id)
    end_leases(front_end)
    sweep_long_enough(front_end)
    assert_waiting(front_end, job_id)


def test_abandoned_jobs_are_found_and_finished_by_a_live_worker(service: Service) -> None:
    dead = DiesWhileClaiming(service)
    jobs = {service.submit(seed=i): abandon for i, abandon in enumerate(ABANDONED.values())}
    for job_id, abandon in jobs.items():
        abandon(dead, job_id)
    service.start_worker(lease_s=2)
    records = service.wait_until_ended(jobs, timeout_s=30)
    service.assert_finished_once(records)


@pytest.mark.parametrize("stage", [DiesWhileClaiming.lease, DiesWhileClaiming.start, DiesWhileClaiming.run])
def test_a_job_with_a_lease_is_left_alone(
    stage: Callable[[DiesWhileClaiming, str], Execution], front_end: Service
) -> None:
    job_id = front_end.submit()
    execution = stage(DiesWhileClaiming(front_end), job_id)
    front_end.redis.zadd(front_end.queue.started_job_registry.key, {execution.composite_key: time.time() + 60})
    before = front_end.record(job_id)
    sweep_long_enough(front_end)
    assert front_end.record(job_id) == before
    assert front_end.queue.get_job_ids() == []


def test_the_lease_that_a_dead_worker_left_does_not_take_the_job_from_the_live_one(front_end: Service) -> None:
    job_id = front_end.submit()
    dead, live = DiesWhileClaiming(front_end), DiesWhileClaiming(front_end)
    lost = dead.run(job_id)
    front_end.jobs.requeue(job_id, execution=lost.id)
    held = live.run(job_id)
    registry = front_end.queue.started_job_registry.key
    front_end.redis.zadd(registry, {lost.composite_key: 1, held.composite_key: time.time() + 60})
    before = front_end.record(job_id)
    assert before.execution == held.id
    sweep_long_enough(front_end)
    assert front_end.record(job_id) == before
    assert front_end.queue.get_job_ids() == []
    assert [
        execution for _, execution in front_end.queue.started_job_registry.get_job_and_execution_ids(cleanup=False)
    ] == [held.id]


def test_a_job_lost_too_often_fails_and_leaves_nothing(front_end: Service) -> None:
    job_id = front_end.submit()
    for attempt in range(1, MAX_ATTEMPTS + 1):
        DiesWhileClaiming(front_end).run(job_id)
        assert front_end.record(job_id).attempts == attempt
        end_leases(front_end)
        Reaper(front_end.redis, lease_s=LEASE_S).sweep(["tiny"])
    record = front_end.record(job_id)
    assert record.status is JobStatus.FAILED
    assert record.error is not None
    assert record.error.code == "worker_lost"
    assert front_end.is_idle()
    assert not front_end.redis.exists(Job.key_for(job_id))


@pytest.mark.parametrize("end", ["cancel", "fail"])
def test_a_job_that_has_ended_is_not_put_back(end: str, front_end: Service) -> None:
    job_id = front_end.submit()
    DiesWhileClaiming(front_end).run(job_id)
    if end == "cancel":
        assert front_end.job_store.cancel(job_id)
    else:
        assert front_end.job_store.fail(job_id, JobFailure(code="job_failed", message="no"))
    before = front_end.record(job_id)
    end_leases(front_end)
    sweep_long_enough(front_end)
    assert front_end.record(job_id) == before
    assert front_end.is_idle()
    assert not front_end.redis.exists(Job.key_for(job_id))


def test_a_record_that_cannot_be_read_fails_alone(front_end: Service) -> None:
    unreadable, other = front_end.submit(), front_end.submit()
    worker = DiesWhileClaiming(front_end)
    worker.run(unreadable)
    worker.run(other)
    front_end.redis.hset(JOB.format(id=unreadable), "spec", '{"from": "the future"}')
    end_leases(front_end)
    Reaper(front_end.redis, lease_s=LEASE_S).sweep(["tiny"])
    assert_waiting(front_end, other)
    assert front_end.redis.hget(JOB.format(id=unreadable), "status") == b"failed"
    assert front_end.job_store.active_ids() == [other]


def test_one_sweeper_works_at_a_time(front_end: Service) -> None:
    job_id = front_end.submit()
    DiesWhileClaiming(front_end).run(job_id)
    end_leases(front_end)
    with front_end.redis.lock(REAPER_LOCK, timeout=10):
        Reaper(front_end.redis, lease_s=LEASE_S).sweep(["tiny"])
        assert front_end.queue.get_job_ids() == []
    Reaper(front_end.redis, lease_s=LEASE_S).sweep(["tiny"])
    assert_waiting(front_end, job_id)


def test_putting_a_job_back_twice_is_putting_it_back_once(front_end: Service) -> None:
    job_id = front_end.submit()
    execution = DiesWhileClaiming(front_end).run(job_id)
    end_leases(front_end)
    front_end.redis.zrem(front_end.queue.started_job_registry.key, execution.composite_key)
    for _ in range(3):
        front_end.jobs.requeue(job_id, execution=execution.id)
    assert_waiting(front_end, job_id)


def test_among_very_many_jobs_one_in_no_list_is_found(front_end: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("img2img.worker.queue.reaper.AUDIT_LIMIT", 2)
    ids = [front_end.submit(seed=seed) for seed in range(4)]
    looked_at: list[str] = []
    active_ids = front_end.job_store.active_ids
    sweeper = Reaper(front_end.redis, lease_s=LEASE_S)
    monkeypatch.setattr(sweeper._jobs.job_store, "active_ids", lambda: looked_at.append("all") or active_ids())
    time.sleep(LEASE_S * 2)
    sweeper.sweep([MODEL])
    assert not looked_at, "their number says that all are there"
    front_end.queue.remove(ids[1])
    for _ in range(2):
        time.sleep(LEASE_S * 3.5)
        sweeper.sweep([MODEL])
    assert looked_at
    assert sorted(front_end.queue.get_job_ids()) == sorted(ids)


def test_what_rq_notes_of_ended_jobs_does_not_grow_for_ever(front_end: Service) -> None:
    registries = [front_end.queue.finished_job_registry.key, front_end.queue.failed_job_registry.key]
    for key in registries:
        front_end.redis.zadd(key, {"over": time.time() - 10, "kept": time.time() + 60})
    Reaper(front_end.redis, lease_s=LEASE_S).sweep([MODEL])
    assert [front_end.redis.zrange(key, 0, -1) for key in registries] == [[b"kept"]] * 2
