"""Waits for the end of a job or a batch."""

import asyncio
import re
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TypeVar

from anyio.to_thread import run_sync
from redis.exceptions import RedisError
from starlette.responses import Response

from img2img.domain.job import JobRecord
from img2img.redis.job_queue import JobQueue
from img2img.redis.notifications import JobChangeListener

Record = TypeVar("Record")

# Longest wait that a request can ask for.
MAX_WAIT_S = 60
# A record is read again after this time even if no change was announced.
REREAD_S = 15.0
# Pause before reading again while Redis is unavailable.
OUTAGE_S = 0.5


def preferred_wait(prefer: str | None) -> int | None:
    """Return the seconds of `Prefer: wait=30` (RFC 7240), limited to MAX_WAIT_S."""
    found = re.search(r"(?:^|[,;\s])wait\s*=\s*\"?([0-9]{1,9})", prefer or "", re.IGNORECASE)
    return min(int(found[1]), MAX_WAIT_S) if found else None


def requested_wait(wait: float | None, prefer: str | None, response: Response) -> float:
    """Return the seconds to wait: those of the query, or else of `Prefer`, which the response then confirms."""
    if wait is not None:
        return wait
    preferred = preferred_wait(prefer)
    if preferred is not None:
        response.headers["Preference-Applied"] = f"wait={preferred}"
    return preferred or 0


async def wait_for_end(job_id: str, wait_s: float, queue: JobQueue, job_changes: JobChangeListener) -> JobRecord:
    """Return the job when it has ended, or in its state after `wait_s` seconds or when the process stops.

    Raises:
        NotFound, Gone, RedisError: The job cannot be read.
    """
    find = partial(queue.job_store.find, job_id)
    return await wait_until(lambda record: record.status.is_terminal, job_id, find, wait_s, job_changes)


async def wait_until(
    has_ended: Callable[[Record], bool],
    id: str,
    find: Callable[[], Record],
    wait_s: float,
    job_changes: JobChangeListener,
) -> Record:
    """Return the record of a job or a batch when it has ended, or after `wait_s` seconds or when the process stops.

    Args:
        find: Reads the record. Its errors are raised.
    """
    deadline = time.monotonic() + wait_s
    with job_changes.subscribe(id) as changed:
        record = await run_sync(find)
        while not has_ended(record) and (left_s := deadline - time.monotonic()) > 0:
            if job_changes.is_closed:
                break
            await wait_for_event(changed, min(left_s, REREAD_S))
            changed.clear()
            try:
                record = await run_sync(find)
            except RedisError:
                if time.monotonic() >= deadline or job_changes.is_closed:
                    raise
                await asyncio.sleep(OUTAGE_S)
        return record


async def wait_for_event(event: asyncio.Event, timeout_s: float) -> bool:
    """Wait until `event` is set; return False if it is not set within `timeout_s`."""
    with suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await event.wait()
    return event.is_set()
