"""Yields the events of a job from its current state to its end, for a Server-Sent Events response."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import NamedTuple

from redis.exceptions import RedisError

from img2img.domain.job import JobStatus
from img2img.errors import Gone, NotFound
from img2img.redis.notifications import JobChangeListener
from img2img.redis.previews import REQUEST_TTL_S

from ..schemas.events import GoneEvent, ProgressEvent, QueuedEvent
from ..schemas.responses import Job
from .job_reads import JobReads
from .long_poll import OUTAGE_S, REREAD_S, wait_for_event

# Shortest time between two reads of a queue position. A position far back is read less often: it matters less.
QUEUE_POLL_S = 0.5
# A smaller change of an ETA is not sent: in seconds, and as a fraction of the ETA.
MIN_ETA_CHANGE_S, MIN_ETA_CHANGE = 5.0, 0.2
# Longest time without an event or a comment, so that no proxy takes the connection for idle.
PING_S = 15.0


class StreamEvent(NamedTuple):
    """An event of a job's stream.

    Attributes:
        name: `event` on the wire.
        data: Payload as JSON.
        revision: Revision of the job, which is the event's `id`; None for previews and `gone`.
    """

    name: str
    data: str
    revision: int | None = None


async def stream_job_events(
    job_id: str,
    last_seen_revision: int,
    reads: JobReads,
    job_changes: JobChangeListener,
    *,
    with_previews: bool = False,
) -> AsyncIterator[StreamEvent | None]:
    """Yield the events of a job until it ends or is deleted, or the process stops; None after PING_S without one.

    Args:
        last_seen_revision: Skip states up to this revision; the first event is the current state. -1: skip none.
    """
    latest: QueuedEvent | ProgressEvent | Job | None = None
    preview_reader = _PreviewReader(job_id, reads) if with_previews else None
    sent_at = time.monotonic()
    with job_changes.subscribe(job_id) as changed:
        while not job_changes.is_closed:
            if time.monotonic() - sent_at >= PING_S:
                sent_at = time.monotonic()
                yield None
            changed.clear()
            dequeue_count = job_changes.dequeue_count
            try:
                state = await reads.state(job_id)
            except (NotFound, Gone) as error:
                gone = GoneEvent(id=job_id, code=error.code, message=error.message)
                yield StreamEvent("gone", gone.model_dump_json())
                return
            except RedisError:
                await asyncio.sleep(OUTAGE_S)
                await wait_for_event(changed, min(REREAD_S, PING_S))
                continue
            if _is_worth_sending(state.event, latest):
                latest = state.event
                if state.revision > last_seen_revision or state.status is JobStatus.QUEUED:
                    sent_at = time.monotonic()
                    yield StreamEvent(state.name, state.data, state.revision)
            if state.status.is_terminal:
                return
            if preview_reader and (preview := await preview_reader.read(state.status)):
                yield StreamEvent("preview", preview)
            position = state.event.queue_position if isinstance(state.event, QueuedEvent) else None
            timeout_s = min(REREAD_S, PING_S, preview_reader.renew_in_s if preview_reader else REREAD_S)
            await _wait_for_change(changed, job_changes, dequeue_count, position, timeout_s)


def _is_worth_sending(
    event: QueuedEvent | ProgressEvent | Job, latest: QueuedEvent | ProgressEvent | Job | None
) -> bool:
    """Whether `event` differs enough from the latest one; a client counts down the seconds of an ETA by itself."""
    if isinstance(event, QueuedEvent) and isinstance(latest, QueuedEvent) and event.eta_s and latest.eta_s:
        change_s = abs(event.eta_s - latest.eta_s)
        has_moved = event.queue_position != latest.queue_position
        return has_moved or change_s > max(MIN_ETA_CHANGE_S, MIN_ETA_CHANGE * latest.eta_s)
    return event is not latest and event != latest


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

    def __init__(self, job_id: str, reads: JobReads) -> None:
        self._job_id = job_id
        self._reads = reads
        self._latest: str | None = None
        self._renew_at = 0.0

    @property
    def renew_in_s(self) -> float:
        return self._renew_at - time.monotonic()

    async def read(self, status: JobStatus) -> str | None:
        """Renew the request for previews if it is due, and return a preview that was not returned before, if any."""
        with suppress(RedisError):
            if self.renew_in_s <= 0:
                # Set first, so that a request that fails is not repeated at once.
                self._renew_at = time.monotonic() + REQUEST_TTL_S / 2
                await self._reads.request_previews(self._job_id)
            preview = await self._reads.preview(self._job_id) if status is JobStatus.RUNNING else None
            if preview and preview != self._latest:
                self._latest = preview
                return preview
        return None
