"""A unit of work for the engine."""

import threading
import time
from collections.abc import Callable
from typing import Any, Literal

from .timeline import Timeline

Half = Literal["first", "last"]
TaskFunction = Callable[["EngineTask"], Any]


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
    """

    def __init__(
        self,
        function: TaskFunction,
        on_done: Callable[["EngineTask"], None],
        *,
        measures_memory: bool = False,
        runs_alone: bool = False,
    ) -> None:
        self.measures_memory = measures_memory
        self.runs_alone = runs_alone
        self.function = function
        self.on_done = on_done
        # Denoising steps done, and the latents after the last of them. Both are set by the function.
        self.step = 0
        self.latents: Any = None
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
