"""Why Redis rejects commands that write while it responds: its disk or its memory is full, or it is a replica."""

from redis import Redis
from redis.exceptions import RedisError, ResponseError

from img2img.redis import keys

# Phrases of Redis' messages. The client removes some of the codes before them, and a script adds text around them.
REASONS = {
    "MISCONF": "the disk of Redis is full or cannot be written",
    "not allowed when used memory": "Redis has no memory left (maxmemory)",
    "read only replica": "this Redis is a read-only replica",
}


def reason_of(error: Exception) -> str | None:
    """Return why Redis rejects writes, if the error says so."""
    if not isinstance(error, ResponseError):
        return None
    return next((reason for phrase, reason in REASONS.items() if phrase in str(error)), None)


def message_of(error: Exception) -> str:
    """Return an error of Redis as one line, with the remedy for a full memory."""
    reason = reason_of(error)
    if reason == REASONS["not allowed when used memory"]:
        return f"{reason}: raise it, or delete jobs, then run this again"
    return reason or str(error)


def is_disk_full(error: Exception) -> bool:
    """Whether Redis rejects writes because it cannot write its files."""
    return reason_of(error) == REASONS["MISCONF"]


def check_writable(redis: Redis) -> None:
    """Check that Redis accepts writes, without one: an empty string is written to a key that does not exist.

    Raises:
        RedisError: Redis is unavailable or rejects writes; see `reason_of`.
    """
    redis.setrange(keys.WRITE_PROBE, 0, "")


def why_not_writable(redis: Redis) -> str | None:
    """Return why Redis rejects writes; None if it accepts them. Raises RedisError if it does not respond."""
    try:
        check_writable(redis)
    except RedisError as error:
        reason = reason_of(error)
        if reason is None:
            raise
        return reason
    return None
