"""Ends a process whose engine makes no more steps, so that its jobs go on elsewhere and another takes its place."""

import faulthandler
import logging
import sys
import time

from ..engine.engine import Engine
from ..errors import WorkerDied

CHECK_INTERVAL_S = (
    1.0  # most that counts between two looks: who was stopped, or waited for Redis, knows nothing of that time
)
LEAVE_S = 30.0  # in which jobs are handed back and threads end, before the process ends without
DEAF_S = 120.0  # the main thread never waits longer than this, not for Redis either

log = logging.getLogger(__name__)


class Watchdog:
    """Looks at the engine from the main thread. A second one, in C, sees to a main thread that looks no more."""

    def __init__(self, engine: Engine, *, stall_s: float, deaf_s: float = DEAF_S) -> None:
        """stall_s: how long a step may take. deaf_s: how long no thread of Python may run."""
        self._engine = engine
        self._stall_s = stall_s
        self._deaf_s = max(deaf_s, 2 * CHECK_INTERVAL_S)
        self._tick = engine.iteration
        self._still_s = 0.0
        self._looked_at = time.monotonic()
        self._armed_at = 0.0

    def look(self) -> None:
        """Call it often. Raises WorkerDied if the engine has work and has made no step for stall_s."""
        now = time.monotonic()
        passed_s, self._looked_at = min(now - self._looked_at, CHECK_INTERVAL_S), now
        if now - self._armed_at > self._deaf_s / 4:
            self._end_in(self._deaf_s)
        tick = self._engine.iteration
        if tick != self._tick or not self._engine.is_busy:
            self._tick, self._still_s = tick, 0.0
            return
        self._still_s += passed_s
        if self._still_s > self._stall_s:
            faulthandler.dump_traceback(file=sys.__stderr__ or 2)
            self._end_in(LEAVE_S)
            raise WorkerDied(f"the engine has made no step for {self._stall_s:g} s (IMG2IMG_STALL_S)")

    def _end_in(self, seconds: float) -> None:
        """Has the process end with exit code 1 unless this is called again. The timer needs no lock of Python."""
        self._armed_at = time.monotonic()
        faulthandler.dump_traceback_later(seconds, exit=True, file=sys.__stderr__ or 2)
