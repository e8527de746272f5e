"""Job records on a real Redis: legal transitions, and the executions that may cause them."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from redis import Redis

from img2img.domain.job import TRANSITIONS, ImageInfo, JobFailure, JobStatus
from img2img.redis.job_queue import JobQueue
from img2img.redis.job_store import JobStore, Progress
from tests.support.processes import Service
from tests.support.specs import make_spec

FAILURE = JobFailure(code="job_failed", message="no")
IMAGE = ImageInfo(index=0, seed=0, width=16, height=16, sha256="0" * 64, bytes=1)
Q, R, S, F, C = JobStatus


def succeed(records: JobStore, job_id: str, execution: str) -> bool:
    return records.succeed(job_id, execution=execution, images=[IMAGE], timings={"denoise": 1.0}, steps=10)


TRANSITION_CALLS: dict[JobStatus, Callable[[JobStore, str, str], bool]] = {
    Q: lambda records, job_id, owner: records.release(job_id, execution=owner),
    R: lambda records, job_id, owner: records.start(job_id, execution="another", worker="w2"),
    S: succeed,
    F: lambda records, job_id, owner: records.fail(job_id, FAILURE, execution=owner),
    C: lambda records, job_id, owner: records.cancel(job_id),
}


def job_with_status(status: JobStatus, jobs: JobQueue) -> str:
    """Return the id of a job with this status, started by the execution `mine` unless it is queued."""
    job_id = jobs.submit(make_spec()).id
    if status is not Q:
        assert jobs.job_store.start(job_id, execution="mine", worker="w1")
    if status not in (Q, R):
        assert TRANSITION_CALLS[status](jobs.job_store, job_id, "mine")
    return job_id


@pytest.mark.parametrize("source", JobStatus)
@pytest.mark.parametrize("target", JobStatus)
def test_transition_not_in_the_table_is_refused(source: JobStatus, target: JobStatus, idle_service: Service) -> None:
    job_id = job_with_status(source, idle_service.jobs)
    before = idle_service.record(job_id)
    # Only a started job has an owning execution; the reaper fails a queued one without.
    moved = TRANSITION_CALLS[target](idle_service.job_store, job_id, "mine" if source is not Q else "")
    assert moved is (target in TRANSITIONS[source])
    after = idle_service.record(job_id)
    assert after.status is (target if moved else source)
    if not moved:
        assert after == before
    assert (job_id in idle_service.job_store.active_ids()) is not after.status.is_terminal


@pytest.mark.parametrize("target", [Q, S, F])
def test_execution_that_does_not_own_the_job_cannot_change_it(target: JobStatus, idle_service: Service) -> None:
    job_id = job_with_status(R, idle_service.jobs)
    before = idle_service.record(job_id)
    assert not TRANSITION_CALLS[target](idle_service.job_store, job_id, "zombie")
    assert not idle_service.job_store.cancel(job_id, execution="zombie")
    assert idle_service.record(job_id) == before


@pytest.mark.parametrize("target", [Q, S, F])
def test_execution_that_released_its_job_cannot_change_it(target: JobStatus, idle_service: Service) -> None:
    job_id = job_with_status(R, idle_service.jobs)
    assert idle_service.job_store.release(job_id, execution="mine")
    before = idle_service.record(job_id)
    assert (before.execution, before.worker, before.started_at) == (None, None, None)
    assert not TRANSITION_CALLS[target](idle_service.job_store, job_id, "mine")
    assert not idle_service.job_store.cancel(job_id, execution="mine")
    assert idle_service.record(job_id) == before


def test_missing_job_cannot_be_changed(idle_service: Service) -> None:
    for move in TRANSITION_CALLS.values():
        assert not move(idle_service.job_store, "none", "mine")
    assert idle_service.job_store.get("none") is None
    assert idle_service.redis.keys("i2i:job:*") == []


def test_only_one_of_many_concurrent_starts_succeeds(idle_service: Service) -> None:
    job_id = idle_service.submit()
    barrier = threading.Barrier(8)
    won: list[str] = []

    def start(execution: str) -> None:
        with Redis.from_url(idle_service.url) as redis:
            records = JobStore(redis)
            barrier.wait()
            if records.start(job_id, execution=execution, worker=execution):
                won.append(execution)

    threads = [threading.Thread(target=start, args=(f"e{i}",)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    record = idle_service.record(job_id)
    assert won == [record.execution]
    assert record.attempts == 1


def test_record_progress_returns_executions_that_lost_their_job(idle_service: Service) -> None:
    jobs = idle_service.jobs
    owned, cancelled, taken, queued = (job_with_status(status, jobs) for status in (R, C, R, Q))
    notes = [Progress(job_id, "mine", 3, 10) for job_id in (owned, cancelled, queued, "none")]
    notes.append(Progress(taken, "zombie", 3, 10))
    assert jobs.job_store.record_progress(notes) == notes[1:]
    assert idle_service.record(owned).step == 3
    assert [idle_service.record(job_id).step for job_id in (cancelled, taken, queued)] == [0, 0, 0]
    assert jobs.job_store.record_progress([]) == []


class RecordMachine(RuleBasedStateMachine):
    """Any order of calls, by any executions, compared with a model in Python."""

    service: Service
    jobs = Bundle("jobs")
    executions = st.sampled_from(["e1", "e2", "e3"])

    def __init__(self) -> None:
        super().__init__()
        self.job_store = self.service.job_store
        self.expected: dict[str, tuple[JobStatus, str | None, int]] = {}  # status, owner, attempts

    @rule(target=jobs)
    def submit(self) -> str:
        job_id = self.service.submit()
        self.expected[job_id] = (Q, None, 0)
        return job_id

    @rule(job=jobs, execution=executions)
    def start(self, job: str, execution: str) -> None:
        status, _, attempts = self.expected[job]
        assert self.job_store.start(job, execution=execution, worker="w") is (status is Q)
        if status is Q:
            self.expected[job] = (R, execution, attempts + 1)

    @rule(job=jobs, execution=executions, to=st.sampled_from([Q, S, F]))
    def leave(self, job: str, execution: str, to: JobStatus) -> None:
        status, owner, attempts = self.expected[job]
        legal = status is R and owner == execution
        assert TRANSITION_CALLS[to](self.job_store, job, execution) is legal
        if legal:
            self.expected[job] = (to, None if to is Q else owner, attempts)

    @rule(job=jobs)
    def cancel(self, job: str) -> None:
        status, owner, attempts = self.expected[job]
        assert self.job_store.cancel(job) is (not status.is_terminal)
        if not status.is_terminal:
            self.expected[job] = (C, owner, attempts)

    @invariant()
    def agrees(self) -> None:
        for job_id, expected in self.expected.items():
            record = self.service.record(job_id)
            assert (record.status, record.execution, record.attempts) == expected
            assert bool(record.images) is (record.status is S)
            assert (record.finished_at is not None) is record.status.is_terminal
        open_jobs = {job_id for job_id, (status, _, _) in self.expected.items() if not status.is_terminal}
        assert open_jobs == set(self.job_store.active_ids()) & set(self.expected)


def test_job_store_agrees_with_a_model_in_any_order_of_calls(idle_service: Service) -> None:
    machine: Any = type("Machine", (RecordMachine,), {"service": idle_service})
    run_state_machine_as_test(machine, settings=settings(max_examples=25, stateful_step_count=20, deadline=None))
