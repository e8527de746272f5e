"""A unit of work for the engine."""

import threading
import time
from collections.abc import Callable
from typing import Any

from .timeline import Timeline

TaskFunction = Callable[["EngineTask"], Any]


class TaskStopped(BaseException):
    """Raised inside a task's greenlet to end it. Not an Exception, so that library code does not swallow it."""


class EngineTask:
    """One function that the engine runs in a greenlet, with its progress and its outcome.

    Args:
        function: called with this task in its greenlet.
        on_done: called with this task on the engine's thread once its result or error is set. Must be quick.
        measures_memory: whether the memory of its calls is measured, which takes time.
    """

    def __init__(
        self, function: TaskFunction, on_done: Callable[["EngineTask"], None], *, measures_memory: bool = False
    ) -> None:
        self.measures_memory = measures_memory
        self.function = function
        self.on_done = on_done
        # Denoising steps done, and the latents after the last of them. Both are set by the function.
        self.step = 0
        self.latents: Any = None
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
