"""Yields the events of a batch: each job that has ended, and the counts of the others."""

import asyncio
from collections.abc import AsyncIterator
from typing import NamedTuple

from anyio.to_thread import run_sync
from redis.exceptions import RedisError

from img2img.domain.job import JobRecord
from img2img.domain.job_batch import BatchRecord
from img2img.errors import Gone, NotFound
from img2img.redis.job_queue import JobQueue
from img2img.redis.notifications import JobChangeListener

from ..schemas.batches import Batch, BatchProgressEvent
from ..schemas.events import GoneEvent
from ..schemas.responses import Job
from .eta import EtaEstimator
from .long_poll import OUTAGE_S, REREAD_S, wait_for_event

# Shortest time between two reads of a batch: its jobs may end many times a second.
LEAST_S = 0.25
# Ended jobs that are read at once.
PAGE = 100
# Jobs at the end of a batch that are asked for their place in the queue.
LAST_JOBS = 3


class BatchStreamEvent(NamedTuple):
    """An event of a batch's stream.

    Attributes:
        name: `event` on the wire.
        data: Payload.
        position: Number of ended jobs with this one, which is the event's `id`; None for `progress` and `gone`.
    """

    name: str
    data: Batch | BatchProgressEvent | Job | GoneEvent
    position: int | None = None


def estimated_s(record: BatchRecord, queue: JobQueue, eta: EtaEstimator) -> float | None:
    """Return the seconds until the last job of a batch ends, by its place in the queue. Raises RedisError."""
    if not record.counts.queued:
        return None
    last = queue.job_store.get_all(queue.batches.last_job_ids(record.id, LAST_JOBS))
    estimates = eta.estimate([job for job in last if job])
    return max((one.eta_s for one in estimates if one and one.eta_s is not None), default=None)


def ended_event(position: int) -> int:
    """Return the `id` of the last event of a batch with so many ended jobs."""
    return position + 1


async def stream_batch_events(
    batch_id: str, position: int, queue: JobQueue, job_changes: JobChangeListener, eta: EtaEstimator
) -> AsyncIterator[BatchStreamEvent]:
    """Yield the events of a batch until it ends or is deleted, or the process stops.

    Args:
        position: Number of ended jobs that the client knows.
    """
    latest: BatchProgressEvent | None = None
    with job_changes.subscribe(batch_id) as changed:
        while not job_changes.is_closed:
            changed.clear()
            try:
                record = await run_sync(queue.batches.find, batch_id)
                ended = await run_sync(_ended_jobs, queue, batch_id, position)
                eta_s = await run_sync(estimated_s, record, queue, eta)
            except (NotFound, Gone) as error:
                yield BatchStreamEvent("gone", GoneEvent(id=batch_id, code=error.code, message=error.message))
                return
            except RedisError:
                await asyncio.sleep(OUTAGE_S)
                await wait_for_event(changed, REREAD_S)
                continue
            for job in ended:
                position += 1
                # A job that was deleted has no record.
                if job is not None:
                    yield BatchStreamEvent("job", Job.from_record(job), position)
            if len(ended) == PAGE:
                continue
            if record.has_ended:
                yield BatchStreamEvent("ended", Batch.from_record(record), ended_event(position))
                return
            progress = BatchProgressEvent(
                id=batch_id, status=record.status, total=record.total, counts=record.counts, eta_s=eta_s
            )
            if latest is None or progress.model_copy(update={"eta_s": latest.eta_s}) != latest:
                latest = progress
                yield BatchStreamEvent("progress", progress)
            await asyncio.sleep(LEAST_S)
            await wait_for_event(changed, REREAD_S)


def _ended_jobs(queue: JobQueue, batch_id: str, position: int) -> list[JobRecord | None]:
    return queue.job_store.get_all(queue.batches.ended_job_ids(batch_id, position, PAGE))
