"""A child process that never outlives its parent and is started again when it dies."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress

PR_SET_PDEATHSIG = 1
STEADY_S = 60.0  # after running this long, a death is news again and the next start is immediate
MAX_PAUSE_S = 30.0

_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def _die_with_parent() -> None:
    if _libc:
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class ManagedProcess:
    """One process of the service, in a process group of its own so that Ctrl-C reaches only the supervisor."""

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str], stop_within_s: float) -> None:
        self.name = name
        self._command = command
        self._environment = environment
        self._stop_within_s = stop_within_s
        self._pause_s = 0.0
        self.start()

    def start(self) -> None:
        """Starts the process."""
        self.process = subprocess.Popen(  # noqa: S603
            self._command,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            process_group=0,
            preexec_fn=_die_with_parent,
        )
        self._started_at = time.monotonic()

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self.process.poll()

    def restart_when_due(self) -> bool:
        """Starts a dead process again: at once the first time, then after longer and longer pauses."""
        lived_s = time.monotonic() - self._started_at
        if lived_s > STEADY_S + self._pause_s:
            self._pause_s = 0.0
        if lived_s < self._pause_s:
            return False
        self._pause_s = min(max(1.0, 2 * self._pause_s), MAX_PAUSE_S)
        self.kill()  # what it may have left behind
        self.start()
        return True

    def stop(self) -> None:
        """Asks it to end, and waits; then insists."""
        if self.exit_code is None:
            self.process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(self._stop_within_s)
        self.kill()

    def kill(self) -> None:
        """Ends it and whatever it has started."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
