"""The engine loop: admit, pick, run, resume.

A job is a plain function that runs in its own greenlet and calls shared modules. Their work is done behind gates: a
gate does not compute, it parks its greenlet with a Call and switches to the loop. The loop merges the parked calls that
fit together, runs the module once, and resumes each job with its part. So jobs at different steps share every forward
pass, and each of them runs code that knows nothing of the others.
"""

import logging
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Hashable, Sequence
from hashlib import blake2b
from typing import Any

import torch
from cachetools import LRUCache
from greenlet import getcurrent, greenlet
from torch.utils import _pytree as pytree

from .batch_limits import BatchLimits
from .batch_scheduler import schedule
from .batching import GateCall, collate, content, make_call, split
from .errors import is_device_lost, is_out_of_memory, without_tensors

log = logging.getLogger(__name__)

TaskFunction = Callable[["EngineTask"], Any]


class TaskStopped(BaseException):
    """Thrown into a job's greenlet to end it. Not an Exception, so that no library code takes it for one of its own."""


class EngineTask:
    """One job in the engine: what it does, how far it is, how it ended, and the way to stop it."""

    def __init__(self, work: TaskFunction, on_done: Callable[["EngineTask"], None]) -> None:
        """on_done: called with this ticket on the engine's thread, once its result or error is set; must be quick."""
        self.work = work
        self.on_done = on_done
        self.step = 0  # denoising steps done, kept by the work itself
        self.latents: Any = None  # as they stood after that step; kept by the work itself, for whoever wants to look
        self.seconds: defaultdict[str, float] = defaultdict(float)  # by gate name, and "wait" for admission
        self.spans: dict[str, tuple[float, float]] = {}  # the same: from the first to the last of it, by perf_counter
        self.result: Any = None
        self.error: BaseException | None = None
        self.submitted_at = time.perf_counter()
        self._stop = threading.Event()

    def stop(self) -> None:
        """Asks for this job to end. Its rows are free at the engine's next tick. Safe from any thread."""
        self._stop.set()

    @property
    def is_stopping(self) -> bool:
        return self._stop.is_set()

    def end(self, result: Any, error: BaseException | None) -> None:
        """On the engine's thread. Lets go of all but the outcome: whoever hands in a ticket often has a part in what it
        calls, and such circles would keep pictures, on the device too, until the garbage collector comes round."""
        on_done = self.on_done
        del self.work, self.on_done
        self.latents = None
        self.result, self.error = result, error
        on_done(self)


class _TaskGreenlet(greenlet):
    """The greenlet of an admitted job, and the call it is parked with."""

    def __init__(self, ticket: EngineTask) -> None:
        super().__init__()
        self.ticket = ticket
        self.gate: Gate | None = None
        self.call: GateCall | None = None
        self.parked_at = 0.0

    def run(self) -> Any:
        return self.ticket.work(self.ticket)


