"""The order of waiting jobs, and whether jobs are claimed at the positions that were reported."""

import random
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from img2img.domain.job import JobOptions, JobRecord, JobStatus, Priority
from img2img.redis.fair_queue import STREAK_LIMIT, QueuePosition
from img2img.redis.keys import FAIR_QUEUE_OWNERS
from tests.support.processes import MODEL, Service
from tests.support.specs import make_spec

LOW, NORMAL, HIGH = Priority
Submit = Callable[..., list[str]]


@pytest.fixture
def submit(idle_service: Service) -> Submit:
    """Submit some jobs of one owner."""

    def queue(count: int = 1, owner: str = "", priority: Priority = NORMAL, **changes: Any) -> list[str]:
        options = JobOptions(owner=owner, priority=priority)
        return [idle_service.jobs.submit(make_spec(**changes), options).id for _ in range(count)]

    return queue


def claimed(idle_service: Service, count: int) -> list[str]:
    """Claim and start the next jobs."""
    ids = []
    for _ in range(count):
        moved = idle_service.jobs.claim(MODEL)
        assert moved is not None
        idle_service.queue.intermediate_queue.remove(moved.decode())
        idle_service.job_store.start(moved.decode(), execution="e", worker="w")
        ids.append(moved.decode())
    return ids


def position_of(idle_service: Service, job_id: str) -> QueuePosition | None:
    [found] = idle_service.job_store.fair_queue.positions([idle_service.record(job_id)])
    return found


def rank_of(idle_service: Service, job_id: str) -> int | None:
    found = position_of(idle_service, job_id)
    return found and found.position


def assert_jobs_are_claimed_at_their_positions(idle_service: Service) -> None:
    """Claim all waiting jobs; each comes at the position that was reported before."""
    waiting = idle_service.queue.get_job_ids()
    reported = dict(zip(waiting, idle_service.job_store.fair_queue.positions(idle_service.all(waiting)), strict=True))
    order = claimed(idle_service, len(waiting))
    assert [reported[job_id].position for job_id in order] == list(range(len(order)))
    assert idle_service.jobs.claim(MODEL) is None
    assert not idle_service.redis.keys(FAIR_QUEUE_OWNERS.pattern), "an empty queue leaves no keys"


def test_jobs_of_one_owner_are_first_in_first_out(idle_service: Service, submit: Submit) -> None:
    ids = submit(12)
    assert claimed(idle_service, 12) == ids


def test_backlog_of_one_owner_does_not_delay_another(idle_service: Service, submit: Submit) -> None:
    many = submit(1000, "busy")
    first, *rest = submit(3, "brief")
    assert position_of(idle_service, first) == QueuePosition(1, pytest.approx(make_spec().cost))
    assert rank_of(idle_service, many[-1]) == 1002
    assert claimed(idle_service, 6) == [many[0], first, many[1], rest[0], many[2], rest[1]]
    late = submit(1, "late")
    assert rank_of(idle_service, late[0]) == 1
    assert_jobs_are_claimed_at_their_positions(idle_service)


def test_owner_with_single_jobs_takes_turns(idle_service: Service, submit: Submit) -> None:
    many = submit(3, "busy")
    for job_id in many:
        [single] = submit(1, "brief")
        assert claimed(idle_service, 2) == [job_id, single]


def test_cancelling_costs_no_turns(idle_service: Service, submit: Submit) -> None:
    cancelling, other = submit(20, "cancelling"), submit(20, "other")
    for job_id in cancelling[:18]:
        idle_service.jobs.cancel(job_id)
    assert position_of(idle_service, cancelling[18]) == QueuePosition(0, 0)
    assert rank_of(idle_service, cancelling[19]) == 2
    assert claimed(idle_service, 5) == [cancelling[18], other[0], cancelling[19], other[1], other[2]]
    again = submit(1, "cancelling")
    assert claimed(idle_service, 2) == [other[3], *again]


def test_cancel_moves_up_later_jobs(idle_service: Service, submit: Submit) -> None:
    mine, others = submit(5, "a"), submit(5, "b")
    idle_service.jobs.cancel(mine[1])
    assert [rank_of(idle_service, job_id) for job_id in mine] == [0, None, 2, 4, 6]
    assert [rank_of(idle_service, job_id) for job_id in others] == [1, 3, 5, 7, 8]
    assert position_of(idle_service, others[-1]).cost_ahead == pytest.approx(8 * make_spec().cost)
    assert_jobs_are_claimed_at_their_positions(idle_service)


