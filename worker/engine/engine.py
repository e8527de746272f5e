"""The engine loop: admit tasks, schedule a batch, run it, resume its tasks.

Each task is a plain function that runs in a greenlet and calls shared modules through gates. A gate does not compute:
it suspends the greenlet with a GateCall and switches to the loop. The loop merges suspended calls of equal signature,
runs the module once, and resumes each task with its rows of the output. Tasks at different steps share every forward
pass, although the pipeline code is written for one image.
"""

import logging
import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Hashable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from .batch_limits import BatchLimits
from .batch_scheduler import Scheduler, schedule
from .batching import GateCall, collate, split
from .call_times import CallTimes
from .device_clock import DeviceClock, DeviceMoment
from .errors import is_device_lost, is_out_of_memory, without_tensors
from .exact_rows import exact_rows
from .gate import Gate, Parked, TaskGreenlet
from .merged_arguments import MergedArguments
from .preemption import BrokenOff, Preemption
from .priority_shares import HIGHEST
from .row_buckets import largest_bucket
from .row_memory import MemoryMeter, RowMemory
from .row_probe import Independence, probe_rows
from .task import EngineTask, TaskFunction, TaskStopped, Urgency

log = logging.getLogger(__name__)

RUN_AHEAD = 2  # calls that the device may have in its queue


@dataclass(frozen=True)
class _Launch:
    """A call whose function has returned, although the device may not have ended it."""

    stage: str
    signature: Hashable
    rows: int
    started_at: float
    end: DeviceMoment


