"""The choice of the calls that run next, decided without torch."""

import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from img2img.worker.engine.batch_limits import RETRY_AFTER_CALLS, BatchLimits
from img2img.worker.engine.batch_scheduler import FINISH_S, MAX_PAUSE_S, SHORT_BATCHES_S, Scheduler, schedule
from img2img.worker.engine.call_times import CallTimes
from img2img.worker.engine.priority_shares import BURST, PriorityShares


@dataclass(eq=False)
class Task:
    priority: int = 1
    deadline: float | None = None
    step_calls_left: float = 10.0


@dataclass(eq=False)
class Call:
    signature: str
    rows: int = 1
    iteration: int = 0
    since: float = 0.0
    is_step: bool = True
    runs_alone: bool = False
    task: Task = field(default_factory=Task)


def denoise(priority: int = 1, deadline: float | None = None, left: float = 10.0, **changes: float) -> Call:
    return Call("denoise", 2, task=Task(priority, deadline, left), **changes)  # type: ignore[arg-type]


def scheduler(seconds: Callable[[int], float] = lambda rows: rows / 10) -> Scheduler:
    """Return a scheduler that knows how long calls with so many rows take."""
    times = CallTimes()
    for rows in (2, 32):
        times.record("denoise", "denoise", rows, seconds(rows))
    return Scheduler(times)


def test_schedule_runs_group_with_oldest_call_first():
    calls = [Call("decode", iteration=1), *(Call("denoise", 2, iteration=2) for _ in range(5))]
    assert schedule(calls, lambda _s: 64) == calls[:1]


def test_schedule_prefers_smaller_group_among_equally_old():
    large_group, new_call = [Call("denoise", 2, iteration=3) for _ in range(5)], Call("encode", iteration=3)
    assert schedule([*large_group, new_call], lambda _s: 64) == [new_call]


def test_schedule_counts_one_of_the_calls_that_run_alone():
    alone = [Call("encode", runs_alone=True) for _ in range(5)]
    assert schedule([*alone, Call("denoise", 2)], lambda _s: 64)[0] is alone[0]


def test_schedule_adds_later_calls_of_same_signature():
    calls = [Call("denoise", iteration=1), Call("encode", iteration=2), Call("denoise", iteration=3)]
    assert schedule(calls, lambda _s: 64) == [calls[0], calls[2]]


def test_schedule_runs_call_above_limit_alone():
    calls = [Call("denoise", 16), Call("denoise", 2)]
    assert schedule(calls, lambda _s: 8) == calls[:1]


parked_calls = st.lists(st.builds(Call, st.sampled_from("abc"), st.integers(1, 8), st.integers(0, 9)), min_size=1).map(
    lambda calls: sorted(calls, key=lambda call: call.iteration)
)


@given(parked_calls, st.integers(1, 32))
def test_schedule_returns_one_group_in_order_within_limit_with_oldest_call(calls, limit):
    batch = schedule(calls, lambda _s: limit)
    assert batch
    assert len({call.signature for call in batch}) == 1
    assert [call for call in calls if call in batch] == batch
    assert sum(call.rows for call in batch) <= limit or len(batch) == 1
    assert batch[0].iteration == calls[0].iteration


@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=30))
def test_schedule_starves_no_call(signatures):
    """Each scheduled call is followed at once by a new call of the same signature; every call still runs."""
    calls = [Call(signature, iteration=0) for signature in signatures]
    waiting = set(calls)
    for iteration in range(1, len(set(signatures)) + 1):
        batch = schedule(calls, lambda _s: 64)
        waiting -= set(batch)
        calls = [c for c in calls if c not in batch] + [Call(c.signature, iteration=iteration) for c in batch]
    assert not waiting


def pick(calls: list[Call], seconds: Callable[[int], float] = lambda rows: rows / 10, now: float = 0.0) -> list[Call]:
    return scheduler(seconds).pick(calls, lambda _call: 64, now)


def test_highest_priority_pauses_others():
    others, high = [denoise() for _ in range(5)], denoise(0)
    assert pick([*others, high]) == [high]
    encode = Call("encode", task=Task(0), is_step=False)
    assert pick([*others, encode]) == [encode]


def test_others_join_a_batch_that_takes_hardly_longer_with_them():
    low, normal, high = denoise(2), denoise(1), denoise(0)
    assert pick([low, normal, high], seconds=lambda rows: 1 + rows / 1000) == [high, normal, low]
    assert pick([low, normal, high], seconds=lambda rows: 1 + rows / 20) == [high, normal]


def test_batches_are_kept_short_where_jobs_of_highest_priority_come():
    def seconds(rows: int) -> float:
        return 0.1 + rows / 10

    chosen, others = scheduler(seconds), [denoise() for _ in range(16)]
    assert len(chosen.pick(others, lambda _call: 64, 0.0)) == 16
    chosen.pick([*others, denoise(0)], lambda _call: 64, 1.0)
    # A row takes 0.103 s in the full batch, and 0.1125 s in one of eight rows.
    assert len(chosen.pick(others, lambda _call: 64, 2.0)) == 4
    assert len(chosen.pick(others, lambda _call: 64, 2.0 + SHORT_BATCHES_S)) == 16
    steep = scheduler(lambda rows: 1.0 + rows / 100)
    steep.pick([denoise(0)], lambda _call: 64, 1.0)
    assert len(steep.pick(others, lambda _call: 64, 2.0)) == 15, "larger batches are more efficient"


