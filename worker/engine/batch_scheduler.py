"""Choice of the parked calls that run next. Plain Python, so that unit tests need no torch."""

import math
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import Protocol, TypeVar

from .call_times import CallTimes
from .priority_shares import HIGHEST, PriorityShares

# A call waits at most this long for jobs with a deadline.
MAX_PAUSE_S = 10.0
# A job has to be in a smaller batch if it would need this part of its time in a full one.
FULL_BATCH = 0.8
# The calls of a smaller batch have this part of the job's time: other calls run between them, and times vary.
SMALL_BATCH = 0.6
# A job has no deadline any more once it would be late even if its calls took this part of their predicted time. These
# times may come from a moment in which the machine was slow.
GIVEN_UP = 0.85
# Time from the last call of a job to its end, for the image file and the records.
FINISH_S = 0.1
# After a call of the highest priority, batches of others are kept short for this time, because the next one may come.
SHORT_BATCHES_S = 600.0
# Calls of lower priorities join a batch that takes at most this many times as long with them.
JOINING = 1.1


class PendingTask(Protocol):
    """The properties of a suspended task that scheduling depends on."""

    @property
    def priority(self) -> int:
        """0 is the highest."""

    @property
    def deadline(self) -> float | None:
        """Time by which the job should have ended, by `time.perf_counter`."""

    @property
    def step_calls_left(self) -> float:
        """Calls of the kind that repeats with each step that are left, with the one that waits. An estimate."""


class PendingCall(Protocol):
    """The properties of a parked call that scheduling depends on."""

    @property
    def signature(self) -> Hashable:
        """Calls of equal signature can run as one."""

    @property
    def rows(self) -> int:
        """Rows that the call adds to a batch."""

    @property
    def iteration(self) -> int:
        """The engine's iteration in which the call was parked."""

    @property
    def since(self) -> float:
        """When it was parked, by `time.perf_counter`."""

    @property
    def is_step(self) -> bool:
        """Whether calls like this one repeat with each step of a job."""

    @property
    def runs_alone(self) -> bool:
        """Whether a batch of its signature has one call only."""

    @property
    def task(self) -> PendingTask:
        """The task that waits for it."""


C = TypeVar("C", bound=PendingCall)
RowLimit = Callable[[C], int]


