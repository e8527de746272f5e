"""A child process that is restarted when it ends, and never outlives its parent."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress

from img2img.private_files import UMASK

PR_SET_PDEATHSIG = 1
# A process that has run this long is restarted without a pause.
STABLE_S = 60.0
MAX_PAUSE_S = 30.0

_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def _die_with_parent() -> None:
    if _libc:
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class ManagedProcess:
    """A process of the service. It has its own process group, so Ctrl-C reaches only the supervisor."""

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str], stop_within_s: float) -> None:
        self.name = name
        self._command = command
        self._environment = environment
        self._stop_within_s = stop_within_s
        self._pause_s = 0.0
        self.start()

    def start(self) -> None:
        """Start the process."""
        self.process = subprocess.Popen(  # noqa: S603
            self._command,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            process_group=0,
            umask=UMASK,
            preexec_fn=_die_with_parent,
        )
        self._started_at = time.monotonic()
        self._is_terminated = False

    @property
    def exit_code(self) -> int | None:
        """Exit code; None while the process runs."""
        return self.process.poll()

    def restart_when_due(self) -> bool:
        """Restart an ended process if its pause is over: immediately the first time, then with exponential backoff."""
        uptime_s = time.monotonic() - self._started_at
        if uptime_s > STABLE_S + self._pause_s:
            self._pause_s = 0.0
        if uptime_s < self._pause_s:
            return False
        self._pause_s = min(max(1.0, 2 * self._pause_s), MAX_PAUSE_S)
        # It may have left child processes.
        self.kill()
        self.start()
        return True

    def terminate(self) -> None:
        """Ask the process to end, once."""
        if self.exit_code is None and not self._is_terminated:
            self._is_terminated = True
            self.process.terminate()

    def stop(self) -> None:
        """Terminate the process, and kill it if it does not end in time."""
        self.terminate()
        if self.exit_code is None:
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(self._stop_within_s)
        self.kill()

    def kill(self) -> None:
        """Kill the process and its children."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
