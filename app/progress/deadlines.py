"""Cancels jobs at their deadline, whether or not a worker is there to do it."""

import asyncio
import logging

from anyio.to_thread import run_sync
from redis.exceptions import RedisError

from img2img.redis.job_queue import JobQueue

log = logging.getLogger(__name__)

LOOK_S = 0.5  # how late a deadline may be kept


async def cancel_overdue_jobs(queue: JobQueue) -> None:
    """Runs until it is cancelled."""
    while True:
        await asyncio.sleep(LOOK_S)
        try:
            await run_sync(queue.cancel_overdue)
        except RedisError as error:
            log.info("deadlines wait for Redis: %s", error)
        except Exception:
            log.exception("deadlines")
