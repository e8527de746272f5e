"""Rewrites the append-only file of Redis after deletions, so that deleted data also leaves the disk."""

import asyncio
import logging

from anyio.to_thread import run_sync
from redis import Redis
from redis.exceptions import RedisError

from img2img.redis.append_only_file import AppendOnlyFile, RewriteFailed

log = logging.getLogger(__name__)

# Time between two looks at the deletions.
POLL_S = 10.0
# Time between two looks at a rewrite in progress.
BUSY_POLL_S = 0.5


async def rewrite_append_only_file(redis: Redis, interval_s: float) -> None:
    """Rewrite the file at most every interval_s while anything is deleted, until this task is cancelled."""
    file = AppendOnlyFile(redis)
    while True:
        await asyncio.sleep(min(POLL_S, interval_s))
        try:
            if await run_sync(file.is_due, interval_s):
                await _rewrite(file, interval_s)
        except RedisError as error:
            log.info("Redis is unavailable, retrying to rewrite its append-only file: %s", error)
        except Exception:
            log.exception("rewriting the append-only file of Redis failed")


async def _rewrite(file: AppendOnlyFile, interval_s: float) -> None:
    try:
        if not await run_sync(file.is_enabled):
            return
        await _wait(file)
        erased = await run_sync(file.start)
        await _wait(file)
        await run_sync(file.finish, erased)
    except RewriteFailed as error:
        log.warning("deleted data remains in the append-only file of Redis: %s", error)
        await run_sync(file.retry_soon, interval_s)
    else:
        log.info("rewrote the append-only file of Redis after %d deletions", erased)


async def _wait(file: AppendOnlyFile) -> None:
    while await run_sync(file.is_busy):
        await asyncio.sleep(BUSY_POLL_S)
