"""Gates: replacements for module functions that suspend the calling task until the engine has run a batch."""

import itertools
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from greenlet import getcurrent, greenlet
from torch.utils import _pytree as pytree

from .batching import GateCall, collate, first_row, half_of, make_call, with_rows
from .content import content_digest
from .output_memory import OutputMemory
from .row_buckets import bucket_of
from .row_probe import Independence
from .task import NO_ORIGIN, EngineTask

# Names of the gates that each denoising step calls. Their calls have rows with and without the prompt.
GUIDED = ("denoise", "control")


class TaskGreenlet(greenlet):
    """The greenlet of an admitted task. Create it in the greenlet of the engine's loop."""

    def __init__(self, task: EngineTask) -> None:
        super().__init__()
        self.task = task
        self._loop = getcurrent()

    def run(self) -> Any:
        return self.task.function(self.task)

    def park(self, gate: "Gate", call: GateCall) -> Any:
        """Suspend the task and return the output of `call` once the engine has run it."""
        return self._loop.switch(Parked(self, gate, call))


@dataclass(eq=False, slots=True)
class Parked:
    """A suspended task and the call that it waits for."""

    greenlet: TaskGreenlet
    gate: "Gate"
    call: GateCall
    since: float = field(default_factory=time.perf_counter)
    iteration: int = 0  # the engine's iteration in which the task was suspended
    turn: int = 0  # the iteration in which the first call of its batch ran, if they run one by one

    @property
    def task(self) -> EngineTask:
        return self.greenlet.task

    @property
    def signature(self) -> Hashable:
        # Calls that run alone are in another group than those that are merged.
        return (self.call.signature, "alone") if self.runs_alone else self.call.signature

    @property
    def runs_alone(self) -> bool:
        """Whether the call must not be merged."""
        return not self.gate.merges or self.task.runs_alone or self.gate.has_exact_single_rows(self.call)

    @property
    def rows(self) -> int:
        return self.call.rows

    @property
    def is_step(self) -> bool:
        """Whether calls like this one repeat with each step of a job."""
        return self.gate.name in GUIDED


_numbers = itertools.count()


