"""Ends a process whose engine hangs, so that its jobs are requeued and a supervisor can replace it."""

import faulthandler
import sys
import time

from ..engine.engine import Engine
from ..errors import WorkerDied

# Longest time that counts between two checks. A process that was suspended, or that waited for Redis, does not know
# whether the engine made progress in that time.
CHECK_INTERVAL_S = 1.0

# Time for requeueing jobs and ending threads before the process is killed.
EXIT_TIMEOUT_S = 30.0

# The main thread never waits longer than this, not even for Redis.
UNRESPONSIVE_S = 120.0


class Watchdog:
    """Checks the engine from the main thread. A timer in C ends the process if the main thread stops checking.

    Args:
        engine: the engine to check.
        stall_s: seconds that one iteration may take.
        unresponsive_s: seconds without a check after which the process is ended.
    """

    def __init__(self, engine: Engine, *, stall_s: float, unresponsive_s: float = UNRESPONSIVE_S) -> None:
        self._engine = engine
        self._stall_s = stall_s
        self._unresponsive_s = max(unresponsive_s, 2 * CHECK_INTERVAL_S)
        self._iteration = engine.iteration
        self._stalled_s = 0.0
        self._checked_at = time.monotonic()
        self._armed_at = 0.0

    def check(self) -> None:
        """Raise WorkerDied if the engine has work but its iteration takes longer than `stall_s`. Call it often."""
        now = time.monotonic()
        elapsed_s, self._checked_at = min(now - self._checked_at, CHECK_INTERVAL_S), now
        if now - self._armed_at > self._unresponsive_s / 4:
            self._exit_after(self._unresponsive_s)
        iteration = self._engine.iteration
        if iteration != self._iteration or not self._engine.is_busy:
            self._iteration, self._stalled_s = iteration, 0.0
            return
        self._stalled_s += elapsed_s
        if self._stalled_s > self._stall_s:
            faulthandler.dump_traceback(file=sys.__stderr__ or 2)
            self._exit_after(EXIT_TIMEOUT_S)
            raise WorkerDied(f"the engine has made no progress for {self._stall_s:g} s (IMG2IMG_STALL_S)")

    def _exit_after(self, seconds: float) -> None:
        """End the process with exit code 1 after this time, unless called again. The timer does not need the GIL."""
        self._armed_at = time.monotonic()
        faulthandler.dump_traceback_later(seconds, exit=True, file=sys.__stderr__ or 2)
