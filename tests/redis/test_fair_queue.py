"""The order of waiting jobs, and whether jobs are claimed at the positions that were reported."""

import heapq
import math
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
from img2img.redis.fair_queue import QueuePosition
from img2img.redis.keys import FAIR_QUEUE_OWNERS
from tests.support.processes import MODEL, Service
from tests.support.specs import make_spec

LOW, NORMAL, HIGH = Priority
Submit = Callable[..., list[str]]


@pytest.fixture
def submit(idle_service: Service) -> Submit:
    """Submit some jobs of one owner."""

    def queue(
        count: int = 1,
        owner: str = "",
        priority: Priority = NORMAL,
        deadline_s: float | None = None,
        **changes: Any,
    ) -> list[str]:
        options = JobOptions(owner=owner, priority=priority, deadline_s=deadline_s)
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


def test_jobs_of_one_owner_are_in_order_of_their_deadlines(idle_service: Service, submit: Submit) -> None:
    waiting = submit(2)
    [late], [soon], [sooner] = submit(deadline_s=300), submit(deadline_s=60), submit(deadline_s=30)
    # Later than jobs without a deadline are due.
    [distant] = submit(deadline_s=3600)
    assert [rank_of(idle_service, job_id) for job_id in (sooner, soon, late, *waiting, distant)] == list(range(6))
    cost = make_spec().cost
    next_position = idle_service.job_store.fair_queue.next_position
    assert next_position(MODEL, cost, deadline_s=100) == QueuePosition(2, pytest.approx(2 * cost))
    assert next_position(MODEL, cost).position == 6
    idle_service.jobs.cancel(soon)
    assert position_of(idle_service, waiting[0]) == QueuePosition(2, pytest.approx(2 * cost))
    assert_jobs_are_claimed_at_their_positions(idle_service)


