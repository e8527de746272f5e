"""Predicts how long calls take, from those that have run. Plain Python, so that unit tests need no torch."""

from collections.abc import Hashable

from cachetools import LRUCache

SMOOTHING = 0.3  # weight of the latest call
MAX_SIGNATURES = 1000
MAX_ROW_COUNTS = 64  # per signature; small numbers of rows run rarely, and predictions need them
# A batch is efficient if its rows take at most this many times as long as those of the largest one.
EFFICIENT = 1.1


class CallTimes:
    """Seconds of calls by signature: a line through the average times of the numbers of rows that have run."""

    def __init__(self) -> None:
        self._seconds: LRUCache[Hashable, LRUCache[int, float]] = LRUCache(MAX_SIGNATURES)
        self._by_stage: dict[str, float] = {}

    def record(self, stage: str, signature: Hashable, rows: int, seconds: float) -> None:
        """Count a call.

        Args:
            stage: name of the gate.
            signature: signature of the call.
            rows: rows that ran.
            seconds: time that it took.
        """
        known = self._seconds.setdefault(signature, LRUCache(MAX_ROW_COUNTS))
        known[rows] = _average(known.get(rows), seconds)
        self._by_stage[stage] = _average(self._by_stage.get(stage), seconds)

    def of_stage(self, stage: str) -> float:
        """Return the average seconds of a stage's calls, 0 before the first."""
        return self._by_stage.get(stage, 0.0)

    def predict(self, signature: Hashable, rows: int) -> float | None:
        """Return the seconds of a call with so many rows, or None if no call like it has run."""
        known = self._seconds.get(signature)
        if not known:
            return None
        if rows in known:
            return known[rows]
        count = len(known)
        mean_rows, mean_s = sum(known) / count, sum(known.values()) / count
        variance = sum((r - mean_rows) ** 2 for r in known)
        if variance == 0:
            return mean_s * rows / mean_rows
        slope = max(0.0, sum((r - mean_rows) * (s - mean_s) for r, s in known.items()) / variance)
        # No call takes less than its share of the fastest one by row.
        fastest = min(s / r for r, s in known.items())
        return max(mean_s + slope * (rows - mean_rows), rows * min(slope, fastest))

    def efficient_rows(self, signature: Hashable, rows: int, most: int) -> int:
        """Return the fewest rows with nearly the throughput of `most` rows: a multiple of `rows`, or `most`."""
        full_s = self.predict(signature, most)
        if full_s is None:
            return most
        for fewer in range(rows, most, rows):
            seconds = self.predict(signature, fewer)
            if seconds is not None and seconds / fewer <= EFFICIENT * full_s / most:
                return fewer
        return most


def _average(known: float | None, seconds: float) -> float:
    return seconds if known is None else known + SMOOTHING * (seconds - known)
