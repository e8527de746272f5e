"""Who waits for a change of a job is told of it here: one subscription to Redis for all clients of this process."""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from redis.asyncio import Redis
from redis.exceptions import RedisError

from img2img.redis.job_store import CHANGES

log = logging.getLogger(__name__)

PING_S = 10  # a subscription that has been silent for this long is asked whether it is still there
RECONNECT_S = 0.3


class JobChangeListener:
    """Wakes those who watch a job. A wake-up says that it may have changed; they read the record themselves."""

    def __init__(self, redis_url: str) -> None:
        self._redis_url = redis_url
        self._watchers: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        self.dequeue_count = 0  # how often a job has left a queue, or come back to one

    @contextmanager
    def subscribe(self, job_id: str) -> Iterator[asyncio.Event]:
        """An event that is set whenever the job may have changed. Read the record after this, not before."""
        changed = asyncio.Event()
        self._watchers[job_id].add(changed)
        try:
            yield changed
        finally:
            self._watchers[job_id].discard(changed)
            if not self._watchers[job_id]:
                del self._watchers[job_id]

    async def run(self) -> None:
        """Listens until it is cancelled. After an outage everyone is woken: what changed meanwhile was not heard."""
        while True:
            try:
                await self._listen()
            except (RedisError, OSError) as error:
                log.info("the feed waits for Redis: %s", error)
            except Exception:
                log.exception("feed")
            await asyncio.sleep(RECONNECT_S)

    async def _listen(self) -> None:
        async with (
            Redis.from_url(self._redis_url, socket_connect_timeout=1, health_check_interval=PING_S) as redis,
            redis.pubsub(ignore_subscribe_messages=True) as subscription,
        ):
            await subscription.subscribe(CHANGES)
            self.dequeue_count += 1
            for job_id in list(self._watchers):
                self._wake(job_id)
            while True:
                message = await subscription.get_message(timeout=PING_S)
                if message is not None:
                    self._on_change(message["data"].decode("ascii", "replace"))

    def _on_change(self, change: str) -> None:
        job_id, _, status = change.partition(" ")
        if status and status != "queued":
            self.dequeue_count += 1
        self._wake(job_id)

    def _wake(self, job_id: str) -> None:
        for changed in self._watchers.get(job_id, ()):
            changed.set()