def test_job_without_deadline_is_overtaken_for_ten_minutes_only(
    idle_service: Service, submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    [waiting] = submit()
    now = idle_service.jobs.clock.now()
    monkeypatch.setattr(idle_service.jobs.clock, "now", lambda: now + 550)
    [before] = submit(deadline_s=30)
    monkeypatch.setattr(idle_service.jobs.clock, "now", lambda: now + 601)
    [behind] = submit(deadline_s=30)
    assert [rank_of(idle_service, job_id) for job_id in (before, waiting, behind)] == [0, 1, 2]


def test_deadline_takes_no_turn_from_another_owner(idle_service: Service, submit: Submit) -> None:
    patient, hasty = submit(4, "patient"), submit(4, "hasty", deadline_s=5)
    order = claimed(idle_service, 8)
    assert [job_id in hasty for job_id in order] == [job_id in patient for job_id in order[1:]] + [order[-1] in hasty]


def test_claim_beyond_slots_waits_for_high_jobs_and_keeps_the_shares(idle_service: Service, submit: Submit) -> None:
    def claim() -> str | None:
        moved = idle_service.jobs.claim(MODEL, 0.0)
        return moved and moved.decode()

    normal = submit(3)
    [lost] = claimed(idle_service, 1)
    idle_service.jobs.requeue(lost)
    assert claim() is None
    high = submit(9, priority=HIGH)
    order = [claim() for _ in range(11)]
    assert order == [*high[:7], normal[1], *high[7:], None], "the job of a lost worker waits for a slot"
    assert claimed(idle_service, 2) == [lost, normal[2]]


def test_claim_beyond_slots_takes_the_next_job_if_it_is_due_before_those_in_flight(
    idle_service: Service, submit: Submit
) -> None:
    now = idle_service.jobs.clock.now()
    submit(2)
    assert idle_service.jobs.claim(MODEL, now + 900) is None, "it has no deadline"
    [soon], [later] = submit(deadline_s=30), submit(deadline_s=60)
    assert idle_service.jobs.claim(MODEL, now + 10) is None
    assert idle_service.jobs.claim(MODEL, now + 50) == soon.encode()
    assert idle_service.jobs.claim(MODEL, now + 50) is None
    assert idle_service.jobs.claim(MODEL, now + 100) == later.encode()
    assert idle_service.jobs.claim(MODEL, now + 100) is None


def test_backlog_of_one_owner_does_not_delay_another(idle_service: Service, submit: Submit) -> None:
    many = submit(1000, "busy")
    assert claimed(idle_service, 2) == many[:2]
    first, *rest = submit(3, "other")
    assert position_of(idle_service, first) == QueuePosition(0, 0)
    assert rank_of(idle_service, many[-1]) == 1000
    assert claimed(idle_service, 5) == [first, many[2], rest[0], many[3], rest[1]]
    late = submit(1, "late")
    assert rank_of(idle_service, late[0]) == 0
    assert_jobs_are_claimed_at_their_positions(idle_service)


def test_owner_with_single_jobs_takes_turns(idle_service: Service, submit: Submit) -> None:
    many = submit(3, "busy")
    for job_id in many:
        [single] = submit(1, "single")
        assert claimed(idle_service, 2) == [job_id, single]


def test_turns_are_by_work(idle_service: Service, submit: Submit) -> None:
    """An owner of large jobs gets one turn for many small jobs, whether it queues them or sends one at a time."""
    small = submit(40, "small")
    [large] = submit(1, "large", num_images=8)
    order = []
    for _ in range(27):
        order += claimed(idle_service, 1)
        if order[-1] == large:
            [large] = submit(1, "large", num_images=8)
    assert [at for at, job_id in enumerate(order) if job_id not in small] == [0, 9, 18]


def test_idle_time_gives_no_credit(idle_service: Service, submit: Submit) -> None:
    submit(1, "a")
    busy = submit(30, "b")
    claimed(idle_service, 20)
    late = submit(10, "a")
    order = claimed(idle_service, 10)
    assert [job_id in late for job_id in order] == [True, *[True, False] * 4, True]
    assert set(order) <= {*busy, *late}


def test_requeued_job_is_not_charged_twice(idle_service: Service, submit: Submit) -> None:
    unlucky, other = submit(6, "a"), submit(6, "b")
    assert claimed(idle_service, 2) == [unlucky[0], other[0]]
    for _ in range(2):
        idle_service.jobs.requeue(unlucky[0])
        assert claimed(idle_service, 1) == [unlucky[0]]
    assert claimed(idle_service, 4) == [unlucky[1], other[1], unlucky[2], other[2]]


def test_cancelling_costs_no_turns(idle_service: Service, submit: Submit) -> None:
    cancelling, other = submit(20, "cancelling"), submit(20, "other")
    for job_id in cancelling[:18]:
        idle_service.jobs.cancel(job_id)
    assert position_of(idle_service, cancelling[18]) == QueuePosition(0, 0)
    assert rank_of(idle_service, cancelling[19]) == 2
    assert claimed(idle_service, 5) == [cancelling[18], other[0], cancelling[19], other[1], other[2]]
    again = submit(1, "cancelling")
    assert claimed(idle_service, 2) == [*again, other[3]], "only the jobs that ran were charged"


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
    """While jobs of all priorities wait, they get 49, 7 and 1 of 57 parts of the work."""
    low, normal = submit(3, priority=LOW), submit(20)
    turns = []
    for _ in range(57 * 2):
        submit(2, priority=HIGH)
        turns += claimed(idle_service, 1)
    passed = [job_id for job_id in turns if job_id in normal + low]
    assert passed == [*normal[:7], low[0], *normal[7:14], low[1]]
    assert turns.index(normal[0]) == 7
    assert turns.index(low[0]) == 56
    assert_jobs_are_claimed_at_their_positions(idle_service)


def test_high_priority_gets_a_share_of_the_work_and_not_of_the_jobs(idle_service: Service, submit: Submit) -> None:
    """Jobs that already wait are no exception."""
    high = submit(400, "greedy", HIGH, num_images=8)
    modest = submit(400, "modest")
    order = claimed(idle_service, 64)
    work = {
        owner: sum(record.spec.cost for record in idle_service.all(set(order) & set(ids)))
        for owner, ids in (("greedy", high), ("modest", modest))
    }
    assert work["greedy"] / work["modest"] == pytest.approx(7, rel=0.2)


def test_large_high_job_does_not_wait_for_small_lower_ones(idle_service: Service, submit: Submit) -> None:
    low, normal = submit(20, priority=LOW), submit(20)
    high = submit(2, priority=HIGH, num_images=8)
    assert claimed(idle_service, 4) == [high[0], *normal[:1], high[1], normal[1]]
    assert rank_of(idle_service, low[0]) == 5
    assert_jobs_are_claimed_at_their_positions(idle_service)


def test_low_job_waits_until_its_share_has_paid_for_it(idle_service: Service, submit: Submit) -> None:
    high = submit(80, priority=HIGH)
    cost = make_spec(num_images=8).cost
    assert idle_service.job_store.fair_queue.next_position(MODEL, cost).position == 56
    [large] = submit(num_images=8)
    assert rank_of(idle_service, large) == 56
    assert claimed(idle_service, 57) == [*high[:56], large]
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
    for _ in range(120):
        submit(1, choose.choice("abcde"), choose.choice(list(Priority)), num_images=choose.randint(1, 8))
    for job_id in choose.sample(idle_service.queue.get_job_ids(), 20):
        idle_service.jobs.cancel(job_id)
    waiting = idle_service.all(idle_service.queue.get_job_ids())
    positions = idle_service.job_store.fair_queue.positions(waiting)
    reported = dict(zip([record.id for record in waiting], positions, strict=True))
    ahead = 0.0
    for at, job_id in enumerate(claimed(idle_service, len(waiting))):
        assert reported[job_id] == QueuePosition(at, pytest.approx(ahead))
        ahead += idle_service.record(job_id).spec.cost


def test_positions_are_exact_with_many_owners(idle_service: Service, submit: Submit) -> None:
    owners = [f"owner-{i:02}" for i in range(48)]
    ids = [submit(3, owner) for owner in owners]
    for turn, jobs in enumerate(ids):
        for rank, job_id in enumerate(jobs):
            expected = rank * len(owners) + turn
            assert position_of(idle_service, job_id) == QueuePosition(
                expected, pytest.approx(expected * make_spec().cost)
            )
    assert idle_service.job_store.fair_queue.next_position(MODEL, 0.01, owners[5]).position == len(owners) * 3
    assert idle_service.job_store.fair_queue.next_position(MODEL, 0.01, "those after").position == len(owners)


class Simulation:
    """Workers with some slots and owners with random jobs. Time is simulated; a job takes as long as its work."""

    def __init__(self, service: Service, seed: int) -> None:
        self.service = service
        self.choose = random.Random(seed)
        self.slots = self.choose.choice([1, 3, 16])
        # Range of the numbers of images and steps of each owner's jobs: from a tenth to 40 times of the others.
        self.sizes = {
            f"busy-{i}": (self.choose.choice([1, 2, 8]), self.choose.choice([1, 10, 50, 150]))
            for i in range(self.choose.randint(2, 5))
        }
        self.guests = {f"guest-{i}": (8, 100) for i in range(3)}
        self.taken: list[tuple[str, float]] = []
        self.work = dict.fromkeys(self.sizes, 0.0)

    def submit(self, owner: str) -> None:
        images, steps = (self.sizes | self.guests)[owner]
        spec = make_spec(
            num_images=self.choose.randint(1, images), num_inference_steps=self.choose.randint((steps + 1) // 2, steps)
        )
        self.service.jobs.submit(spec, JobOptions(owner=owner))

    def run(self, work: float) -> None:
        """Run until the busy owners have got this much work each. They always have waiting jobs, guests do not."""
        waiting, ends, now = dict.fromkeys(self.sizes, 0), [0.0] * self.slots, 0.0
        while min(self.work.values()) < work:
            for owner in self.sizes:
                for _ in range(self.choose.randint(2, 4) if waiting[owner] < 2 else 0):
                    self.submit(owner)
                    waiting[owner] += 1
            if self.choose.random() < 0.1:
                self.submit(self.choose.choice(list(self.guests)))
            now = heapq.heappop(ends)
            [job_id] = claimed(self.service, 1)
            record = self.service.record(job_id)
            self.taken.append((record.owner, record.spec.cost))
            heapq.heappush(ends, now + record.spec.cost)
            if record.owner in self.sizes:
                waiting[record.owner] -= 1
                self.work[record.owner] += record.spec.cost
            chance = self.choose.random()
            if chance < 0.05:
                self.service.jobs.requeue(job_id)
                [again] = claimed(self.service, 1)
                assert again == job_id
            elif chance < 0.1 and waiting.get(record.owner, 0) > 1:
                owned = [r for r in self.service.all(self.service.queue.get_job_ids()) if r.owner == record.owner]
                self.service.jobs.cancel(self.choose.choice(owned).id)
                waiting[record.owner] -= 1


@pytest.mark.parametrize("seed", range(8))
def test_owners_get_equal_work_in_every_window(idle_service: Service, seed: int) -> None:
    """A window is reasonable if each owner can run ten jobs of the largest size in it."""
    simulation = Simulation(idle_service, seed)
    largest = max(make_spec(num_images=n, num_inference_steps=s).cost for n, s in simulation.sizes.values())
    simulation.run(25 * largest)
    for start in range(0, len(simulation.taken), 7):
        work = dict.fromkeys(simulation.sizes, 0.0)
        for owner, cost in simulation.taken[start:]:
            if owner in work:
                work[owner] += cost
            if min(work.values()) >= 10 * largest:
                break
        else:
            assert start, "there was no window"
            break
        assert max(work.values()) <= 1.2 * min(work.values()), (simulation.slots, simulation.sizes)


PACE = {HIGH: 1, NORMAL: 7, LOW: 49}


def work_of(job: JobRecord) -> int:
    return round(job.spec.cost * 1e6)


def due_at(job: JobRecord) -> float:
    return min(job.created_at + 600, job.deadline_at or math.inf)


class Level:
    """A priority: jobs by owner, and virtual times."""

    def __init__(self) -> None:
        self.jobs: dict[str, deque[JobRecord]] = {}
        self.starts: dict[str, int] = {}
        self.clock = 0
        self.tag = 0

    def add(self, job: JobRecord, tag: int) -> None:
        if not self.jobs:
            self.__init__()  # type: ignore[misc]
            self.tag = tag
        if job.owner not in self.jobs:
            self.jobs[job.owner] = deque()
            self.starts[job.owner] = max(self.clock, self.starts.get(job.owner, 0))
        waiting = self.jobs[job.owner]
        waiting.insert(sum(due_at(other) <= due_at(job) for other in waiting), job)

    def remove(self, job: JobRecord) -> None:
        self.jobs[job.owner].remove(job)
        if not self.jobs[job.owner]:
            del self.jobs[job.owner]

    def next_job(self) -> JobRecord:
        owner = min(self.jobs, key=lambda owner: (self.starts[owner], owner))
        return self.jobs[owner][0]

    def take(self, job: JobRecord) -> None:
        self.clock = self.starts[job.owner]
        self.starts[job.owner] += work_of(job)
        self.remove(job)


class FairQueueMachine(RuleBasedStateMachine):
    """Any order of calls, compared with a model in Python."""

    service: Service

    def __init__(self) -> None:
        super().__init__()
        self.service.redis.flushall()
        self.jobs = self.service.jobs
        self.returned: deque[JobRecord] = deque()
        self.levels = {priority: Level() for priority in (HIGH, NORMAL, LOW)}
        self.tag = 0
        self.running: list[JobRecord] = []

    def waiting(self) -> list[JobRecord]:
        levels = self.levels.values()
        return [*self.returned, *(job for level in levels for jobs in level.jobs.values() for job in jobs)]

    @rule(
        owner=st.sampled_from(["", "a", "b", "cost"]),
        priority=st.sampled_from([LOW, NORMAL, HIGH, HIGH]),
        images=st.integers(1, 8),
        count=st.integers(1, 5),
        deadline_s=st.one_of(st.none(), st.integers(5, 700)),
    )
    def submit(self, owner: str, priority: Priority, images: int, count: int, deadline_s: int | None) -> None:
        for _ in range(count):
            spec = make_spec(num_images=images)
            options = JobOptions(owner=owner, priority=priority, deadline_s=deadline_s)
            expected = self.jobs.job_store.fair_queue.next_position(MODEL, spec.cost, owner, priority, deadline_s)
            others = self.waiting()
            job = self.jobs.submit(spec, options)
            # The times of both calls differ by some milliseconds.
            if deadline_s is None or all(abs(due_at(job) - due_at(other)) > 0.5 for other in others):
                assert self.jobs.job_store.fair_queue.positions([job]) == [expected]
            if not any(level.jobs for level in self.levels.values()):
                self.tag = 0
            self.levels[priority].add(job, self.tag)

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

        def turn(priority: Priority) -> tuple[int, int]:
            """High jobs go by their start. At the same time they come last."""
            level = self.levels[priority]
            if priority is HIGH:
                return level.tag, 2
            return level.tag + PACE[priority] * work_of(level.next_job()), priority is LOW

        chosen = min((priority for priority, level in self.levels.items() if level.jobs), key=turn)
        level = self.levels[chosen]
        job = level.next_job()
        level.take(job)
        level.tag += PACE[chosen] * work_of(job)
        self.tag = max(self.tag, level.tag)
        return job

    @precondition(lambda self: self.waiting())
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        job = data.draw(st.sampled_from(self.waiting()))
        assert self.jobs.cancel(job.id).status is JobStatus.CANCELLED
        if job in self.returned:
            self.returned.remove(job)
            return
        self.levels[job.priority].remove(job)

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