class Scheduler:
    """Chooses the calls that run next.

    1. Priorities: a call of the highest one pauses all others, whose tasks keep nothing but their latents. A lower one
       gets the share that the queue gives it, so that none starves. Its calls also join a batch that they hardly delay.
       A worker that gets jobs of the highest priority keeps batches of others as short as is efficient.
    2. Deadlines, among equals: while all jobs would end in time in a full batch, all run. A job that would not is
       pressed: the batch is made small enough for the pressed job with the earliest deadline. What cannot end in time
       even alone has no deadline any more, so that it delays no other job in vain.
    3. The oldest call, see `schedule`. It waits for pressed jobs for MAX_PAUSE_S at most.

    Pressed jobs are in order of their deadlines, rather than of their slack: by slack two jobs would take turns, and
    both be late.

    Args:
        times: predicts how long calls take.
        slots: the most calls of a batch. None: no limit.
    """

    def __init__(self, times: CallTimes, slots: int | None = None) -> None:
        self._times = times
        self._slots = slots
        self._shares = PriorityShares()
        self._short_until = 0.0

    def pick(self, calls: Sequence[C], row_limit: RowLimit[C], now: float) -> list[C]:
        """Return the calls to run as one batch: at least one, all of the same signature.

        Args:
            calls: all parked calls, oldest first.
            row_limit: the largest number of rows of calls like this one.
            now: the time, by `time.perf_counter`.
        """
        first_of: dict[int, C] = {}
        for call in calls:
            first_of.setdefault(call.task.priority, call)
        if HIGHEST in first_of:
            self._short_until = now + SHORT_BATCHES_S
        elif now < self._short_until:
            row_limit = self._short(calls, row_limit)
        if len(first_of) == 1:
            return self._pick_equals(calls, row_limit, now)[: self._slots]
        priority, paid = self._shares.next({p: call.rows for p, call in first_of.items()})
        equals = [call for call in calls if call.task.priority == priority]
        limit = row_limit if math.isinf(paid) else (lambda call: min(row_limit(call), max(int(paid), call.rows)))
        batch = self._pick_equals(equals, limit, now)
        self._join(batch, [call for call in calls if call.task.priority > priority], row_limit(batch[0]))
        batch = batch[: self._slots]
        for call in batch:
            self._shares.charge(call.task.priority, call.rows)
        return batch

    def _short(self, calls: Sequence[C], row_limit: RowLimit[C]) -> RowLimit[C]:
        rows = _rows_waiting(calls)

        def limit(call: C) -> int:
            most = min(row_limit(call), rows[call.signature])
            return self._times.efficient_rows(call.signature, call.rows, max(most, call.rows))

        return limit

    def _join(self, batch: list[C], others: Sequence[C], limit: int) -> None:
        """Add calls of lower priorities to a batch, as long as they hardly delay it."""
        signature, rows = batch[0].signature, sum(call.rows for call in batch)
        alone_s = self._times.predict(signature, rows)
        if alone_s is None:
            return
        for call in sorted(others, key=lambda call: call.task.priority):
            if call.signature != signature:
                continue
            together_s = self._times.predict(signature, rows + call.rows)
            if rows + call.rows > limit or together_s is None or together_s > JOINING * alone_s:
                return
            batch.append(call)
            rows += call.rows

    def _pick_equals(self, calls: Sequence[C], row_limit: RowLimit[C], now: float) -> list[C]:
        is_pressing = any(call.task.deadline is not None for call in calls)
        if is_pressing and now - calls[0].since < MAX_PAUSE_S:
            # Calls at the start and the end of a job are few, and free its slot.
            others = [call for call in calls if not call.is_step]
            if others:
                return schedule(others, row_limit)
            pressed = self._pick_pressed(calls, row_limit, now)
            if pressed:
                return pressed
        return schedule(calls, row_limit)

    def _pick_pressed(self, calls: Sequence[C], row_limit: RowLimit[C], now: float) -> list[C]:
        """Return the batch of the pressed job with the earliest deadline; empty if no job is pressed."""
        rows = _rows_waiting(calls)
        end_s = self._times.of_stage("decode") + FINISH_S
        head, head_s = None, 0.0  # and the time that its call may take
        late = set()
        for call in calls:
            if call.task.deadline is None:
                continue
            left, left_s = max(1.0, call.task.step_calls_left), call.task.deadline - now - end_s
            alone_s = self._times.predict(call.signature, call.rows)
            full_s = self._times.predict(call.signature, min(rows[call.signature], row_limit(call)))
            if alone_s is None or full_s is None:
                continue
            if left_s < GIVEN_UP * left * alone_s:
                late.add(id(call))
            elif full_s * left > FULL_BATCH * left_s and (head is None or _deadline(call) < _deadline(head)):
                head, head_s = call, SMALL_BATCH * left_s / left
        if head is None:
            return []
        group = [call for call in calls if call.signature == head.signature and call is not head]
        group.sort(key=lambda call: math.inf if id(call) in late else _deadline(call))
        return self._fill(head, group, row_limit(head), head_s)

    def _fill(self, head: C, others: Sequence[C], limit: int, limit_s: float) -> list[C]:
        """Return a call and others of its signature that fit with it into a number of rows and seconds."""
        batch, rows = [head], head.rows
        for call in others:
            together_s = self._times.predict(head.signature, rows + call.rows)
            if rows + call.rows > limit or together_s is None or together_s > limit_s:
                break
            batch.append(call)
            rows += call.rows
        return batch


def _rows_waiting(calls: Sequence[PendingCall]) -> Counter[Hashable]:
    rows: Counter[Hashable] = Counter()
    for call in calls:
        rows[call.signature] += call.rows
    return rows


def _deadline(call: PendingCall) -> float:
    return math.inf if call.task.deadline is None else call.task.deadline


def schedule(calls: Sequence[C], row_limit: RowLimit[C]) -> list[C]:
    """Return the calls to run as one batch: oldest first, up to their row limit, at least one call.

    The group that contains the oldest call goes first, so that no signature starves. Among groups of equal age the
    smallest goes first: a new task catches up with the larger batch, and a finishing task frees its slot. Of calls that
    run alone only one counts: those of tasks that start together all run before the first of these tasks goes on.

    Args:
        calls: all parked calls, oldest first.
        row_limit: the largest number of rows of calls like this one.
    """
    groups: dict[Hashable, list[C]] = {}
    for call in calls:
        groups.setdefault(call.signature, []).append(call)
    group = min(groups.values(), key=lambda g: (g[0].iteration, _rows_of_batch(g)))
    limit = row_limit(group[0])
    taken, rows = [group[0]], group[0].rows
    for call in group[1:]:
        if rows + call.rows > limit:
            break
        taken.append(call)
        rows += call.rows
    return taken


def _rows_of_batch(group: Sequence[PendingCall]) -> int:
    return group[0].rows if group[0].runs_alone else sum(call.rows for call in group)
