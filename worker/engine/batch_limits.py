"""How many rows a merged call may have: halved where memory ran out, and tried with more after a while."""

from collections.abc import Hashable
from dataclasses import dataclass

from cachetools import LRUCache

RETRY_AFTER_CALLS, MOST_PATIENCE = (
    500,
    16_000,
)  # calls at a limit before more rows are tried; twice as many when in vain
SIGNATURES = 1000  # of which limits are known: those of the calls that were made last


@dataclass
class _Limit:
    rows: int
    patience: int
    passed: int = 0  # calls as large as the limit lets them be, since it was set
    is_trial: bool = False  # whether it was raised


class BatchLimits:
    """Limits by the signature of a call."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._limits: LRUCache[Hashable, _Limit] = LRUCache(SIGNATURES)

    def of(self, signature: Hashable) -> int:
        limit = self._limits.get(signature)
        return limit.rows if limit else self._most

    def ran_out(self, signature: Hashable, rows: int, least: int) -> int:
        """A call of so many rows did not fit. least: of one job. Returns the limit from now on."""
        before = self._limits.get(signature)
        patience = before.patience if before else RETRY_AFTER_CALLS
        if before and before.is_trial and not before.passed:
            patience = min(2 * patience, MOST_PATIENCE)
        self._limits[signature] = _Limit(max(least, rows // 2), patience)
        return self._limits[signature].rows

    def passed(self, signature: Hashable, rows: int) -> None:
        """A call of so many rows went well. What took memory may be gone by now: now and then, more are tried."""
        limit = self._limits.get(signature)
        if limit is None or 2 * rows <= limit.rows:
            return
        limit.passed += 1
        if limit.rows >= self._most:
            del self._limits[signature]
        elif limit.passed >= limit.patience:
            self._limits[signature] = _Limit(min(2 * limit.rows, self._most), limit.patience, is_trial=True)
