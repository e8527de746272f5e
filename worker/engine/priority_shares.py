"""Shares of the engine between priorities whose calls wait at the same time. The queue uses the same ones."""

import math
from collections.abc import Mapping

# While calls of two neighbouring priorities wait, the higher one gets so many times the rows of the lower one. As in
# img2img/redis/lua/fair_queue.lua.
SHARE = 7


class PriorityShares:
    """Start-time fair queueing between priorities: the highest goes first, and a lower one once its share has paid.

    A priority is a number, 0 the highest. One without waiting calls is forgotten: idle time gives no credit.
    """

    def __init__(self) -> None:
        self._times: dict[int, float] = {}  # virtual time by priority

    def next(self, rows: Mapping[int, int]) -> tuple[int, float]:
        """Return the priority that is next, and the number of rows that it may run.

        Args:
            rows: rows of the next call of each priority that has any.
        """
        latest = max(self._times.values(), default=0.0)
        self._times = {priority: self._times.get(priority, latest) for priority in rows}
        highest = min(rows)

        def turn(priority: int) -> tuple[float, bool]:
            is_highest = priority == highest
            time = self._times[priority] + (0 if is_highest else rows[priority] * _pace(priority))
            return time, is_highest

        found = min(sorted(rows), key=turn)
        if found == highest:
            return found, math.inf
        return found, (self._times[highest] - self._times[found]) / _pace(found)

    def charge(self, priority: int, rows: int) -> None:
        """Count rows that have run."""
        if priority in self._times:
            self._times[priority] += rows * _pace(priority)


def _pace(priority: int) -> float:
    """Return the virtual time of a row."""
    return float(SHARE**priority)