class Gate:
    """Stands in for a function of a shared module: parks the calling job until the engine has run its call."""

    def __init__(
        self,
        name: str,
        run: Callable[..., Any],
        *,
        remember_bytes: int = 0,
        ignore: Sequence[str] = (),
        shared: Sequence[str] = (),
    ) -> None:
        """name: the stage whose time this is. run: the real function.

        remember_bytes: keep outputs of this many bytes in all, to answer equal calls; for what depends on its
            arguments alone, like an encoder of token ids. Calls of such a gate are never merged: the last bits of a
            merged output depend on the number of rows, and a remembered output must be what the call gives alone.
        ignore: keyword arguments that do not reach `run`, such as a generator that it would not use.
        shared: keyword arguments without rows of their own, such as position ids; never written to.
        """
        self.name = name
        self.run = run
        self._ignore = frozenset(ignore)
        self._shared = frozenset(shared)
        self._memory: LRUCache[Hashable, Any] | None = (
            LRUCache(remember_bytes, getsizeof=_output_bytes) if remember_bytes else None
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        kwargs = {name: value for name, value in kwargs.items() if name not in self._ignore}
        current = getcurrent()
        if not isinstance(current, _TaskGreenlet):
            return self.run(*args, **kwargs)
        call = make_call(id(self), args, kwargs, self._shared)
        if self._memory is None:
            return self._park(current, call)
        key = (call.signature, *(_digest(leaf) for leaf in call.leaves if isinstance(leaf, torch.Tensor)))
        output = self._memory.get(key)
        if output is None:
            call.signature = key  # group this call with equal calls only
            output = pytree.tree_map_only(torch.Tensor, torch.clone, self._park(current, call))
            if _output_bytes(output) <= self._memory.maxsize:
                self._memory[key] = output
        return output

    @property
    def has_memory(self) -> bool:
        return self._memory is not None

    def _park(self, current: _TaskGreenlet, call: GateCall) -> Any:
        current.gate, current.call = self, call
        parent = current.parent
        assert parent is not None
        return parent.switch()


def _digest(tensor: torch.Tensor) -> bytes:
    """Stands for the content of a tensor, in a key that is to be kept: a picture's pixels would be a large one."""
    return blake2b(content(tensor)).digest()


def _output_bytes(output: Any) -> int:
    return sum(leaf.nbytes for leaf in pytree.tree_leaves(output) if isinstance(leaf, torch.Tensor))


class Engine:
    """Runs jobs together. One thread calls `run`; the other methods are safe from any thread."""

    def __init__(self, *, slots: int, max_rows: int = 64) -> None:
        """slots: jobs in flight at once. max_rows: rows of a merged call, fewer where memory runs out."""
        self.slots = slots
        self.tick = 0  # steps begun
        self.rows_run: Counter[str] = Counter()  # by gate name
        self.calls_run: Counter[str] = Counter()
        self.batches_run: Counter[tuple[str, int]] = Counter()  # calls, by gate name and rows
        self.rows_padded: Counter[str] = Counter()  # run beside those, for nobody; none as yet: batches are not padded
        self._row_limits = BatchLimits(max_rows)
        self._pending: deque[EngineTask] = deque()
        self._parked: list[_TaskGreenlet] = []  # oldest call first
        self._changed = threading.Condition()
        self._shutting_down = False
        self._stepping = False

    @property
    def room(self) -> int:
        """How many more jobs can be in flight now; negative when more wait than fit."""
        return self.slots - len(self._pending) - len(self._parked)

    @property
    def is_busy(self) -> bool:
        """Whether there is work: if so, and `tick` stays what it is, a step is taking its time."""
        return self._stepping or bool(self._pending or self._parked)

    def submit(self, tickets: Sequence[EngineTask]) -> None:
        """Hands in jobs, which are admitted together as far as there is room."""
        with self._changed:
            self._pending.extend(tickets)
            self._changed.notify()

    def shut_down(self) -> None:
        """Makes `run` return once every job has ended."""
        with self._changed:
            self._shutting_down = True
            self._changed.notify()

    @torch.inference_mode()
    def run(self) -> None:
        """The loop. Greenlets share the thread's grad mode, so inference mode is entered here, once for all of them.

        Raises what the device says when it is lost; the jobs in flight then never end, and are to be run elsewhere.
        """
        while self._wait_for_work():
            self.step()

    def step(self) -> None:
        """One tick: at most one forward pass of one module."""
        self._stepping = True
        self.tick += 1
        self._admit()
        self._drop_stopping()
        if self._parked:
            self._run(self._pick())
        self._stepping = False

    def _wait_for_work(self) -> bool:
        with self._changed:
            while not self._pending and not self._parked:
                if self._shutting_down:
                    return False
                self._changed.wait()
        return True

    def _admit(self) -> None:
        with self._changed:
            admitted = [self._pending.popleft() for _ in range(min(len(self._pending), self.slots - len(self._parked)))]
        for ticket in admitted:
            ticket.spans["wait"] = (ticket.submitted_at, time.perf_counter())
            ticket.seconds["wait"] = ticket.spans["wait"][1] - ticket.submitted_at
            if ticket.is_stopping:  # before it began
                ticket.end(None, TaskStopped())
                continue
            job = _TaskGreenlet(ticket)
            self._resume(job, job.switch)

    def _drop_stopping(self) -> None:
        for job in [job for job in self._parked if job.ticket.is_stopping]:
            self._parked.remove(job)
            self._resume(job, job.throw, TaskStopped())

    def _pick(self) -> list[_TaskGreenlet]:
        calls = [job.call for job in self._parked if job.call is not None]
        chosen = set(map(id, schedule(calls, self._row_limits.of)))
        return [job for job in self._parked if id(job.call) in chosen]

    def _run(self, jobs: list[_TaskGreenlet]) -> None:
        gate = jobs[0].gate
        calls = [job.call for job in jobs if job.call is not None]
        assert gate is not None
        if gate.has_memory:
            del calls[1:]  # the calls are equal: run the first, and give its output to every job
        rows = [call.rows for call in calls]
        try:
            args, kwargs = collate(calls)
            outputs = split(gate.run(*args, **kwargs), rows)
        except Exception as error:
            if is_device_lost(error):
                raise
            self._run_apart(gate, jobs, error)
            return
        self.calls_run[gate.name] += 1
        self.rows_run[gate.name] += sum(rows)
        self.batches_run[gate.name, sum(rows)] += 1
        self._row_limits.passed(calls[0].signature, sum(rows))
        if gate.has_memory:
            outputs *= len(jobs)
        for job, output in zip(jobs, outputs, strict=True):
            self._unpark(job)
            self._resume(job, job.switch, output)

    def _run_apart(self, gate: Gate, jobs: list[_TaskGreenlet], error: Exception) -> None:
        """Handles a failed call: halves the rows of a merged call that ran out of memory; else runs each job alone."""
        if len(jobs) == 1:
            self._unpark(jobs[0])
            self._resume(jobs[0], jobs[0].throw, type(error), error, without_tensors(error).__traceback__)
        elif is_out_of_memory(error) and not gate.has_memory:
            call = jobs[0].call
            assert call is not None
            rows = sum(job.call.rows for job in jobs if job.call is not None)
            limit = self._row_limits.ran_out(call.signature, rows, call.rows)
            log.warning("out of memory with %d rows of %s; at most %d from now on", rows, gate.name, limit)
        else:
            # Its words alone: who keeps the error keeps its frames, and the jobs in them.
            log.warning(
                "a call of %s for several jobs failed (%s); running its %d jobs apart", gate.name, str(error), len(jobs)
            )
            for job in jobs:
                self._run([job])

    def _unpark(self, job: _TaskGreenlet) -> None:
        assert job.gate is not None
        self._parked.remove(job)
        ticket, name, now = job.ticket, job.gate.name, time.perf_counter()
        ticket.seconds[name] += now - job.parked_at
        ticket.spans[name] = (ticket.spans.get(name, (job.parked_at,))[0], now)

    def _resume(self, job: _TaskGreenlet, resume: Callable[..., Any], *value: Any) -> None:
        """Runs a job to its next gate, where it is parked, or to its end."""
        job.gate = job.call = None
        try:
            result = resume(*value)
        except (Exception, TaskStopped) as error:
            if is_device_lost(error):  # work on the device fails where its outcome is looked at, here or in a gate
                raise
            job.ticket.end(None, without_tensors(error))
        else:
            if job.dead:
                job.ticket.end(result, None)
            else:
                assert job.call is not None
                job.call.tick = self.tick
                job.parked_at = time.perf_counter()
                self._parked.append(job)
