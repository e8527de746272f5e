"""A job as it goes on: waiting for its end, and telling its story as Server-Sent Events."""

import asyncio
import math
import time
from collections.abc import AsyncIterator
from contextlib import suppress

from anyio.to_thread import run_sync
from pydantic import BaseModel
from redis.exceptions import RedisError

from img2img.domain.job import JobRecord, JobStatus
from img2img.errors import Gone, NotFound
from img2img.redis.job_queue import JobQueue
from img2img.redis.notifications import JobChangeListener
from img2img.redis.previews import WATCH_S, Preview, Previews

from ..schemas.responses import GoneEvent, Job, PreviewEvent, ProgressEvent, QueuedEvent
from .eta import EtaEstimator

REREAD_S = 15.0  # a record is read again after this even if nothing was heard of it
KEEPALIVE_S = 15.0  # a stream is never silent for longer
OUTAGE_S = 0.5  # between two tries to read while Redis is away
QUEUE_LOOK_S = 0.5  # how often at most a place in the queue is looked up; far back less often, for it matters less
MINOR_S, MINOR = 5.0, 0.2  # a change of an ETA by less, in seconds or as a part of it, is no news

RETRY = b"retry: 2000\n\n"  # how long a browser waits before it connects again, in ms
KEEPALIVE = b": still here\n\n"


async def wait_for_end(job_id: str, wait_s: float, queue: JobQueue, feed: JobChangeListener) -> JobRecord:
    """The job when it has ended, or as it is after wait_s seconds. Raises NotFound, Gone or RedisError."""
    give_up_at = time.monotonic() + wait_s
    with feed.subscribe(job_id) as changed:
        record = await run_sync(queue.job_store.find, job_id)
        while not record.status.is_terminal and (left_s := give_up_at - time.monotonic()) > 0:
            await _until(changed, min(left_s, REREAD_S))
            changed.clear()
            try:
                record = await run_sync(queue.job_store.find, job_id)
            except RedisError:
                if time.monotonic() >= give_up_at:
                    raise
                await asyncio.sleep(OUTAGE_S)
        return record


async def stream_job_events(
    job_id: str,
    seen: int,
    queue: JobQueue,
    feed: JobChangeListener,
    forecaster: EtaEstimator,
    previews: Previews | None = None,
) -> AsyncIterator[bytes]:
    """The events of a job until its end. seen: the revision that the client knows; what it missed since is told by the
    job's present state, which comes first. previews: where to ask for previews; None: the client wants none."""
    yield RETRY
    told: BaseModel | None = None
    shown: Preview | None = None
    wish_at = 0.0 if previews else math.inf  # when previews are to be asked for again
    spoke_at = time.monotonic()
    with feed.subscribe(job_id) as changed:
        while True:
            changed.clear()
            departures = feed.dequeue_count
            event: BaseModel | None = None
            try:
                record = await run_sync(queue.job_store.find, job_id)
                event = await run_sync(_event, record, forecaster)
                if previews and time.monotonic() >= wish_at:
                    await run_sync(previews.request, job_id)
                    wish_at = time.monotonic() + WATCH_S / 2
            except (NotFound, Gone) as error:
                yield _frame("gone", GoneEvent(id=job_id, code=error.code, message=error.message))
                return
            except RedisError:
                await asyncio.sleep(OUTAGE_S)
            if event is not None and _is_news(event, told):
                told = event
                if record.revision > seen or record.status is JobStatus.QUEUED:
                    yield _frame(_NAMES.get(record.status, record.status.value), event, record.revision)
                    spoke_at = time.monotonic()
                if record.status.is_terminal:
                    return
            if previews and isinstance(event, ProgressEvent):
                with suppress(RedisError):
                    preview = await run_sync(previews.latest, job_id)
                    if preview and preview != shown:
                        shown = preview
                        yield _frame("preview", PreviewEvent.of(job_id, preview))
                        spoke_at = time.monotonic()
            position = event.queue_position if isinstance(event, QueuedEvent) else None
            await _until_worth_a_look(changed, feed, departures, position, min(spoke_at + KEEPALIVE_S, wish_at))
            if time.monotonic() >= spoke_at + KEEPALIVE_S:
                yield KEEPALIVE
                spoke_at = time.monotonic()


_NAMES = {JobStatus.RUNNING: "progress"}


def _event(record: JobRecord, forecaster: EtaEstimator) -> BaseModel:
    """What there is to say of a job. On a thread: a place in the queue is asked of Redis."""
    if record.status is JobStatus.QUEUED:
        [forecast] = forecaster.of([record])
        position, eta_s = (forecast.queue_position, forecast.eta_s) if forecast else (0, None)  # None: just taken
        return QueuedEvent(id=record.id, queue_position=position, eta_s=eta_s)
    if record.status is JobStatus.RUNNING:
        return ProgressEvent.of(record)
    return Job.of(record)


def _is_news(event: BaseModel, told: BaseModel | None) -> bool:
    """Whether a client should hear of it; one that knows the ETA counts the seconds itself."""
    if isinstance(event, QueuedEvent) and isinstance(told, QueuedEvent) and event.eta_s and told.eta_s:
        surprise_s = abs(event.eta_s - told.eta_s)
        return event.queue_position != told.queue_position or surprise_s > max(MINOR_S, MINOR * told.eta_s)
    return event != told


async def _until_worth_a_look(
    changed: asyncio.Event, feed: JobChangeListener, departures: int, position: int | None, until: float
) -> None:
    """Until the job has changed, its place in the queue may have, or `until`."""
    look_s = QUEUE_LOOK_S * (1 + position / 10) if position else REREAD_S
    while (left_s := until - time.monotonic()) > 0:
        if await _until(changed, min(left_s, look_s)) or (position and feed.dequeue_count != departures):
            return


async def _until(changed: asyncio.Event, timeout_s: float) -> bool:
    with suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await changed.wait()
    return changed.is_set()


def _frame(name: str, data: BaseModel, revision: int | None = None) -> bytes:
    ident = f"id: {revision}\n" if revision is not None else ""
    return f"event: {name}\n{ident}data: {data.model_dump_json()}\n\n".encode()