def test_paused_priorities_keep_their_shares():
    chosen, calls = scheduler(), [denoise(0), denoise(1), denoise(2)]
    rows: Counter[int] = Counter()
    chosen.pick(calls[1:], lambda _call: 64, 0.0)
    # The first job of the highest priority has a few rows before that.
    turns = [chosen.pick(calls, lambda _call: 64, 0.0)[0].task.priority for _ in range(BURST // 2 + 7)]
    assert turns == [0] * len(turns)
    for _ in range(570):
        for call in chosen.pick(calls, lambda _call: 64, 0.0):
            rows[call.task.priority] += call.rows
    assert rows == {0: 2 * 490, 1: 2 * 70, 2: 2 * 10}


def test_lower_priority_runs_no_more_rows_than_its_share_has_paid_for():
    chosen, high, others = scheduler(), denoise(0), [denoise() for _ in range(20)]
    batches = [chosen.pick([high, *others], lambda _call: 64, 0.0) for _ in range(50)]
    assert {len(batch) for batch in batches} == {1}


def test_priority_that_was_idle_has_little_credit():
    shares = PriorityShares()
    for _ in range(1000):
        shares.next({1: 2})
        shares.charge(1, 2)
    turns = []
    for _ in range(BURST // 2 + 8):
        turns.append(shares.next({0: 2, 1: 2})[0])
        shares.charge(turns[-1], 2)
    assert turns == [*[0] * (BURST // 2 + 7), 1]
    assert shares.next({1: 2, 2: 2})[0] == 1
    assert shares.next({0: 2, 1: 2, 2: 2})[0] == 0


def test_all_run_while_every_deadline_can_be_met_in_a_full_batch():
    calls = [denoise(deadline=100.0), *(denoise() for _ in range(9))]
    assert pick(calls) == calls


def test_pressed_job_gets_a_batch_that_is_fast_enough_for_it():
    # Ten calls in seven seconds: none may take longer than about 0.42 s, which is four rows.
    pressed, others = denoise(deadline=7.1 + FINISH_S), [denoise() for _ in range(9)]
    assert pick([*others, pressed]) == [pressed, others[0]]


def test_pressed_jobs_go_by_deadline():
    later, earlier = denoise(deadline=4.0), denoise(deadline=3.0)
    assert pick([later, *(denoise() for _ in range(9)), earlier]) == [earlier]


def test_job_that_cannot_meet_its_deadline_delays_no_other():
    late, pressed = denoise(deadline=1.0), denoise(deadline=3.0)
    assert pick([late, *(denoise() for _ in range(9)), pressed]) == [pressed]
    calls = [late, *(denoise() for _ in range(9))]
    assert pick(calls) == calls


def test_job_is_not_given_up_for_a_small_error_of_the_predicted_time():
    # Ten calls of 0.2 s.
    nearly, others = denoise(deadline=1.8 + FINISH_S), [denoise() for _ in range(9)]
    assert pick([*others, nearly]) == [nearly]


def test_batch_has_at_most_as_many_calls_as_slots():
    times = CallTimes()
    times.record("denoise", "denoise", 2, 0.1)
    for priorities in ([1] * 9, [0] * 9, [0, 1] * 5):
        calls = [denoise(priority, deadline=0.2) for priority in priorities]
        assert 1 <= len(Scheduler(times, slots=4).pick(calls, lambda _call: 64, 0.0)) <= 4


def test_other_calls_wait_for_pressed_jobs_for_a_limited_time():
    pressed, others = denoise(deadline=100.0, left=200), [denoise() for _ in range(9)]
    assert len(pick([*others, pressed], now=MAX_PAUSE_S - 1)) < 5
    assert pick([*others, pressed], now=MAX_PAUSE_S) == [*others, pressed]


def test_start_and_end_of_other_jobs_do_not_wait_for_pressed_jobs():
    decode = Call("decode", is_step=False, iteration=3)
    assert pick([denoise(deadline=3.0), decode]) == [decode]


class Server:
    """An engine in simulated time, with calls that take as long as those of the demo model on one core."""

    DECODE_S = 0.08

    def __init__(self, *, knows_deadlines: bool) -> None:
        self.knows_deadlines = knows_deadlines
        self.times = CallTimes()
        self.scheduler = Scheduler(self.times)
        self.now = 0.0
        self.parked: list[Call] = []

    @staticmethod
    def step_s(rows: int) -> float:
        return 0.026 + 0.018 * rows

    def run(self, arrivals: Sequence[tuple[float, int, float]], slots: int = 16) -> list[tuple[bool, float]]:
        """Return whether each job met its deadline, and its latency.

        Args:
            arrivals: (time, number of steps, deadline), by time.
        """
        coming, waiting, ended = list(arrivals), [], []
        jobs: dict[Task, tuple[float, float]] = {}
        while coming or waiting or self.parked:
            while coming and coming[0][0] <= self.now:
                waiting.append(coming.pop(0))
            if self.knows_deadlines:
                waiting.sort(key=lambda job: job[2])
            while waiting and len(self.parked) < self.room(waiting[0][2], slots):
                at, steps, deadline = waiting.pop(0)
                task = Task(1, deadline if self.knows_deadlines else None, steps)
                jobs[task] = at, deadline
                self.park(task)
            if not self.parked:
                self.now = coming[0][0]
            for task in self.run_batch():
                at, deadline = jobs.pop(task)
                ended.append((self.now <= deadline, self.now - at))
        return ended

    def room(self, deadline: float, slots: int) -> int:
        """Return how many jobs there can be with one that has this deadline."""
        is_earlier = any(deadline < call.task.deadline for call in self.parked if call.task.deadline)
        return 2 * slots if is_earlier else slots

    def park(self, task: Task) -> None:
        is_step = task.step_calls_left > 0
        self.parked.append(Call("denoise" if is_step else "decode", 2, 0, self.now, is_step, task=task))

    def run_batch(self) -> list[Task]:
        """Run the next calls. Return the tasks that have ended with them."""
        if not self.parked:
            return []
        batch = self.scheduler.pick(self.parked, lambda call: 64 if call.is_step else 2, self.now)
        rows = sum(call.rows for call in batch)
        seconds = self.step_s(rows) if batch[0].is_step else self.DECODE_S
        self.now += seconds
        self.times.record(batch[0].signature, batch[0].signature, rows, seconds)
        for call in batch:
            self.parked.remove(call)
            call.task.step_calls_left -= 1
            if call.is_step:
                self.park(call.task)
        return [call.task for call in batch if not call.is_step]


def poisson_arrivals(seed: int, load: float) -> list[tuple[float, int, float]]:
    """Jobs with a deadline of 3 or 20 times their time alone. A load of 1 is the throughput of full batches."""
    choose, at, arrivals = random.Random(seed), 0.0, []
    for _ in range(60):
        steps = choose.choice([8, 12, 16, 24])
        arrivals.append((at, steps, at + choose.choice([3, 20]) * (steps * Server.step_s(2) + Server.DECODE_S)))
        at += choose.expovariate(load / 0.65)
    return arrivals


@pytest.mark.parametrize("load", [1.0, 1.2])
def test_more_deadlines_are_met_than_first_in_first_out_at_nearly_the_same_latency(load: float):
    met, latency = {}, {}
    for knows_deadlines in (False, True):
        ended = [
            job
            for seed in range(4)
            for job in Server(knows_deadlines=knows_deadlines).run(poisson_arrivals(seed, load))
        ]
        met[knows_deadlines] = sum(is_met for is_met, _ in ended) / len(ended)
        latency[knows_deadlines] = sum(seconds for _, seconds in ended) / len(ended)
    assert met[True] >= met[False] + 0.3, met
    assert latency[True] <= 1.2 * latency[False], latency


def test_call_times_are_predicted_between_and_beyond_those_that_ran():
    times = CallTimes()
    assert times.predict("a", 2) is None
    times.record("denoise", "a", 4, 0.4)
    assert times.predict("a", 8) == pytest.approx(0.8)
    times.record("denoise", "a", 12, 0.6)
    assert times.predict("a", 8) == pytest.approx(0.5)
    assert times.predict("a", 20) == pytest.approx(0.8)
    assert times.of_stage("denoise") == pytest.approx(0.46)


def test_batch_limit_halves_and_grows_again():
    limits = BatchLimits(16)
    assert limits.record_out_of_memory("a", 16, 2) == 8
    assert limits.record_out_of_memory("a", 8, 2) == 4
    assert limits.limit_of("a") == 4
    assert limits.limit_of("b") == 16
    for _ in range(RETRY_AFTER_CALLS):
        limits.record_success("a", 2)
    assert limits.limit_of("a") == 4, "calls with few rows do not raise the limit"
    for _ in range(RETRY_AFTER_CALLS):
        limits.record_success("a", 4)
    assert limits.limit_of("a") == 8
    limits.record_out_of_memory("a", 8, 2)
    for _ in range(RETRY_AFTER_CALLS):
        limits.record_success("a", 4)
    assert limits.limit_of("a") == 4, "a trial that failed doubles the number of calls before the next"
    for _ in range(4 * RETRY_AFTER_CALLS):
        limits.record_success("a", limits.limit_of("a"))
    assert limits.limit_of("a") == 16
    assert limits.record_out_of_memory("a", 3, 3) == 3, "never below the rows of one task"


@pytest.mark.parametrize("module", ["batch_scheduler", "batch_limits", "call_times", "priority_shares", "timeline"])
def test_module_imports_without_torch(module):
    code = f"import sys, img2img.worker.engine.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
