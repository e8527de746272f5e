"""How fast this worker works, in units of JobSpec.cost per second, and how much it still has in hand."""

import math
import threading
from collections.abc import Collection

MEMORY_S = 60.0  # seconds of work that the average looks back, about


class ThroughputMeter:
    """An average over the time in which there was work: an idle hour changes nothing."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._left: dict[str, float] = {}  # by execution
        self._done = 0.0
        self._busy_s = 0.0
        self._looked_at: float | None = None

    def note(self, execution: str, left: float) -> None:
        """So much of a job is left to do."""
        with self._lock:
            self._done += max(0.0, self._left.get(execution, left) - left)
            self._left[execution] = left

    def end(self, execution: str, *, done: bool) -> None:
        """A job has ended. done: what was left of it was work done, not work dropped."""
        with self._lock:
            left = self._left.pop(execution, 0.0)
            self._done += left if done else 0.0

    def tick(self, now: float, executions: Collection[str]) -> None:
        """Counts the time since the last tick, if there was work in it, and forgets a little of what was long ago.

        executions: those in hand. One that ended while it was noted is dropped here.
        """
        with self._lock:
            self._left = {key: left for key, left in self._left.items() if key in executions}
            passed_s = now - self._looked_at if self._looked_at is not None else 0.0
            self._looked_at = now if self._left else None
            kept = math.exp(-passed_s / MEMORY_S)
            self._done *= kept
            self._busy_s = (self._busy_s + passed_s) * kept

    @property
    def left(self) -> float:
        """Work in hand."""
        with self._lock:
            return sum(self._left.values())

    @property
    def per_second(self) -> float | None:
        """Work done per second; None as long as too little was seen."""
        with self._lock:
            return self._done / self._busy_s if self._busy_s > 0.5 and self._done else None
