"""Notifications of job changes: one Redis subscription for all clients of an API server process."""

import asyncio
import itertools
import logging
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from redis.exceptions import RedisError

from img2img.domain.job import JobStatus
from img2img.redis.connection import connect_async
from img2img.redis.keys import JOB_CHANGES

log = logging.getLogger(__name__)

# A connection that has been silent for this long is pinged.
PING_S = 10
RECONNECT_S = 0.3


class JobChangeListener:
    """Sets an event when a job may have changed. Subscribers then read the record themselves.

    Attributes:
        dequeue_count: How often any job has left a queue, or was put back into one.
        is_closed: Whether waits should end, because the process is stopping.
    """

    def __init__(self, redis_url: str) -> None:
        self._redis_url = redis_url
        self._subscribers: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        self._numbers = itertools.count()
        self._latest: dict[str, int] = {}  # by id of a job with subscribers
        self.dequeue_count = 0
        self.is_closed = False

    @contextmanager
    def subscribe(self, job_id: str) -> Iterator[asyncio.Event]:
        """Yield an event that is set when the job may have changed. Read the record after subscribing, not before."""
        changed = asyncio.Event()
        if self.is_closed:
            changed.set()
        self._subscribers[job_id].add(changed)
        self._latest.setdefault(job_id, next(self._numbers))
        try:
            yield changed
        finally:
            self._subscribers[job_id].discard(changed)
            if not self._subscribers[job_id]:
                del self._subscribers[job_id], self._latest[job_id]

    def latest(self, job_id: str) -> int:
        """Return the number of the last change of a job that was announced. Only for a job with subscribers.

        No number is used twice, also if a job has no subscribers for some time.
        """
        return self._latest[job_id]

    def close(self) -> None:
        """Set all events: subscribers should see `is_closed` and end."""
        self.is_closed = True
        for job_id in list(self._subscribers):
            self._notify(job_id)

    async def run(self) -> None:
        """Listen until cancelled. After an outage all events are set, because changes may have been missed."""
        while True:
            try:
                await self._listen()
            except (RedisError, OSError) as error:
                log.info("job notifications wait for Redis: %s", error)
            except Exception:
                log.exception("job notifications failed")
            _end_if_cancelled()
            await asyncio.sleep(RECONNECT_S)

    async def _listen(self) -> None:
        async with (
            connect_async(self._redis_url, socket_connect_timeout=1, health_check_interval=PING_S) as redis,
            redis.pubsub(ignore_subscribe_messages=True) as subscription,
        ):
            await subscription.subscribe(JOB_CHANGES)
            _end_if_cancelled()
            self.dequeue_count += 1
            for job_id in list(self._subscribers):
                self._notify(job_id)
            while True:
                message = await subscription.get_message(timeout=PING_S)
                _end_if_cancelled()
                if message is not None:
                    self._on_change(message["data"].decode("ascii", "replace"))

    def _on_change(self, change: str) -> None:
        job_id, _, status = change.partition(" ")
        if status and status != JobStatus.QUEUED:
            self.dequeue_count += 1
        self._notify(job_id)

    def _notify(self, job_id: str) -> None:
        if job_id in self._latest:
            self._latest[job_id] = next(self._numbers)
        for changed in self._subscribers.get(job_id, ()):
            changed.set()


def _end_if_cancelled() -> None:
    """Raise CancelledError again if the task was cancelled: redis-py loses it while it connects or disconnects."""
    task = asyncio.current_task()
    if task and task.cancelling():
        raise asyncio.CancelledError
