"""The events of a job, as a stream."""

from collections.abc import AsyncIterator
from typing import Annotated

from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, Header, HTTPException, Query
from fastapi.responses import StreamingResponse
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from pydantic import Field

from ..dependencies import JobChangesDep, JobReadsDep, QueueDep
from ..http.query_parameters import EMPTY_IS_ABSENT
from ..openapi import operations as openapi
from ..progress.event_stream import StreamEvent
from ..progress.event_stream import stream_job_events as job_events
from .parameters import JobId

router = APIRouter(prefix="/jobs", tags=["jobs"])

# Time after which a browser reconnects.
RETRY_MS = 2000
# The events are private to the caller. Nginx should not collect them before it sends them on.
HEADERS = {"Cache-Control": "no-cache, no-store", "X-Accel-Buffering": "no"}

LastEventId = Annotated[
    Annotated[int, Field(ge=0)] | None,
    EMPTY_IS_ABSENT,
    Header(alias="Last-Event-ID", description="`id` of the last event received. Browsers send it on reconnect."),
]
PreviewQuery = Annotated[bool, Query(description="Also send previews of the image.")]


class EventStreamResponse(StreamingResponse):
    """A response of Server-Sent Events.

    FastAPI's own passes each event through two queues, with a timer for each.
    """

    media_type = "text/event-stream"


async def _last_seen_revision(job_id: JobId, queue: QueueDep, last_event_id: LastEventId = None) -> int:
    """Return the revision to resume from, before the response starts. Raises NotFound, Gone or HTTPException.

    Status 204 makes a browser stop reconnecting.
    """
    record = await run_sync(queue.job_store.find, job_id)
    last_seen = -1 if last_event_id is None else last_event_id
    if record.status.is_terminal and record.revision <= last_seen:
        raise HTTPException(204)
    return last_seen


@router.get(
    "/{job_id}/events",
    operation_id="stream_job_events",
    response_class=EventStreamResponse,
    responses=openapi.EVENTS | openapi.problems(404, 410, 422, 503),
)
async def stream_job_events(
    job_id: JobId,
    last_seen_revision: Annotated[int, Depends(_last_seen_revision)],
    reads: JobReadsDep,
    job_changes: JobChangesDep,
    preview: PreviewQuery = False,
) -> EventStreamResponse:
    """Stream the job as Server-Sent Events, from its current state to its end.

    `queued` is repeated when the queue position changes, or the ETA changes substantially; `progress` follows
    denoising steps. The last event is `succeeded`, `failed` or `cancelled` with the whole job, `gone` if the job was
    deleted, or `error` with a problem document if the API key was revoked or has expired. Every event carries the
    current state, so a client that reconnects has missed nothing after the first event. With `preview=true` there are
    also `preview` events: small previews of the image.
    """

    async def encoded() -> AsyncIterator[bytes]:
        yield format_sse_event(retry=RETRY_MS)
        async for event in job_events(job_id, last_seen_revision, reads, job_changes, with_previews=preview):
            yield _encode(event) if event else KEEPALIVE_COMMENT
        if job_changes.is_closed:
            yield format_sse_event(comment="the server is stopping; reconnect", retry=RETRY_MS)

    return EventStreamResponse(encoded(), headers=HEADERS)


def _encode(event: StreamEvent) -> bytes:
    event_id = "" if event.revision is None else f"id: {event.revision}\n"
    return f"event: {event.name}\ndata: {event.data}\n{event_id}\n".encode()
