"""Listens for jobs that are queued, so that a worker need not ask its queues all the time."""

import logging
import threading
from collections.abc import Callable

from redis import Redis
from redis.client import PubSub
from redis.exceptions import RedisError

from img2img.redis.decode import decode
from img2img.redis.keys import WAITING_JOBS

log = logging.getLogger(__name__)

READ_S = 1.0  # after which the thread looks whether it should end
RECONNECT_S = 0.5

_CHANNEL_PREFIX = WAITING_JOBS.format(model="")


class JobArrivals:
    """Calls a function with the name of a model when a job of it is queued, until closed.

    Notifications can be lost: after an outage of Redis it is called with None, and callers have to look at the queues
    from time to time.
    """

    def __init__(self, redis: Redis, on_arrival: Callable[[str | None], object]) -> None:
        self._redis = redis
        self._on_arrival = on_arrival

    def run(self, closed: threading.Event) -> None:
        """Listen until `closed` is set."""
        while not closed.is_set():
            try:
                self._listen(closed)
            except (RedisError, OSError) as error:
                log.info("the worker cannot listen for jobs, retrying: %s", error)
                closed.wait(RECONNECT_S)
            except Exception:
                log.exception("listening for jobs failed, retrying")
                closed.wait(RECONNECT_S)

    def _listen(self, closed: threading.Event) -> None:
        subscription: PubSub = self._redis.pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call]
        with subscription:
            subscription.psubscribe(WAITING_JOBS.pattern)
            self._on_arrival(None)
            while not closed.is_set():
                message = subscription.get_message(timeout=READ_S)
                if message is not None:
                    self._on_arrival(decode(message["channel"]).removeprefix(_CHANNEL_PREFIX))