class Engine:
    """Runs tasks together. One thread calls `run`; the other methods are safe from any thread.

    Tasks of the highest priority and those with a deadline are admitted also when all slots are taken: there can be as
    many paused tasks as slots. A task of the highest priority pauses those of others at their next gates, and breaks
    off a call of modules with break points.

    Args:
        slots: tasks in flight at once, besides those that are paused.
        max_rows: rows of a merged call; fewer if more would not fit into memory.
        meter: measures the memory of the calls of tasks with `measures_memory`. None: the limit is only lowered, per
            signature, when memory runs out.
        clock: times the calls of a device that computes while the engine goes on, and bounds how far it goes on. None:
            a call has ended when its function returns.
    """

    def __init__(
        self,
        *,
        slots: int,
        max_rows: int = 64,
        meter: MemoryMeter | None = None,
        clock: DeviceClock | None = None,
    ) -> None:
        self.slots = slots
        self.max_rows = max_rows
        self.iteration = 0
        self.rows_run: Counter[str] = Counter()  # by gate name
        self.rows_padded: Counter[str] = Counter()  # by gate name
        self.calls_run: Counter[str] = Counter()  # by gate name
        self.batches_run: Counter[tuple[str, int]] = Counter()  # calls, by gate name and rows
        self._limits = BatchLimits(max_rows)
        self._memory = RowMemory(meter) if meter else None
        self._merged = MergedArguments()
        self._clock = clock
        self._launched: deque[_Launch] = deque()  # calls that the device may not have ended
        self._device_free_at = 0.0
        self._times = CallTimes()
        self._scheduler = Scheduler(self._times, slots)
        self._preemption = Preemption()
        self._pending: list[EngineTask] = []
        self._short: deque[EngineTask] = deque()
        self._parked: list[Parked] = []  # oldest call first
        self._changed = threading.Condition()
        self._shutting_down = False
        self._stepping = False

    @property
    def free_slots(self) -> int:
        """Number of tasks that can be admitted now. Negative when more are pending than fit."""
        return self.slots - len(self._pending) - len(self._parked)

    @property
    def is_busy(self) -> bool:
        """Whether there is work. A busy engine whose `iteration` does not change is still in that iteration."""
        return self._stepping or bool(self._pending or self._short or self._parked)

    def submit(self, tasks: Sequence[EngineTask]) -> None:
        """Queue tasks. Those for which there are slots are admitted in the same iteration."""
        with self._changed:
            self._pending.extend(tasks)
            self._announce(tasks)

    def submit_short(self, tasks: Sequence[EngineTask]) -> None:
        """Queue tasks of a single call. They are admitted in the next iteration, also if no slot is free."""
        with self._changed:
            self._short.extend(tasks)
            self._announce(tasks)

    def _announce(self, tasks: Sequence[EngineTask]) -> None:
        if any(task.priority == HIGHEST for task in tasks):
            self._preemption.request()
        self._changed.notify()

    def run_task(
        self,
        function: TaskFunction,
        *,
        urgency: Urgency = Urgency(),  # noqa: B008  # frozen
        is_short: bool = False,
        measures_memory: bool = False,
    ) -> EngineTask:
        """Submit one task and wait for it. Not for the engine's thread. Returns the task, with its result or error."""
        ended = threading.Event()
        task = EngineTask(function, lambda _task: ended.set(), urgency=urgency, measures_memory=measures_memory)
        (self.submit_short if is_short else self.submit)([task])
        ended.wait()
        return task

    def shut_down(self) -> None:
        """Let `run` return once every task has ended."""
        with self._changed:
            self._shutting_down = True
            self._changed.notify()

    @torch.inference_mode()
    def run(self) -> None:
        """Run until shut down.

        Inference mode is entered once here, because greenlets share the grad mode of their thread.

        Raises:
            Exception: the device's error when the device is lost. Tasks in flight then never end.
        """
        while self._wait_for_work():
            self.step()

    def step(self) -> None:
        """Run one iteration: at most one forward pass of one module."""
        self._stepping = True
        self.iteration += 1
        self._wait_for_device()
        self._admit()
        self._drop_stopped()
        if self._parked:
            self._run(self._scheduler.pick(self._parked, self._limit_of, time.perf_counter()))
        self._stepping = False

    def _wait_for_device(self) -> None:
        """Wait for the call before the last one. A task that is stopped leaves the device within two calls."""
        while len(self._launched) >= RUN_AHEAD:
            launch = self._launched.popleft()
            launch.end.wait()
            ended_at = launch.end.at()
            seconds = ended_at - max(launch.started_at, self._device_free_at)
            self._device_free_at = ended_at
            self._times.record(launch.stage, launch.signature, launch.rows, seconds)

    def _end_of_call(self, stage: str, signature: Hashable, rows: int, started_at: float) -> float | DeviceMoment:
        """Return the end of the call whose function has returned, and count its time once it is known."""
        if self._clock is None:
            ended_at = time.perf_counter()
            self._times.record(stage, signature, rows, ended_at - started_at)
            return ended_at
        end = self._clock.now()
        self._launched.append(_Launch(stage, signature, rows, started_at, end))
        return end

    def _wait_for_work(self) -> bool:
        with self._changed:
            while not (self._pending or self._short or self._parked):
                self._merged.clear()
                if self._shutting_down:
                    return False
                self._changed.wait()
        return True

    def _admit(self) -> None:
        with self._changed:
            admitted = [*self._short, *self._admissible()]
            self._short.clear()
            self._preemption.end_request()
        for task in admitted:
            task.timeline.add("wait", task.submitted_at, time.perf_counter())
            if task.is_stopping:
                task.end(None, TaskStopped())
                continue
            greenlet = TaskGreenlet(task)
            self._resume(greenlet, greenlet.switch)

    def _admissible(self) -> list[EngineTask]:
        """Take the pending tasks for which there is room: by priority, then by deadline, then in order."""
        self._pending.sort(key=lambda task: (task.priority, math.inf if task.deadline is None else task.deadline))
        count, parked = 0, len(self._parked)
        for task in self._pending:
            is_urgent = task.priority == HIGHEST or task.deadline is not None
            if parked + count >= (2 * self.slots if is_urgent else self.slots):
                break
            count += 1
        admitted = self._pending[:count]
        del self._pending[:count]
        return admitted

    def _drop_stopped(self) -> None:
        for parked in [parked for parked in self._parked if parked.task.is_stopping]:
            self._parked.remove(parked)
            self._resume(parked.greenlet, parked.greenlet.throw, TaskStopped())

    def _limit_of(self, parked: Parked) -> int:
        """Return the largest number of rows of calls like this one."""
        limit = self._limits.limit_of(parked.signature)
        fitting = self._memory.limit_of(parked.gate, parked.call) if self._memory else None
        limit = limit if fitting is None else min(limit, max(fitting, parked.rows))
        return max(largest_bucket(limit), parked.rows) if parked.gate.has_buckets else limit

    def _run(self, batch: Sequence[Parked]) -> None:
        gate = batch[0].gate
        is_merged = len(batch) > 1 or batch[0].task.measures_memory
        if is_merged and gate.merges and gate.independence is None and not gate.has_memory:
            self._probe(gate, batch[0].call)
            batch = schedule(batch, self._limit_of)
        if batch[0].runs_alone:
            # The others follow in the next iterations, so that a call of higher priority does not wait for all of them.
            # All count as run in this iteration, so that the next calls of their tasks are as old as each other.
            for parked in batch:
                parked.turn = parked.turn or self.iteration
                parked.iteration = min(parked.iteration, parked.turn - 1)
            batch = batch[:1]
        # The scheduler groups calls of a gate with memory only if they are equal: one call serves all of them.
        calls = [parked.call for parked in (batch[:1] if gate.has_memory else batch)]
        rows = [call.rows for call in calls]
        started = time.perf_counter()
        padding = gate.padding_of(sum(rows))
        is_exact = len(calls) > 1 and calls[0].is_half_on_cpu
        try:
            args, kwargs = collate(calls, padding, self._merged)
            with exact_rows(rows) if is_exact else nullcontext():
                if self._memory and len(calls) == 1 and batch[0].task.measures_memory:
                    output = self._memory.measure(gate, calls[0], lambda: gate.run(*args, **kwargs))
                elif any(parked.task.priority == HIGHEST for parked in self._parked):
                    output = gate.run(*args, **kwargs)
                else:
                    with self._preemption.breakable(self._times.predict(batch[0].signature, sum(rows))):
                        output = gate.run(*args, **kwargs)
            outputs = split(output, [*rows, padding] if padding else rows)[: len(calls)]
        except BrokenOff:
            return
        except Exception as error:
            if is_device_lost(error):
                raise
            self._recover(batch, error)
            return
        self.calls_run[gate.name] += 1
        self.rows_run[gate.name] += sum(rows)
        self.rows_padded[gate.name] += padding
        self.batches_run[gate.name, sum(rows)] += 1
        ended = self._end_of_call(gate.name, batch[0].signature, sum(rows), started)
        self._limits.record_success(calls[0].signature, sum(rows))
        if gate.has_memory:
            outputs *= len(batch)
        for parked, output in zip(batch, outputs, strict=True):
            self._unpark(parked, ended)
            self._resume(parked.greenlet, parked.greenlet.switch, output, iteration=parked.turn)

    def _probe(self, gate: Gate, call: GateCall) -> None:
        """Find out by its first call whether calls of a gate can be merged."""
        try:
            gate.independence = probe_rows(gate.run, call)
        except Exception as error:
            if is_device_lost(error):
                raise
            if is_out_of_memory(error):
                # Nothing is known about the rows. The calls run one by one until the limit is raised.
                self._limits.record_out_of_memory(call.signature, call.rows, call.rows)
                log.warning("out of memory with two rows of %s; its calls run one by one for now", gate.name)
                return
            # The call itself fails as well, or it needs all its rows.
            gate.independence = Independence.NONE
        gate.merges = gate.independence is not Independence.NONE
        if not gate.merges:
            log.warning("the rows of %s depend on each other; its calls run one by one", gate.name)

    def _recover(self, batch: Sequence[Parked], error: Exception) -> None:
        """Handle a failed call.

        The task of a lone call gets the error. A merged call that ran out of memory is repeated with half the rows, by
        the next iterations. Any other merged call is repeated one task at a time, so that only the cause fails.
        """
        first, gate = batch[0], batch[0].gate
        if len(batch) == 1:
            self._unpark(first, time.perf_counter())
            self._resume(first.greenlet, first.greenlet.throw, type(error), error, without_tensors(error).__traceback__)
        elif is_out_of_memory(error) and not gate.has_memory:
            self._merged.clear()
            rows = sum(parked.rows for parked in batch)
            limit = self._limits.record_out_of_memory(first.signature, rows, first.rows)
            log.warning("out of memory with %d rows of %s; the new limit is %d rows", rows, gate.name, limit)
        else:
            # Log the message only: the error refers to its frames, and those to the tensors of all tasks.
            log.warning(
                "a merged call of %s failed (%s); running its %d tasks one by one", gate.name, str(error), len(batch)
            )
            for parked in batch:
                self._run([parked])

    def _unpark(self, parked: Parked, ended: float | DeviceMoment) -> None:
        self._parked.remove(parked)
        if parked.is_step:
            parked.task.step_calls += 1
        parked.task.timeline.add(parked.gate.name, parked.since, ended)

    def _resume(self, greenlet: TaskGreenlet, resume: Callable[..., Any], *value: Any, iteration: int = 0) -> None:
        """Run a task until its next gate, where it is parked as of `iteration` or else of now, or to its end."""
        try:
            outcome = resume(*value)
        except (Exception, TaskStopped) as error:
            # A kernel reports its failure when its output is read: in a gate, or here in the task's code.
            if is_device_lost(error):
                raise
            greenlet.task.end(None, without_tensors(error))
        else:
            if greenlet.dead:
                greenlet.task.end(outcome, None)
            else:
                outcome.iteration = iteration or self.iteration
                self._parked.append(outcome)
