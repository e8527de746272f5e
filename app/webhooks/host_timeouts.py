"""Timeouts of attempts: short for hosts that have not responded for a while, so that they take up less capacity."""

from cachetools import TTLCache

# Attempts in a row without a response after which the timeout is short.
PATIENCE = 3
# A short timeout is this part of the full one.
SHORT = 0.2
# Every so many attempts have the full timeout, because the host may respond again, but slowly.
FULL_EVERY = 4
# Hosts that are remembered, and for how many seconds after their last attempt.
HOSTS, REMEMBERED_S = 10_000, 3600.0


class HostTimeouts:
    """Counts attempts without a response by host.

    Args:
        timeout_s: The full timeout.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._silent: TTLCache[str, int] = TTLCache(HOSTS, REMEMBERED_S)

    def timeout_s(self, host: str) -> float:
        """Return the timeout of the next attempt."""
        silent = self._silent.get(host, 0)
        is_short = silent >= PATIENCE and (silent - PATIENCE) % FULL_EVERY != FULL_EVERY - 1
        return self._timeout_s * SHORT if is_short else self._timeout_s

    def record(self, host: str, *, has_responded: bool) -> None:
        """Count an attempt that has ended."""
        if has_responded:
            self._silent.pop(host, None)
        else:
            self._silent[host] = self._silent.get(host, 0) + 1