class Gate:
    """Replaces a function of a shared module: suspends the calling task until the engine has run its call.

    Args:
        name: stage under which the time of the calls is counted.
        run: the original function.
        remember_bytes: size of a cache of outputs, for functions whose output depends on their arguments alone, such
            as text encoders. Calls of such a gate are never merged: the last bits of a merged output depend on the
            number of rows, and a cached output must be the output of the call alone.
        reads_images: whether the arguments are made of the images of a job. Outputs are then remembered for their owner
            only, and as long as the images exist; and callers get copies. Calls with `pixel_values` are such, too.
        waits: whether to compare arguments that are known on their device only, which waits for it. Otherwise such a
            call is not remembered.
        ignore: keyword arguments to drop, such as a generator that `run` does not use.
        shared: keyword arguments without a row dimension, such as position ids. They must never be written to.
        merges: whether calls of several tasks may run as one.
    """

    def __init__(
        self,
        name: str,
        run: Callable[..., Any],
        *,
        remember_bytes: int = 0,
        reads_images: bool = False,
        waits: bool = True,
        ignore: Sequence[str] = (),
        shared: Sequence[str] = (),
        merges: bool = True,
    ) -> None:
        self.name = name
        self.run = run
        # Not its `id`, which another gate may get once the model of this one was unloaded.
        self._number = next(_numbers)
        self._ignore = frozenset(ignore)
        self._shared = frozenset(shared)
        # Set to False by the engine if the rows of its calls depend on each other.
        self.merges = merges
        # How independent rows are; None until the engine has found out by the first call.
        self.independence: Independence | None = None
        # Whether its calls have fixed numbers of rows, see `row_buckets`. Set by `use_buckets`.
        self.has_buckets = False
        # Gates of the same module whose calls are not merged with those of this one, by their change.
        self.variants: dict[Hashable, Gate] = {}
        self._example: GateCall | None = None
        self._memory = OutputMemory(remember_bytes) if remember_bytes else None
        self._reads_images = reads_images
        self._waits = waits

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._ignore:
            kwargs = {name: value for name, value in kwargs.items() if name not in self._ignore}
        current = getcurrent()
        if not isinstance(current, TaskGreenlet):
            return self.run(*args, **kwargs)
        call = make_call(self._number, args, kwargs, self._shared)
        if self.has_buckets:
            call = make_call(self._number, *with_rows(call), self._shared)
            self._example = self._example or first_row(call)
        half = current.task.conditional
        if half and self.name in GUIDED and call.rows % 2 == 0:
            return _twice(current.park(self, make_call(self._number, *half_of(call, half), self._shared)))
        if self._memory is None:
            return current.park(self, call)
        reads_images = self._reads_images or kwargs.get("pixel_values") is not None
        return self._recall(self._memory, call, current, reads_images=reads_images)

    def _recall(self, memory: OutputMemory, call: GateCall, current: TaskGreenlet, *, reads_images: bool) -> Any:
        """Return the output of a call: that of an earlier equal call, if it is remembered."""
        tensors = [leaf for leaf in call.leaves if isinstance(leaf, torch.Tensor)]
        digests = [content_digest(tensor, waits=self._waits) for tensor in tensors]
        if None in digests:
            # Equal to no other call.
            call.signature = (call.signature, object())
            return current.park(self, call)
        origin = current.task.origin if reads_images else NO_ORIGIN
        # Group this call with equal calls only.
        call.signature = key = (origin.owner, call.signature, *digests)
        remembered = memory.get(key, copies=reads_images)
        if remembered is not None:
            return remembered
        output = current.park(self, call)
        memory.put(key, output, origin.images)
        # Other tasks may get the same output, and this one may write to it.
        return pytree.tree_map_only(torch.Tensor, torch.clone, output) if reads_images else output

    def variant(self, run: Callable[..., Any], *, merges: bool) -> "Gate":
        """Return a gate with the same settings for another function of the module."""
        return Gate(self.name, run, ignore=tuple(self._ignore), shared=tuple(self._shared), merges=merges)

    def has_exact_single_rows(self, call: GateCall) -> bool:
        """Return whether a call with one row has to run alone for the result of its task to be exact.

        On a CPU, with 16-bit numbers, that is so where layers besides those of `exact_rows` round differently with one
        row. On a GPU each number of rows may have other kernels, so that nothing would be merged.
        """
        return call.rows == 1 and call.is_half_on_cpu and self.independence is Independence.ROUNDING

    def use_buckets(self, run: Callable[..., Any]) -> None:
        """Run calls with fixed numbers of rows from now on, and timesteps as one float32 value per row.

        Args:
            run: replaces the original function.
        """
        self.run, self.has_buckets = run, True

    def forget_example(self) -> None:
        """Take the next call as the example of `warm_up`. Until then it is the first one."""
        self._example = None

    def warm_up(self, rows: int) -> None:
        """Run a call like the example with `rows` rows, on the engine's thread. Without an example, do nothing."""
        if self._example is not None:
            args, kwargs = collate([self._example], padding=rows - 1)
            self.run(*args, **kwargs)

    def padding_of(self, rows: int) -> int:
        """Return how many rows a call gets in addition."""
        return bucket_of(rows) - rows if self.has_buckets else 0

    @property
    def batching(self) -> str:
        """How calls of several tasks are merged: `exact`, with `rounding`, `alone`, or `unknown` before the first."""
        if self.has_memory or not self.merges:
            return "alone"
        return self.independence.value if self.independence else "unknown"

    @property
    def has_memory(self) -> bool:
        return self._memory is not None


def _twice(output: Any) -> Any:
    """Return the output of the rows with the prompt as that of both halves: guidance then changes nothing."""
    return pytree.tree_map_only(torch.Tensor, lambda leaf: torch.cat([leaf, leaf]), output)
