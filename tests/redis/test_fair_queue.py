"""The order of waiting jobs: who is next, and whether the positions that were told come true."""

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
def submit(front_end: Service) -> Submit:
    """Queues some jobs of one owner."""

    def queue(count: int = 1, owner: str = "", priority: Priority = NORMAL, **changes: Any) -> list[str]:
        terms = JobOptions(owner=owner, priority=priority)
        return [front_end.jobs.submit(make_spec(**changes), terms).id for _ in range(count)]

    return queue


def claimed(front_end: Service, count: int) -> list[str]:
    """The next jobs, taken from the queue for good."""
    ids = []
    for _ in range(count):
        moved = front_end.jobs.claim(MODEL)
        assert moved is not None
        front_end.queue.intermediate_queue.remove(moved.decode())
        front_end.job_store.start(moved.decode(), execution="e", worker="w")
        ids.append(moved.decode())
    return ids


def standing(front_end: Service, job_id: str) -> QueuePosition | None:
    [found] = front_end.job_store.fair_queue.positions([front_end.record(job_id)])
    return found


def place(front_end: Service, job_id: str) -> int | None:
    found = standing(front_end, job_id)
    return found and found.position


def assert_positions_come_true(front_end: Service) -> None:
    """Claims everything that waits: every job at the place, and after as much work, as was told before."""
    waiting = front_end.queue.get_job_ids()
    told = dict(zip(waiting, front_end.job_store.fair_queue.positions(front_end.all(waiting)), strict=True))
    order = claimed(front_end, len(waiting))
    assert [told[job_id].position for job_id in order] == list(range(len(order)))
    assert front_end.jobs.claim(MODEL) is None
    assert not front_end.redis.keys(FAIR_QUEUE_OWNERS.pattern), "an empty line leaves nothing behind"


def test_one_owners_jobs_go_first_in_first_out(front_end: Service, submit: Submit) -> None:
    ids = submit(12)
    assert claimed(front_end, 12) == ids


def test_a_thousand_jobs_do_not_hold_up_one(front_end: Service, submit: Submit) -> None:
    many = submit(1000, "busy")
    first, *rest = submit(3, "brief")
    assert standing(front_end, first) == QueuePosition(1, pytest.approx(make_spec().cost))
    assert place(front_end, many[-1]) == 1002
    assert claimed(front_end, 6) == [many[0], first, many[1], rest[0], many[2], rest[1]]
    late = submit(1, "late")
    assert place(front_end, late[0]) == 1
    assert_positions_come_true(front_end)


def test_who_sends_one_after_another_takes_turns_as_well(front_end: Service, submit: Submit) -> None:
    many = submit(3, "busy")
    for job_id in many:
        [single] = submit(1, "brief")
        assert claimed(front_end, 2) == [job_id, single]


def test_who_cancels_loses_no_turns(front_end: Service, submit: Submit) -> None:
    fickle, other = submit(20, "fickle"), submit(20, "other")
    for job_id in fickle[:18]:
        front_end.jobs.cancel(job_id)
    assert standing(front_end, fickle[18]) == QueuePosition(0, 0)
    assert place(front_end, fickle[19]) == 2
    assert claimed(front_end, 5) == [fickle[18], other[0], fickle[19], other[1], other[2]]
    again = submit(1, "fickle")
    assert claimed(front_end, 2) == [other[3], *again]


def test_a_cancel_in_the_middle_moves_up_those_behind(front_end: Service, submit: Submit) -> None:
    mine, others = submit(5, "a"), submit(5, "b")
    front_end.jobs.cancel(mine[1])
    assert [place(front_end, job_id) for job_id in mine] == [0, None, 2, 4, 6]
    assert [place(front_end, job_id) for job_id in others] == [1, 3, 5, 7, 8]
    assert standing(front_end, others[-1]).cost_ahead == pytest.approx(8 * make_spec().cost)
    assert_positions_come_true(front_end)


def test_high_goes_before_normal_and_normal_before_low(front_end: Service, submit: Submit) -> None:
    low, normal, high = submit(2, priority=LOW), submit(2), submit(2, priority=HIGH)
    cost = make_spec().cost
    assert standing(front_end, low[1]) == QueuePosition(5, pytest.approx(5 * cost))
    assert standing(front_end, high[1]) == QueuePosition(1, pytest.approx(cost))
    assert claimed(front_end, 6) == high + normal + low


