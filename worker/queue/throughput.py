"""Measures a worker's throughput, in units of `JobSpec.cost` per second."""

import math
import threading
from collections.abc import Collection

TIME_CONSTANT_S = 60.0  # of the exponentially weighted average
MIN_BUSY_S = 0.5  # less busy time than this gives no estimate


class ThroughputMeter:
    """A moving average over the time in which there was work: idle time does not change it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._remaining: dict[str, float] = {}  # by execution id
        self._done = 0.0
        self._busy_s = 0.0
        self._advanced_at: float | None = None

    def update(self, execution: str, remaining: float) -> None:
        """Set the remaining work of an execution."""
        with self._lock:
            self._done += max(0.0, self._remaining.get(execution, remaining) - remaining)
            self._remaining[execution] = remaining

    def remove(self, execution: str, *, is_done: bool) -> None:
        """Remove an execution that has ended.

        Args:
            execution: its id.
            is_done: whether its remaining work has been done rather than dropped.
        """
        with self._lock:
            remaining = self._remaining.pop(execution, 0.0)
            self._done += remaining if is_done else 0.0

    def advance(self, now: float, in_flight: Collection[str]) -> None:
        """Add the time since the last call, if there was work in it, and let older measurements decay.

        Args:
            now: the time, by a monotonic clock.
            in_flight: ids of all executions. An execution can end while it is updated; it is removed here.
        """
        with self._lock:
            self._remaining = {key: value for key, value in self._remaining.items() if key in in_flight}
            elapsed_s = now - self._advanced_at if self._advanced_at is not None else 0.0
            self._advanced_at = now if self._remaining else None
            decay = math.exp(-elapsed_s / TIME_CONSTANT_S)
            self._done *= decay
            self._busy_s = (self._busy_s + elapsed_s) * decay

    def remaining(self, executions: Collection[str] | None = None) -> float:
        """Return the remaining work of executions in flight, by default of all."""
        with self._lock:
            return sum(work for key, work in self._remaining.items() if executions is None or key in executions)

    @property
    def per_second(self) -> float | None:
        """Work done per second, or None before there is enough to measure."""
        with self._lock:
            return self._done / self._busy_s if self._busy_s > MIN_BUSY_S and self._done else None
