"""How many jobs may wait: in all, and of one key. Holds under any number of submits at the same time.

A submit takes a place first, and the transaction that queues its job turns the place into the job. A place whose
submit died lapses.
"""

from dataclasses import dataclass

from redis import Redis
from redis.client import Pipeline
from rq.utils import as_text

from img2img.errors import QueueFull, TooManyQueued

TAKEN = "i2i:places"  # sorted set: ids of jobs that are about to be queued, by when their place lapses
TAKEN_BY = "i2i:places:{owner}"  # the same, of one owner

LAPSE_S = 10  # longer than a transaction can take: the front end waits 1.5 s for Redis

# Takes a place for a job. KEYS: places, queued jobs, places of the owner, queued jobs of the owner. ARGV: id, or empty
# to only ask; seconds until the place lapses; how many may wait in all; how many of the owner; empty where there is no
# cap. The clock is that of Redis, which all front ends share.
TAKE = """
local now = tonumber(redis.call('TIME')[1])
local function full(places, queued, most)
  redis.call('ZREMRANGEBYSCORE', places, '-inf', now)
  if most == '' or redis.call('ZSCORE', places, ARGV[1]) then return false end
  return redis.call('ZCARD', places) + redis.call('ZCARD', queued) >= tonumber(most)
end
if full(KEYS[3], KEYS[4], ARGV[4]) then return 'owner' end
if full(KEYS[1], KEYS[2], ARGV[3]) then return 'all' end
if ARGV[1] ~= '' then
  redis.call('ZADD', KEYS[1], now + ARGV[2], ARGV[1])
  redis.call('ZADD', KEYS[3], now + ARGV[2], ARGV[1])
end
return 'ok'
"""


@dataclass(frozen=True)
class QueueLimits:
    """How many jobs may wait; None is without a cap. Where keys are off, all clients are one owner."""

    queued: int | None = None
    queued_per_owner: int | None = None


class QueueLimiter:
    """The room that a queue has for new jobs."""

    def __init__(self, redis: Redis, caps: QueueLimits) -> None:
        self._redis = redis
        self._caps = caps
        self._take_script = redis.register_script(TAKE)

    def take(self, job_id: str, owner: str, queued: str, queued_of_owner: str) -> None:
        """Takes a place for a job; again for the same job is the same, and for the job "" only asks.

        queued, queued_of_owner: the lists of waiting jobs. Raises QueueFull or TooManyQueued.
        """
        if self._caps == QueueLimits():
            return
        caps = ("" if cap is None else cap for cap in (self._caps.queued, self._caps.queued_per_owner))
        answer = self._take_script(
            keys=[TAKEN, queued, TAKEN_BY.format(owner=owner), queued_of_owner],
            args=[job_id, LAPSE_S, *caps],
        )
        if as_text(answer) == "owner":
            raise TooManyQueued(f"{self._caps.queued_per_owner} of your jobs are waiting, and no more may.")
        if as_text(answer) == "all":
            raise QueueFull

    def leave(self, redis: Redis | Pipeline, job_id: str, owner: str) -> None:
        """Gives the place up: in the transaction that queues the job, or where there is none to queue after all."""
        if self._caps == QueueLimits():
            return
        redis.zrem(TAKEN, job_id)
        redis.zrem(TAKEN_BY.format(owner=owner), job_id)
