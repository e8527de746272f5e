"""Limits on the rows of a merged call: halved when memory runs out, raised again after a number of calls."""

from collections.abc import Hashable
from dataclasses import dataclass

from cachetools import LRUCache

# Calls at a limit before a higher one is tried. Doubled after each trial that runs out of memory, up to the maximum.
RETRY_AFTER_CALLS = 500
MAX_RETRY_AFTER_CALLS = 16_000

# Only the limits of the most recently used signatures are kept.
MAX_SIGNATURES = 1000


@dataclass
class _Limit:
    rows: int
    retry_after: int
    calls: int = 0  # calls since the limit was set with more than half the rows that it allows
    is_trial: bool = False  # whether the limit was raised to try a larger batch


class BatchLimits:
    """Row limits by the signature of a call."""

    def __init__(self, max_rows: int) -> None:
        self._max_rows = max_rows
        self._limits: LRUCache[Hashable, _Limit] = LRUCache(MAX_SIGNATURES)

    def limit_of(self, signature: Hashable) -> int:
        limit = self._limits.get(signature)
        return limit.rows if limit else self._max_rows

    def record_out_of_memory(self, signature: Hashable, rows: int, min_rows: int) -> int:
        """Lower the limit after a call with `rows` rows ran out of memory, and return the new limit.

        Args:
            signature: signature of the call.
            rows: rows of the call.
            min_rows: rows of a single task, below which the limit never falls.
        """
        before = self._limits.get(signature)
        retry_after = before.retry_after if before else RETRY_AFTER_CALLS
        if before and before.is_trial and not before.calls:
            retry_after = min(2 * retry_after, MAX_RETRY_AFTER_CALLS)
        self._limits[signature] = _Limit(max(min_rows, rows // 2), retry_after)
        return self._limits[signature].rows

    def record_success(self, signature: Hashable, rows: int) -> None:
        """Count a call that succeeded, and raise its limit from time to time: memory may be free again."""
        limit = self._limits.get(signature)
        if limit is None or 2 * rows <= limit.rows:
            return
        limit.calls += 1
        if limit.rows >= self._max_rows:
            del self._limits[signature]
        elif limit.calls >= limit.retry_after:
            self._limits[signature] = _Limit(min(2 * limit.rows, self._max_rows), limit.retry_after, is_trial=True)
