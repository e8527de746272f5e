"""How much work a key may have made in a time: megapixel-steps, counted by the `limits` library in Redis.

A sliding window of two counters: what came in this window, and a share of what came in the one before.
"""

import math

import limits
from limits.storage import RedisStorage
from limits.strategies import SlidingWindowCounterRateLimiter
from redis import Redis

from .errors import JobTooExpensive, RateLimited

UNITS = 1000  # of a megapixel-step: the counters are whole numbers
PREFIX = "i2i:rate"


class RateLimiter:
    """The rate of every key. None is without a limit."""

    def __init__(self, rate: str | None, redis: Redis) -> None:
        """rate: megapixel-steps and a time, such as `2000/minute`."""
        self._item = limits.parse(rate) if rate else None
        if self._item:
            self._item.amount *= UNITS
        self._storage = RedisStorage("redis://", connection_pool=redis.connection_pool, key_prefix=PREFIX)
        self._windows = SlidingWindowCounterRateLimiter(self._storage)

    def spend(self, owner: str, cost: float) -> dict[str, str]:
        """Counts a job of this cost. Returns the headers that say what is left. Raises JobTooExpensive or RateLimited.

        It is spent even if the job cannot be queued after that. Where keys are off, all clients are one owner.
        """
        if self._item is None:
            return {}
        units = math.ceil(cost * UNITS)
        if units > self._item.amount:
            message = f"The job costs {cost:g} megapixel-steps, and you may have {self._said()}: ask for smaller or "
            raise JobTooExpensive(message + "fewer images, fewer steps or less strength.")
        if self._windows.hit(self._item, owner, cost=units):
            return self._headers(owner)
        message = f"The job costs {cost:g} megapixel-steps, and you may have {self._said()}."
        raise RateLimited(message, self._wait_s(owner, units), self._headers(owner))

    def _said(self) -> str:
        assert self._item is not None
        return f"{self._item.amount // UNITS} in {self._item.get_expiry()} s"

    def _headers(self, owner: str) -> dict[str, str]:
        """As in the draft of the IETF, draft-ietf-httpapi-ratelimit-headers."""
        assert self._item is not None
        left = self._windows.get_window_stats(self._item, owner).remaining // UNITS
        policy = f'"cost";q={self._item.amount // UNITS};w={self._item.get_expiry()}'
        return {"RateLimit-Policy": policy, "RateLimit": f'"cost";r={left}'}

    def _wait_s(self, owner: str, units: int) -> int:
        assert self._item is not None
        window_s = self._item.get_expiry()
        window = self._storage.get_sliding_window(self._item.key_for(owner), window_s)
        return wait_s(*window, window_s=window_s, room=self._item.amount - units)


def wait_s(
    previous: int, previous_left_s: float, current: int, current_left_s: float, *, window_s: float, room: int
) -> int:
    """Whole seconds until what is counted has sunk to `room`, if nothing comes meanwhile.

    previous, current: what was counted in two windows of window_s. What the previous one counts for sinks evenly to 0
    in previous_left_s; then the current one becomes the previous one, when current_left_s has sunk to window_s.
    """
    if current <= room:
        seconds = previous_left_s - (room - current) * window_s / previous if previous else 0.0
    else:
        seconds = max(0.0, current_left_s - window_s) + window_s - room * window_s / current
    return max(1, math.ceil(seconds))
