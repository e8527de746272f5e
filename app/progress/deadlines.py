"""Cancels jobs at their deadline, also if no worker is running."""

import asyncio
import logging

from anyio.to_thread import run_sync
from redis.exceptions import RedisError

from img2img.redis.job_queue import JobQueue

log = logging.getLogger(__name__)

# A deadline may be exceeded by this much.
POLL_S = 0.5


async def cancel_overdue_jobs(queue: JobQueue) -> None:
    """Cancel jobs whose deadline has passed, until this task is cancelled."""
    while True:
        await asyncio.sleep(POLL_S)
        try:
            await run_sync(queue.cancel_overdue)
        except RedisError as error:
            log.info("Redis is unavailable, retrying to cancel overdue jobs: %s", error)
        except Exception:
            log.exception("cancelling overdue jobs failed")