def test_higher_priority_goes_first(idle_service: Service, submit: Submit) -> None:
    low, normal, high = submit(2, priority=LOW), submit(2), submit(2, priority=HIGH)
    cost = make_spec().cost
    assert position_of(idle_service, low[1]) == QueuePosition(5, pytest.approx(5 * cost))
    assert position_of(idle_service, high[1]) == QueuePosition(1, pytest.approx(cost))
    assert claimed(idle_service, 6) == high + normal + low


def test_owners_take_turns_within_each_priority(idle_service: Service, submit: Submit) -> None:
    normal = submit(3, "a")
    high_a, high_b = submit(2, "a", HIGH), submit(2, "b", HIGH)
    assert claimed(idle_service, 5) == [high_a[0], high_b[0], high_a[1], high_b[1], normal[0]]


def test_no_priority_starves(idle_service: Service, submit: Submit) -> None:
    """While high jobs always wait, normal ones get one turn in eight, and low ones an eighth of those."""
    low, normal = submit(3, priority=LOW), submit(20)
    turns = []
    for _ in range((STREAK_LIMIT + 1) ** 2 * 2):
        submit(2, priority=HIGH)
        turns += claimed(idle_service, 1)
    passed = [job_id for job_id in turns if job_id in normal + low]
    assert passed == [*normal[:7], low[0], *normal[7:14], low[1]]
    assert [turns.index(job_id) for job_id in passed] == list(range(STREAK_LIMIT, len(turns), STREAK_LIMIT + 1))
    assert_jobs_are_claimed_at_their_positions(idle_service)


def test_low_job_does_not_overtake_jobs_that_already_waited(idle_service: Service, submit: Submit) -> None:
    high = submit(20, priority=HIGH)
    assert idle_service.job_store.fair_queue.next_position(MODEL).position == 20
    [normal] = submit()
    later = submit(9, priority=HIGH)
    low = submit(2, priority=LOW)
    assert [rank_of(idle_service, job_id) for job_id in (normal, *low)] == [20 + STREAK_LIMIT, 30, 31]
    assert claimed(idle_service, 29) == [*high, *later[:7], normal, later[7]]
    assert_jobs_are_claimed_at_their_positions(idle_service)


def test_requeued_job_comes_first(idle_service: Service, submit: Submit) -> None:
    [lost, _], _ = submit(2, "a", LOW), submit(3, "b", HIGH)
    assert lost not in claimed(idle_service, 3)
    assert claimed(idle_service, 1) == [lost]
    ahead = submit(1, "c", HIGH)
    idle_service.jobs.requeue(lost)
    assert position_of(idle_service, lost) == QueuePosition(0, 0)
    assert position_of(idle_service, ahead[0]) == QueuePosition(1, pytest.approx(make_spec().cost))
    idle_service.jobs.requeue(lost)
    assert rank_of(idle_service, ahead[0]) == 1, "requeue is idempotent"
    assert claimed(idle_service, 2) == [lost, *ahead]
    assert_jobs_are_claimed_at_their_positions(idle_service)


def test_requeued_job_can_be_cancelled(idle_service: Service, submit: Submit) -> None:
    [lost], [behind] = submit(), submit()
    claimed(idle_service, 1)
    idle_service.jobs.requeue(lost)
    idle_service.jobs.cancel(lost)
    assert position_of(idle_service, lost) is None
    assert position_of(idle_service, behind) == QueuePosition(0, 0)
    assert_jobs_are_claimed_at_their_positions(idle_service)


