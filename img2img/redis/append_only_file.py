"""The append-only file of Redis. It contains every write until it is rewritten, also the records of deleted jobs."""

import time

from redis import Redis
from redis.exceptions import ResponseError

from img2img.redis import keys, scripts

POLL_S = 0.2
# Time to the next attempt after a rewrite that failed.
RETRY_S = 60.0


class RewriteFailed(Exception):
    """Redis could not rewrite its append-only file. The message has the reason."""


class AppendOnlyFile:
    """Rewrites the append-only file of Redis, so that it contains only present data.

    A rewrite has three steps, because it can take minutes: `start` while Redis is not busy with another one, wait while
    it `is_busy`, and `finish`. All of them raise RewriteFailed if this user may not do that.
    """

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._finish_script = scripts.register(redis, "finish_rewrite")

    def rewrite(self) -> bool:
        """Do all steps. Returns False if Redis has no append-only file. Raises RewriteFailed."""
        if not self.is_enabled():
            return False
        # A rewrite that is in progress may have begun before the data was deleted.
        while self.is_busy():
            time.sleep(POLL_S)
        erased = self.start()
        while self.is_busy():
            time.sleep(POLL_S)
        self.finish(erased)
        return True

    def is_due(self, interval_s: float) -> bool:
        """Return whether anything was deleted since the last rewrite, and this process should start one.

        Of all processes, one gets True in interval_s seconds.
        """
        if not self._redis.exists(keys.ERASURES):
            return False
        return bool(self._redis.set(keys.AOF_REWRITE, 1, nx=True, px=_milliseconds(interval_s)))

    def retry_soon(self, interval_s: float) -> None:
        """Let `is_due` return True again after RETRY_S, or after interval_s if that is shorter."""
        self._redis.set(keys.AOF_REWRITE, 1, px=_milliseconds(min(RETRY_S, interval_s)))

    def is_enabled(self) -> bool:
        """Return whether Redis has an append-only file. Without one there is nothing to rewrite."""
        enabled = bool(self._info().get("aof_enabled"))
        if not enabled:
            self._redis.delete(keys.ERASURES)
        return enabled

    def is_busy(self) -> bool:
        """Return whether Redis is rewriting its file."""
        info = self._info()
        return bool(info.get("aof_rewrite_in_progress") or info.get("aof_rewrite_scheduled"))

    def start(self) -> int:
        """Start to rewrite the file. Returns the number of deletions that this covers, for `finish`."""
        erased = int(self._redis.get(keys.ERASURES) or 0)
        try:
            self._redis.bgrewriteaof()
        except ResponseError as error:
            raise RewriteFailed(f"BGREWRITEAOF: {error}") from None
        return erased

    def finish(self, erased: int) -> None:
        """Check that the rewrite has succeeded. Later deletions need another one."""
        if self._info().get("aof_last_bgrewrite_status") != "ok":
            raise RewriteFailed("Redis could not rewrite its append-only file; its log has the reason")
        self._finish_script(args=[erased])

    def _info(self) -> dict[str, object]:
        try:
            found: dict[str, object] = self._redis.info("persistence")
        except ResponseError as error:
            raise RewriteFailed(f"INFO: {error}") from None
        return found


def _milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000))
