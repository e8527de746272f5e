"""Watches when jobs are queued and cancelled, by one clock."""

import time
from contextlib import suppress

from redis import Redis
from redis.exceptions import RedisError

from img2img.redis.keys import JOB_CHANGES
from tests.chaos.watcher import Watcher


class StatusTimes(Watcher):
    """The times at which Redis announced the states of jobs. Announcements during an outage of Redis are missed."""

    def __init__(self, redis: Redis) -> None:
        super().__init__("status times")
        self._redis = redis
        self._times: dict[tuple[str, str], float] = {}

    def between(self, job_id: str, first: str, last: str) -> float | None:
        """Return the seconds between two states of a job, or None if one is unknown."""
        times = [self._times.get((job_id, status)) for status in (first, last)]
        return None if times[0] is None or times[1] is None else times[1] - times[0]

    def _watch(self) -> None:
        while not self._stopped.is_set():
            with suppress(RedisError), self._redis.pubsub(ignore_subscribe_messages=True) as pubsub:
                pubsub.subscribe(JOB_CHANGES)
                while not self._stopped.is_set():
                    message = pubsub.get_message(timeout=0.5)
                    if message:
                        job_id, _, status = message["data"].decode().partition(" ")
                        self._times.setdefault((job_id, status), time.monotonic())
            self._stopped.wait(0.2)