def test_owners_take_turns_within_each_priority(front_end: Service, submit: Submit) -> None:
    normal = submit(3, "a")
    high_a, high_b = submit(2, "a", HIGH), submit(2, "b", HIGH)
    assert claimed(front_end, 5) == [high_a[0], high_b[0], high_a[1], high_b[1], normal[0]]


def test_no_priority_starves(front_end: Service, submit: Submit) -> None:
    """Under a load of high jobs that never ends, normal ones get one turn in eight, and low ones an eighth of those."""
    low, normal = submit(3, priority=LOW), submit(20)
    turns = []
    for _ in range((STREAK_LIMIT + 1) ** 2 * 2):
        submit(2, priority=HIGH)
        turns += claimed(front_end, 1)
    passed = [job_id for job_id in turns if job_id in normal + low]
    assert passed == [*normal[:7], low[0], *normal[7:14], low[1]]
    assert [turns.index(job_id) for job_id in passed] == list(range(STREAK_LIMIT, len(turns), STREAK_LIMIT + 1))
    assert_positions_come_true(front_end)


def test_a_low_job_does_not_overtake_those_that_waited_when_it_came(front_end: Service, submit: Submit) -> None:
    high = submit(20, priority=HIGH)
    assert front_end.job_store.fair_queue.next_position(MODEL).position == 20
    [normal] = submit()
    later = submit(9, priority=HIGH)
    low = submit(2, priority=LOW)
    assert [place(front_end, job_id) for job_id in (normal, *low)] == [20 + STREAK_LIMIT, 30, 31]
    assert claimed(front_end, 29) == [*high, *later[:7], normal, later[7]]
    assert_positions_come_true(front_end)


def test_a_job_that_was_put_back_comes_first_again(front_end: Service, submit: Submit) -> None:
    [lost, _], _ = submit(2, "a", LOW), submit(3, "b", HIGH)
    assert lost not in claimed(front_end, 3)
    assert claimed(front_end, 1) == [lost]
    ahead = submit(1, "c", HIGH)
    front_end.jobs.requeue(lost)
    assert standing(front_end, lost) == QueuePosition(0, 0)
    assert standing(front_end, ahead[0]) == QueuePosition(1, pytest.approx(make_spec().cost))
    front_end.jobs.requeue(lost)
    assert place(front_end, ahead[0]) == 1, "doing it twice is doing it once"
    assert claimed(front_end, 2) == [lost, *ahead]
    assert_positions_come_true(front_end)


def test_a_job_that_was_put_back_can_be_cancelled(front_end: Service, submit: Submit) -> None:
    [lost], [behind] = submit(), submit()
    claimed(front_end, 1)
    front_end.jobs.requeue(lost)
    front_end.jobs.cancel(lost)
    assert standing(front_end, lost) is None
    assert standing(front_end, behind) == QueuePosition(0, 0)
    assert_positions_come_true(front_end)