def test_requeue_ignores_a_job_that_has_ended(
    idle_service: Service, submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    [job_id], [behind] = submit(), submit()
    record = idle_service.record(job_id)
    idle_service.jobs.cancel(job_id)
    monkeypatch.setattr(idle_service.jobs.job_store, "get", lambda job_id: record)
    idle_service.jobs.requeue(job_id)
    monkeypatch.undo()
    assert position_of(idle_service, behind) == QueuePosition(0, 0)


def test_models_have_separate_queues(idle_service: Service, submit: Submit) -> None:
    submit(3, model="other")
    [job_id] = submit()
    assert position_of(idle_service, job_id) == QueuePosition(0, 0)
    assert claimed(idle_service, 1) == [job_id]
    assert idle_service.jobs.claim(MODEL) is None


def test_changes_by_rq_tools_lose_no_job(idle_service: Service, submit: Submit) -> None:
    pushed, emptied, kept = submit(3)
    claimed(idle_service, 1)
    idle_service.queue.push_job_id(pushed)  # not in the fair queue: it was claimed before
    idle_service.queue.remove(emptied)  # still in the fair queue
    order = [idle_service.jobs.claim(MODEL) for _ in range(4)]
    assert order == [kept.encode(), pushed.encode(), None, None]
    assert idle_service.queue.count == 0
    idle_service.jobs.requeue(emptied)  # as the reaper does with a job in no list
    assert claimed(idle_service, 1) == [emptied]


def test_job_only_in_rqs_list_is_claimed_when_first(idle_service: Service, submit: Submit) -> None:
    ids = submit(2, "a") + submit(1, "b", HIGH)
    idle_service.queue.push_job_id("unknown", at_front=True)
    order = [idle_service.jobs.claim(MODEL) for _ in range(4)]
    assert order == [b"unknown", *(job_id.encode() for job_id in (ids[2], *ids[:2]))]


def test_concurrent_claims_take_each_job_once(idle_service: Service, submit: Submit) -> None:
    ids = [job_id for owner in "abc" for job_id in submit(40, owner)]
    with ThreadPoolExecutor(8) as pool:
        moved = list(pool.map(lambda _: idle_service.jobs.claim(MODEL), range(len(ids) + 8)))
    taken = [job_id.decode() for job_id in moved if job_id]
    assert sorted(taken) == sorted(ids)
    assert sorted(idle_service.queue.intermediate_queue.get_job_ids()) == sorted(ids)
    assert idle_service.queue.count == 0


def test_cost_ahead_is_the_sum_of_earlier_jobs(idle_service: Service, submit: Submit) -> None:
    choose = random.Random(3)
    for _ in range(60):
        submit(1, choose.choice("abcde"), choose.choice([LOW, NORMAL]), num_images=choose.randint(1, 8))
    waiting = idle_service.queue.get_job_ids()
    normal = [record for record in idle_service.all(waiting) if record.priority is NORMAL]
    reported = dict(zip([r.id for r in normal], idle_service.job_store.fair_queue.positions(normal), strict=True))
    ahead, below = 0.0, 0
    for job_id in claimed(idle_service, len(waiting)):
        record = idle_service.record(job_id)
        below += record.priority is LOW
        if record.priority is NORMAL and not below:  # exact until the first low job passes
            assert reported[job_id].cost_ahead == pytest.approx(ahead)
        elif record.priority is NORMAL:
            assert reported[job_id].cost_ahead == pytest.approx(ahead, abs=make_spec(num_images=8).cost * below)
        ahead += record.spec.cost
    assert below


def test_positions_are_exact_with_many_owners(idle_service: Service, submit: Submit) -> None:
    owners = [f"owner-{i}" for i in range(48)]
    ids = [submit(3, owner) for owner in owners]
    for turn, jobs in enumerate(ids):
        for rank, job_id in enumerate(jobs):
            expected = rank * len(owners) + turn
            assert position_of(idle_service, job_id) == QueuePosition(
                expected, pytest.approx(expected * make_spec().cost)
            )
    assert idle_service.job_store.fair_queue.next_position(MODEL, owners[5]).position == len(owners) * 3
    assert idle_service.job_store.fair_queue.next_position(MODEL, "new").position == len(owners)


class FairQueueMachine(RuleBasedStateMachine):
    """Any order of calls, compared with a model in Python."""

    service: Service

    def __init__(self) -> None:
        super().__init__()
        self.service.redis.flushall()
        self.jobs = self.service.jobs
        self.returned: deque[JobRecord] = deque()
        self.rings: dict[Priority, dict[str, deque[JobRecord]]] = {priority: {} for priority in (HIGH, NORMAL, LOW)}
        self.taken = dict.fromkeys(self.rings, 0)
        self.running: list[JobRecord] = []

    def waiting(self) -> list[JobRecord]:
        rings = self.rings.values()
        return [*self.returned, *(job for ring in rings for jobs in ring.values() for job in jobs)]

    @rule(
        owner=st.sampled_from(["", "a", "b", "cost"]),
        priority=st.sampled_from([LOW, NORMAL, HIGH, HIGH]),
        images=st.integers(1, 8),
        count=st.integers(1, 5),
    )
    def submit(self, owner: str, priority: Priority, images: int, count: int) -> None:
        for _ in range(count):
            expected = self.jobs.job_store.fair_queue.next_position(MODEL, owner, priority).position
            for above, below in ((HIGH, [NORMAL, LOW]), (NORMAL, [LOW])):
                if priority in below and self.rings[above] and not any(self.rings[p] for p in below):
                    self.taken[above] = -sum(map(len, self.rings[above].values()))
            job = self.jobs.submit(make_spec(num_images=images), JobOptions(owner=owner, priority=priority))
            assert self.positions([job]) == [expected]
            self.rings[priority].setdefault(owner, deque()).append(job)

    @precondition(lambda self: self.waiting())
    @rule(count=st.integers(1, 5))
    def claim(self, count: int) -> None:
        for _ in range(min(count, len(self.waiting()))):
            expected = self.expected_next()
            moved = self.jobs.claim(MODEL)
            assert moved == expected.id.encode()
            assert self.service.queue.intermediate_queue.get_job_ids() == [expected.id]
            self.service.queue.intermediate_queue.remove(expected.id)
            self.service.job_store.start(expected.id, execution="e", worker="w")
            self.running.append(expected)

    def expected_next(self) -> JobRecord:
        if self.returned:
            return self.returned.popleft()
        open_rings = [priority for priority, ring in self.rings.items() if ring]
        chosen = next((p for p in open_rings if self.taken[p] < STREAK_LIMIT), open_rings[-1])
        owner, jobs = next(iter(self.rings[chosen].items()))
        del self.rings[chosen][owner]
        job = jobs.popleft()
        if jobs:
            self.rings[chosen][owner] = jobs
        above = list(self.rings)[: list(self.rings).index(chosen)]
        below = list(self.rings)[len(above) + 1 :]
        self.taken |= dict.fromkeys(above, 0)
        self.taken[chosen] = self.taken[chosen] + 1 if self.rings[chosen] and any(self.rings[p] for p in below) else 0
        return job

    @precondition(lambda self: self.waiting())
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        job = data.draw(st.sampled_from(self.waiting()))
        assert self.jobs.cancel(job.id).status is JobStatus.CANCELLED
        if job in self.returned:
            self.returned.remove(job)
            return
        ring = self.rings[job.priority]
        ring[job.owner].remove(job)
        if not ring[job.owner]:
            del ring[job.owner]
        if not ring:
            self.taken[job.priority] = 0

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def requeue(self, data: st.DataObject) -> None:
        job = data.draw(st.sampled_from(self.running))
        self.running.remove(job)
        if self.service.record(job.id).attempts == 3:
            self.jobs.requeue(job.id)
            assert self.service.record(job.id).status is JobStatus.FAILED
            return
        self.jobs.requeue(job.id)
        self.returned.appendleft(job)

    def positions(self, jobs: list[JobRecord]) -> list[int | None]:
        return [found and found.position for found in self.jobs.job_store.fair_queue.positions(jobs)]

    @invariant()
    def rq_and_the_fair_queue_hold_the_same_jobs(self) -> None:
        waiting = self.waiting()
        assert sorted(self.service.queue.get_job_ids()) == sorted(job.id for job in waiting)
        assert sorted(self.positions(waiting)) == list(range(len(waiting)))
        assert self.positions(self.running) == [None] * len(self.running)

    def teardown(self) -> None:
        assert_jobs_are_claimed_at_their_positions(self.service)


def test_fair_queue_agrees_with_a_model_in_python(idle_service: Service) -> None:
    machine: Any = type("Machine", (FairQueueMachine,), {"service": idle_service})
    run_state_machine_as_test(machine, settings=settings(max_examples=15, stateful_step_count=25, deadline=None))
