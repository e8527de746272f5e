"""Yields the events of a job from its current state to its end, for a Server-Sent Events response."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import NamedTuple

from anyio.to_thread import run_sync
from redis.exceptions import RedisError

from img2img.domain.job import JobRecord, JobStatus
from img2img.errors import Gone, NotFound
from img2img.redis.job_queue import JobQueue
from img2img.redis.notifications import JobChangeListener
from img2img.redis.previews import REQUEST_TTL_S, Preview, Previews

from ..schemas.events import GoneEvent, JobStreamEvent, PreviewEvent, ProgressEvent, QueuedEvent
from ..schemas.responses import Job
from .eta import EtaEstimator
from .long_poll import OUTAGE_S, REREAD_S, wait_for_event

# Shortest time between two reads of a queue position. A position far back is read less often: it matters less.
QUEUE_POLL_S = 0.5
# A smaller change of an ETA is not sent: in seconds, and as a fraction of the ETA.
MIN_ETA_CHANGE_S, MIN_ETA_CHANGE = 5.0, 0.2


class StreamEvent(NamedTuple):
    """An event of a job's stream.

    Attributes:
        name: `event` on the wire.
        data: Payload.
        revision: Revision of the job, which is the event's `id`; None for previews and `gone`.
    """

    name: str
    data: JobStreamEvent
    revision: int | None = None


async def stream_job_events(
    job_id: str,
    last_seen_revision: int,
    queue: JobQueue,
    job_changes: JobChangeListener,
    eta: EtaEstimator,
    previews: Previews | None = None,
) -> AsyncIterator[StreamEvent]:
    """Yield the events of a job until it ends or is deleted, or the process stops.

    Args:
        last_seen_revision: Skip states up to this revision; the first event is the current state. -1: skip none.
        previews: Source of previews; None if the client did not ask for them.
    """
    latest: JobStreamEvent | None = None
    preview_reader = _PreviewReader(job_id, previews) if previews else None
    with job_changes.subscribe(job_id) as changed:
        while not job_changes.is_closed:
            changed.clear()
            dequeue_count = job_changes.dequeue_count
            try:
                record = await run_sync(queue.job_store.find, job_id)
                state = await run_sync(_state_event, record, eta)
            except (NotFound, Gone) as error:
                yield StreamEvent("gone", GoneEvent(id=job_id, code=error.code, message=error.message))
                return
            except RedisError:
                await asyncio.sleep(OUTAGE_S)
                await wait_for_event(changed, REREAD_S)
                continue
            if _is_worth_sending(state, latest):
                latest = state
                if record.revision > last_seen_revision or record.status is JobStatus.QUEUED:
                    yield StreamEvent(_state_name(record.status), state, record.revision)
            if record.status.is_terminal:
                return
            if preview_reader and (preview := await preview_reader.read(record.status)):
                yield StreamEvent("preview", PreviewEvent.from_preview(job_id, preview))
            position = state.queue_position if isinstance(state, QueuedEvent) else None
            timeout_s = min(REREAD_S, preview_reader.renew_in_s) if preview_reader else REREAD_S
            await _wait_for_change(changed, job_changes, dequeue_count, position, timeout_s)


def _state_name(status: JobStatus) -> str:
    return "progress" if status is JobStatus.RUNNING else status.value


def _state_event(record: JobRecord, eta: EtaEstimator) -> QueuedEvent | ProgressEvent | Job:
    """Return the event for the current state of a job. Blocks: queue positions are read from Redis."""
    if record.status is JobStatus.QUEUED:
        [estimate] = eta.estimate([record])
        return QueuedEvent.from_record(record, estimate)
    if record.status is JobStatus.RUNNING:
        return ProgressEvent.from_record(record)
    return Job.from_record(record)


def _is_worth_sending(event: JobStreamEvent, latest: JobStreamEvent | None) -> bool:
    """Whether `event` differs enough from the latest one; a client counts down the seconds of an ETA by itself."""
    if isinstance(event, QueuedEvent) and isinstance(latest, QueuedEvent) and event.eta_s and latest.eta_s:
        change_s = abs(event.eta_s - latest.eta_s)
        has_moved = event.queue_position != latest.queue_position
        return has_moved or change_s > max(MIN_ETA_CHANGE_S, MIN_ETA_CHANGE * latest.eta_s)
    return event != latest


async def _wait_for_change(
    changed: asyncio.Event, job_changes: JobChangeListener, dequeue_count: int, position: int | None, timeout_s: float
) -> None:
    """Wait until the job has changed, its queue position may have changed, or the timeout is over."""
    deadline = time.monotonic() + timeout_s
    poll_s = QUEUE_POLL_S * (1 + position / 10) if position else timeout_s
    while (left_s := deadline - time.monotonic()) > 0:
        if await wait_for_event(changed, min(left_s, poll_s)):
            return
        if position and job_changes.dequeue_count != dequeue_count:
            return


class _PreviewReader:
    """Reads the previews of one job, which workers make only while a client keeps requesting them."""

    def __init__(self, job_id: str, previews: Previews) -> None:
        self._job_id = job_id
        self._previews = previews
        self._latest: Preview | None = None
        self._renew_at = 0.0

    @property
    def renew_in_s(self) -> float:
        return self._renew_at - time.monotonic()

    async def read(self, status: JobStatus) -> Preview | None:
        """Renew the request for previews if it is due, and return a preview that was not returned before, if any."""
        with suppress(RedisError):
            if self.renew_in_s <= 0:
                # Set first, so that a request that fails is not repeated at once.
                self._renew_at = time.monotonic() + REQUEST_TTL_S / 2
                await run_sync(self._previews.request, self._job_id)
            preview = await run_sync(self._previews.latest, self._job_id) if status is JobStatus.RUNNING else None
            if preview and preview != self._latest:
                self._latest = preview
                return preview
        return None
