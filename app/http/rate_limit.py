"""Rate limit per API key, in megapixel-steps, counted in Redis by the `limits` library.

Sliding window with two counters: the usage in the current window, plus a share of the usage in the previous one.
"""

import math

import limits
from limits.storage import RedisStorage
from limits.strategies import SlidingWindowCounterRateLimiter
from redis import Redis

from img2img.redis.keys import RATE_LIMITS

from .errors import JobTooExpensive, RateLimited

# Megapixel-steps per megapixel of an image that is decoded, whether or not a job comes of it.
DECODING_COST = 0.2
# Counters are integers, so they count thousandths of a megapixel-step.
UNITS = 1000


class RateLimiter:
    """Limits the work that each owner may submit.

    Args:
        rate: Megapixel-steps and a period, such as `2000/minute`.
    """

    def __init__(self, rate: str, redis: Redis) -> None:
        self._limit = limits.parse(rate)
        self._limit.amount *= UNITS
        self._storage = RedisStorage("redis://", connection_pool=redis.connection_pool, key_prefix=RATE_LIMITS)
        self._windows = SlidingWindowCounterRateLimiter(self._storage)

    def spend(self, owner: str, cost: float) -> dict[str, str]:
        """Count a job of this cost, also if it is not queued after all, and return the rate limit headers.

        Without API keys, all clients are one owner.

        Raises:
            JobTooExpensive: The job costs more than the limit for a whole period.
            RateLimited: The owner has reached the limit.
        """
        units = math.ceil(cost * UNITS)
        allowed = f"{self._limit.amount // UNITS} in {self._limit.get_expiry()} s"
        message = f"The job costs {cost:g} megapixel-steps, and the rate limit is {allowed}"
        if units > self._limit.amount:
            raise JobTooExpensive(f"{message}: request smaller or fewer images, fewer steps or a lower strength.")
        if self._windows.hit(self._limit, owner, cost=units):
            return self._headers(owner)
        retry_after_s = self._retry_after_s(owner, units)
        raise RateLimited(f"{message}; try again later.", retry_after_s, self._headers(owner))

    def spend_decoding(self, owner: str, pixels: int) -> None:
        """Count an image that is about to be decoded.

        Raises:
            JobTooExpensive: The image costs more than the limit for a whole period.
            RateLimited: The owner has reached the limit.
        """
        cost = DECODING_COST * pixels / 1_000_000
        units = math.ceil(cost * UNITS)
        allowed = f"{self._limit.amount // UNITS} in {self._limit.get_expiry()} s"
        message = f"Decoding the image costs {cost:g} megapixel-steps, and the rate limit is {allowed}"
        if units > self._limit.amount:
            raise JobTooExpensive(f"{message}: send a smaller image.")
        if not self._windows.hit(self._limit, owner, cost=units):
            raise RateLimited(f"{message}; try again later.", self._retry_after_s(owner, units), self._headers(owner))

    def _headers(self, owner: str) -> dict[str, str]:
        """Return headers as specified by draft-ietf-httpapi-ratelimit-headers."""
        limit = self._limit
        left = self._windows.get_window_stats(limit, owner).remaining // UNITS
        policy = f'"cost";q={limit.amount // UNITS};w={limit.get_expiry()}'
        return {"RateLimit-Policy": policy, "RateLimit": f'"cost";r={left}'}

    def _retry_after_s(self, owner: str, units: int) -> int:
        limit = self._limit
        window_s = limit.get_expiry()
        window = self._storage.get_sliding_window(limit.key_for(owner), window_s)
        return wait_s(*window, window_s=window_s, target=limit.amount - units)


def wait_s(
    previous: int, previous_left_s: float, current: int, current_left_s: float, *, window_s: float, target: int
) -> int:
    """Return whole seconds until the usage has fallen to `target`, if nothing is added.

    Args:
        previous: Usage in the previous window. Its share falls linearly to 0 in `previous_left_s`.
        current: Usage in the current window, which becomes the previous one when `current_left_s` is `window_s`.
        window_s: Length of a window.
    """
    if current <= target:
        seconds = previous_left_s - (target - current) * window_s / previous if previous else 0.0
    else:
        seconds = max(0.0, current_left_s - window_s) + window_s - target * window_s / current
    return max(1, math.ceil(seconds))
