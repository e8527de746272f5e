"""The clock of Redis, which all hosts of a service share.

Every time that one process writes and another compares is Redis' time: creation, deadlines, ends and expiry of jobs,
retention of images, webhook attempts. Leases are written and compared inside of Redis. So hosts whose clocks differ
lose nothing; only the timestamps in logs and traces differ.
"""

import logging
import time
from weakref import WeakKeyDictionary, ref

from redis import ConnectionPool, Redis

# The time of Redis is read at most this often. Between two reads the monotonic clock of this host goes on.
INTERVAL_S = 10.0
# With a larger difference the clock of this host, or of Redis, is reported as wrong.
MAX_SKEW_S = 2.0
# Time between two warnings.
WARNING_S = 600.0

log = logging.getLogger(__name__)


class RedisClock:
    """The time of one Redis. Use `redis_clock` to get it.

    Attributes:
        skew_s: How far the clock of this host was ahead of Redis at the last read, in seconds. None before the first.
    """

    def __init__(self, pool: ConnectionPool) -> None:
        # A weak reference, because `redis_clock` keeps a clock as long as its pool exists.
        self._pool = ref(pool)
        self._read_at = -INTERVAL_S
        self._offset_s = 0.0
        self._warned_at = -WARNING_S
        self.skew_s: float | None = None

    def now(self) -> float:
        """Return the time of Redis in seconds since the epoch. Raises RedisError."""
        if self.skew_s is None or time.monotonic() - self._read_at >= INTERVAL_S:
            self.read()
        return self.estimate()

    def estimate(self) -> float:
        """Return the time of Redis as of the last read, without a request; the time of this host before the first."""
        return time.time() if self.skew_s is None else self._offset_s + time.monotonic()

    def read(self) -> None:
        """Read the time of Redis. Raises RedisError."""
        pool = self._pool()
        assert pool is not None, "the caller has closed its client"
        asked_at = time.monotonic()
        seconds, microseconds = Redis(connection_pool=pool).time()
        received_at, host_time = time.monotonic(), time.time()
        # The time when Redis was read is taken to be in the middle.
        self._offset_s = seconds + microseconds / 1e6 - (asked_at + received_at) / 2
        self._read_at = received_at
        self.skew_s = host_time - self._offset_s - received_at
        self._warn()

    @property
    def warning(self) -> str | None:
        """A message if the clocks differ by more than MAX_SKEW_S."""
        if self.skew_s is None or abs(self.skew_s) <= MAX_SKEW_S:
            return None
        direction = "ahead of" if self.skew_s > 0 else "behind"
        return f"the clock of this host is {abs(self.skew_s):.1f} s {direction} that of Redis"

    def _warn(self) -> None:
        if self.warning and time.monotonic() - self._warned_at >= WARNING_S:
            self._warned_at = time.monotonic()
            log.warning("%s; jobs go by that of Redis. Check NTP on both hosts", self.warning)


_clocks: WeakKeyDictionary[ConnectionPool, RedisClock] = WeakKeyDictionary()


def redis_clock(redis: Redis) -> RedisClock:
    """Return the clock of a Redis; the same one for the same connection pool."""
    pool = redis.connection_pool
    clock = _clocks.get(pool)
    if clock is None:
        clock = _clocks[pool] = RedisClock(pool)
    return clock
