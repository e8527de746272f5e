"""A unit of work for the engine."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from .timeline import Timeline

Half = Literal["first", "last"]
TaskFunction = Callable[["EngineTask"], Any]


NORMAL = 1


@dataclass(frozen=True)
class Urgency:
    """How soon a task should run.

    Attributes:
        priority: 0 is the highest, see `PriorityShares`. A task of the highest pauses those of others.
        deadline: time by which its job should have ended, by `time.perf_counter`; None: there is no deadline.
    """

    priority: int = NORMAL
    deadline: float | None = None


@dataclass(frozen=True)
class Origin:
    """The job of a task and its images.

    Attributes:
        owner: owner of the job.
        images: SHA-256 of its input images.
    """

    owner: str = ""
    images: frozenset[str] = frozenset()


NO_ORIGIN = Origin()


class TaskStopped(BaseException):
    """Raised inside a task's greenlet to end it. Not an Exception, so that library code does not swallow it."""


class EngineTask:
    """One function that the engine runs in a greenlet, with its progress and its outcome.

    Args:
        function: called with this task in its greenlet.
        on_done: called with this task on the engine's thread once its result or error is set. Must be quick.
        measures_memory: whether the memory of its calls is measured, which takes time.
        runs_alone: whether its calls are never merged with those of other tasks, so that the last bits of its result
            do not depend on them.
        urgency: how soon it should run.
        steps: denoising steps that it will do.
        origin: whose job it is, and its images.
    """

    def __init__(
        self,
        function: TaskFunction,
        on_done: Callable[["EngineTask"], None],
        *,
        measures_memory: bool = False,
        runs_alone: bool = False,
        urgency: Urgency = Urgency(),  # frozen
        steps: int = 0,
        origin: Origin = NO_ORIGIN,
    ) -> None:
        self.origin = origin
        self.measures_memory = measures_memory
        self.runs_alone = runs_alone
        self.priority = urgency.priority
        self.deadline = urgency.deadline
        self.steps = steps
        self.step_calls = 0  # calls that repeat with each step, of the steps that are done. Counted by the engine
        self.function = function
        self.on_done = on_done
        # Denoising steps done, and the latents after the last of them. Both are set by the function.
        self.step = 0
        self.latents: Any = None
        # Steps of the pipelines that the function has called before. Set by the function.
        self.steps_before = 0
        # Half of the rows of a call with guidance that has the prompt: once set, only that half is computed.
        self.conditional: Half | None = None
        self.timeline = Timeline()  # by gate name, and "wait" for the time until admission
        self.result: Any = None
        self.error: BaseException | None = None
        self.submitted_at = time.perf_counter()
        self._stop = threading.Event()

    def stop(self) -> None:
        """Request the end of this task at the engine's next iteration. Safe from any thread."""
        self._stop.set()

    @property
    def is_stopping(self) -> bool:
        return self._stop.is_set()

    @property
    def step_calls_left(self) -> float:
        """Estimated calls that are left of those that repeat with each step. A step can have several, or none."""
        per_step = self.step_calls / self.step if self.step and self.step_calls else 1.0
        return (self.steps - self.step) * per_step

    def end(self, result: Any, error: BaseException | None) -> None:
        """Set the outcome and call `on_done`. Called on the engine's thread.

        All other references are dropped: the callbacks usually refer back to this task, and such cycles would keep
        tensors alive, also on the device, until the garbage collector runs.
        """
        on_done = self.on_done
        del self.function, self.on_done
        self.latents = None
        self.result, self.error = result, error
        on_done(self)