def test_a_job_that_ended_while_it_was_put_back_does_not_stand_in_line(
    front_end: Service, submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    [job_id], [behind] = submit(), submit()
    record = front_end.record(job_id)
    front_end.jobs.cancel(job_id)
    monkeypatch.setattr(front_end.jobs.job_store, "get", lambda job_id: record)
    front_end.jobs.requeue(job_id)
    monkeypatch.undo()
    assert standing(front_end, behind) == QueuePosition(0, 0)


def test_each_model_has_a_line_of_its_own(front_end: Service, submit: Submit) -> None:
    submit(3, model="other")
    [job_id] = submit()
    assert standing(front_end, job_id) == QueuePosition(0, 0)
    assert claimed(front_end, 1) == [job_id]
    assert front_end.jobs.claim(MODEL) is None


def test_what_rqs_own_tools_do_loses_nothing(front_end: Service, submit: Submit) -> None:
    pushed, emptied, kept = submit(3)
    claimed(front_end, 1)
    front_end.queue.push_job_id(pushed)  # not in the line: it was taken once
    front_end.queue.remove(emptied)  # still in the line
    order = [front_end.jobs.claim(MODEL) for _ in range(4)]
    assert order == [kept.encode(), pushed.encode(), None, None]
    assert front_end.queue.count == 0
    front_end.jobs.requeue(emptied)  # as the sweeper does with one that is in no list
    assert claimed(front_end, 1) == [emptied]


def test_a_job_that_is_not_in_the_line_goes_when_it_heads_the_list(front_end: Service, submit: Submit) -> None:
    ids = submit(2, "a") + submit(1, "b", HIGH)
    front_end.queue.push_job_id("unknown", at_front=True)
    order = [front_end.jobs.claim(MODEL) for _ in range(4)]
    assert order == [b"unknown", *(job_id.encode() for job_id in (ids[2], *ids[:2]))]


def test_many_claim_at_once_and_each_job_goes_to_one(front_end: Service, submit: Submit) -> None:
    ids = [job_id for owner in "abc" for job_id in submit(40, owner)]
    with ThreadPoolExecutor(8) as pool:
        moved = list(pool.map(lambda _: front_end.jobs.claim(MODEL), range(len(ids) + 8)))
    taken = [job_id.decode() for job_id in moved if job_id]
    assert sorted(taken) == sorted(ids)
    assert sorted(front_end.queue.intermediate_queue.get_job_ids()) == sorted(ids)
    assert front_end.queue.count == 0


def test_the_work_ahead_is_the_sum_of_whose_turns_come_before(front_end: Service, submit: Submit) -> None:
    choose = random.Random(3)
    for _ in range(60):
        submit(1, choose.choice("abcde"), choose.choice([LOW, NORMAL]), num_images=choose.randint(1, 8))
    waiting = front_end.queue.get_job_ids()
    normal = [record for record in front_end.all(waiting) if record.priority is NORMAL]
    told = dict(zip([r.id for r in normal], front_end.job_store.fair_queue.positions(normal), strict=True))
    ahead, below = 0.0, 0
    for job_id in claimed(front_end, len(waiting)):
        record = front_end.record(job_id)
        below += record.priority is LOW
        if record.priority is NORMAL and not below:  # before the first that was let pass: exact
            assert told[job_id].cost_ahead == pytest.approx(ahead)
        elif record.priority is NORMAL:
            assert told[job_id].cost_ahead == pytest.approx(ahead, abs=make_spec(num_images=8).cost * below)
        ahead += record.spec.cost
    assert below


def test_more_owners_than_are_looked_at_are_taken_to_be_like_those(front_end: Service, submit: Submit) -> None:
    owners = [f"owner-{i}" for i in range(48)]
    ids = [submit(3, owner) for owner in owners]
    for turn, jobs in enumerate(ids):
        for place, job_id in enumerate(jobs):
            expected = place * len(owners) + turn
            assert standing(front_end, job_id) == QueuePosition(expected, pytest.approx(expected * make_spec().cost))
    assert front_end.job_store.fair_queue.next_position(MODEL, owners[5]).position == len(owners) * 3
    assert front_end.job_store.fair_queue.next_position(MODEL, "new").position == len(owners)


class LineMachine(RuleBasedStateMachine):
    """Any order of calls, against the order in plain Python."""

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
            assert self.standings([job]) == [expected]
            self.rings[priority].setdefault(owner, deque()).append(job)

    @precondition(lambda self: self.waiting())
    @rule(count=st.integers(1, 5))
    def claim(self, count: int) -> None:
        for _ in range(min(count, len(self.waiting()))):
            expected = self.next_in_line()
            moved = self.jobs.claim(MODEL)
            assert moved == expected.id.encode()
            assert self.service.queue.intermediate_queue.get_job_ids() == [expected.id]
            self.service.queue.intermediate_queue.remove(expected.id)
            self.service.job_store.start(expected.id, execution="e", worker="w")
            self.running.append(expected)

    def next_in_line(self) -> JobRecord:
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

    def standings(self, jobs: list[JobRecord]) -> list[int | None]:
        return [found and found.position for found in self.jobs.job_store.fair_queue.positions(jobs)]

    @invariant()
    def rq_and_the_line_hold_the_same_jobs(self) -> None:
        waiting = self.waiting()
        assert sorted(self.service.queue.get_job_ids()) == sorted(job.id for job in waiting)
        assert sorted(self.standings(waiting)) == list(range(len(waiting)))
        assert self.standings(self.running) == [None] * len(self.running)

    def teardown(self) -> None:
        assert_positions_come_true(self.service)


def test_the_line_agrees_with_its_order_in_plain_python(front_end: Service) -> None:
    machine: Any = type("Machine", (LineMachine,), {"service": front_end})
    run_state_machine_as_test(machine, settings=settings(max_examples=15, stateful_step_count=25, deadline=None))
