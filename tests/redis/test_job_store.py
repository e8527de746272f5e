"""Job records over a real Redis: which moves are legal, and who may make them."""

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


MOVES: dict[JobStatus, Callable[[JobStore, str, str], bool]] = {
    Q: lambda records, job_id, owner: records.release(job_id, execution=owner),
    R: lambda records, job_id, owner: records.start(job_id, execution="another", worker="w2"),
    S: succeed,
    F: lambda records, job_id, owner: records.fail(job_id, FAILURE, execution=owner),
    C: lambda records, job_id, owner: records.cancel(job_id),
}


def brought_to(status: JobStatus, jobs: JobQueue) -> str:
    """The id of a job in this state, started by the execution `mine` unless it is queued."""
    job_id = jobs.submit(make_spec()).id
    if status is not Q:
        assert jobs.job_store.start(job_id, execution="mine", worker="w1")
    if status not in (Q, R):
        assert MOVES[status](jobs.job_store, job_id, "mine")
    return job_id


@pytest.mark.parametrize("source", JobStatus)
@pytest.mark.parametrize("target", JobStatus)
def test_every_move_that_is_not_in_the_table_is_refused(
    source: JobStatus, target: JobStatus, front_end: Service
) -> None:
    job_id = brought_to(source, front_end.jobs)
    before = front_end.record(job_id)
    # Only a job that was started has an owner; a queued one is failed by the sweeper, in nobody's name.
    moved = MOVES[target](front_end.job_store, job_id, "mine" if source is not Q else "")
    assert moved is (target in TRANSITIONS[source])
    after = front_end.record(job_id)
    assert after.status is (target if moved else source)
    if not moved:
        assert after == before
    assert (job_id in front_end.job_store.active_ids()) is not after.status.is_terminal


@pytest.mark.parametrize("target", [Q, S, F])
def test_an_execution_that_does_not_own_the_job_cannot_move_it(target: JobStatus, front_end: Service) -> None:
    job_id = brought_to(R, front_end.jobs)
    before = front_end.record(job_id)
    assert not MOVES[target](front_end.job_store, job_id, "zombie")
    assert not front_end.job_store.cancel(job_id, execution="zombie")
    assert front_end.record(job_id) == before


@pytest.mark.parametrize("target", [Q, S, F])
def test_an_execution_that_handed_its_job_back_cannot_move_it(target: JobStatus, front_end: Service) -> None:
    job_id = brought_to(R, front_end.jobs)
    assert front_end.job_store.release(job_id, execution="mine")
    before = front_end.record(job_id)
    assert (before.execution, before.worker, before.started_at) == (None, None, None)
    assert not MOVES[target](front_end.job_store, job_id, "mine")
    assert not front_end.job_store.cancel(job_id, execution="mine")
    assert front_end.record(job_id) == before


def test_a_job_that_is_not_there_cannot_be_moved(front_end: Service) -> None:
    for move in MOVES.values():
        assert not move(front_end.job_store, "none", "mine")
    assert front_end.job_store.get("none") is None
    assert front_end.redis.keys("i2i:job:*") == []


def test_of_many_workers_that_start_a_job_at_once_exactly_one_wins(front_end: Service) -> None:
    job_id = front_end.submit()
    barrier = threading.Barrier(8)
    won: list[str] = []

    def start(execution: str) -> None:
        with Redis.from_url(front_end.url) as redis:
            records = JobStore(redis)
            barrier.wait()
            if records.start(job_id, execution=execution, worker=execution):
                won.append(execution)

    threads = [threading.Thread(target=start, args=(f"e{i}",)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    record = front_end.record(job_id)
    assert won == [record.execution]
    assert record.attempts == 1


def test_noting_progress_answers_with_the_executions_that_lost_their_job(front_end: Service) -> None:
    jobs = front_end.jobs
    owned, cancelled, taken, queued = (brought_to(status, jobs) for status in (R, C, R, Q))
    notes = [Progress(job_id, "mine", 3, 10) for job_id in (owned, cancelled, queued, "none")]
    notes.append(Progress(taken, "zombie", 3, 10))
    assert jobs.job_store.record_progress(notes) == notes[1:]
    assert front_end.record(owned).step == 3
    assert [front_end.record(job_id).step for job_id in (cancelled, taken, queued)] == [0, 0, 0]
    assert jobs.job_store.record_progress([]) == []


class RecordMachine(RuleBasedStateMachine):
    """Any order of calls, by any executions, against a model in plain Python."""

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
        assert MOVES[to](self.job_store, job, execution) is legal
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


def test_records_agree_with_a_model_whatever_the_order_of_calls(front_end: Service) -> None:
    machine: Any = type("Machine", (RecordMachine,), {"service": front_end})
    run_state_machine_as_test(machine, settings=settings(max_examples=25, stateful_step_count=20, deadline=None))
