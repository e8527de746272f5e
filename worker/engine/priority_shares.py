"""Shares of the engine between priorities whose calls wait at the same time. The queue uses the same ones."""

import math
from collections.abc import Mapping

HIGHEST = 0
# While calls of two neighbouring priorities wait, the higher one gets so many times the rows of the lower one. As in
# img2img/redis/lua/fair_queue.lua.
SHARE = 7
# Rows of a priority that has none above it before others get their share: about those of one job.
BURST = 64


class PriorityShares:
    """Start-time fair queueing between priorities: the highest goes first, and a lower one once its share has paid.

    A priority is a number, 0 the highest. One without waiting calls is forgotten: idle time gives no more credit than
    `BURST` rows.
    """

    def __init__(self) -> None:
        self._times: dict[int, float] = {}  # virtual time by priority

    def next(self, rows: Mapping[int, int]) -> tuple[int, float]:
        """Return the priority that is next, and the number of rows that it may run.

        Args:
            rows: rows of the next call of each priority that has any.
        """
        latest = max(self._times.values(), default=0.0)
        highest = min(rows)
        starts = {highest: latest - BURST * _pace(highest)} if len(self._times) else {}
        self._times = {p: self._times.get(p, starts.get(p, latest)) for p in rows}

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
