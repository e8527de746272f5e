"""Following a job without polling: one long answer, or a stream of events."""

from typing import Annotated

from anyio.to_thread import run_sync
from fastapi import APIRouter, Header, Path, Query, Response
from starlette.responses import StreamingResponse

from ..dependencies import EtaDep, JobChangesDep, PreviewsDep, QueueDep
from ..openapi import document as openapi
from ..progress.event_stream import stream_job_events

router = APIRouter(prefix="/jobs", tags=["jobs"])

JobId = Annotated[str, Path(description="The `id` of the job.")]
LastEventId = Annotated[
    int | None,
    Header(alias="Last-Event-ID", ge=0, description="The last `id` that the client got. Browsers send it."),
]


PreviewQuery = Annotated[bool, Query(description="Also show small pictures of the image as it forms.")]


@router.get(
    "/{job_id}/events",
    operation_id="stream_job_events",
    response_class=Response,
    responses=openapi.EVENTS | openapi.problems(404, 410, 422, 503),
)
async def get_job_events(
    job_id: JobId,
    queue: QueueDep,
    feed: JobChangesDep,
    forecaster: EtaDep,
    previews: PreviewsDep,
    last_event_id: LastEventId = None,
    preview: PreviewQuery = False,
) -> Response:
    """The job as Server-Sent Events, from what it is now to its end.

    `queued` comes again when the place in the queue changes, or the ETA does a lot; `progress` at denoising steps. Then
    comes one of `succeeded`, `failed` and `cancelled` with the whole job, and the stream ends. An event tells the job
    as it is, so a client that was away gets what it missed in the first one. With `preview=true` there are also
    `preview` events: a small picture of the image as it forms.
    """
    record = await run_sync(queue.job_store.find, job_id)
    seen = -1 if last_event_id is None else last_event_id
    if record.status.is_terminal and record.revision <= seen:
        return Response(status_code=204)  # tells a browser not to connect again
    return StreamingResponse(
        stream_job_events(job_id, seen, queue, feed, forecaster, previews if preview else None),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},  # nginx would hold events back
    )
