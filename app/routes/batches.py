"""Batches of jobs: submit, list, follow, cancel, download and delete."""

from collections.abc import AsyncIterator
from typing import Annotated

from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, HTTPException, Path, Query, Request, Response
from fastapi.responses import StreamingResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent

from img2img.domain.job import JobRecord, JobStatus
from img2img.domain.job_batch import BatchRecord
from img2img.domain.text_forms import Matches
from img2img.erasure import DELETED_AT_ONCE, Eraser
from img2img.errors import Deleted, Expired
from img2img.redis.job_queue import JobQueue
from img2img.redis.job_store import Cursor
from img2img.redis.merged_pages import merge_pages
from img2img.stored_images import read_result

from ..dependencies import (
    DecodersDep,
    EtaDep,
    JobChangesDep,
    QueueDep,
    ServicesDep,
    StoreDep,
    StoreThreadsDep,
    VisibleJobs,
    VisibleJobsDep,
)
from ..http.query_parameters import EMPTY_IS_ABSENT, FROM_PREVIOUS_PAGE, CursorQuery, refuse_unknown_query
from ..openapi import batches as openapi
from ..openapi.operations import problems
from ..progress import batch_events
from ..progress.batch_archive import BatchArchive, format_of
from ..progress.image_formats import convert_image, etag_suffix
from ..progress.long_poll import requested_wait, wait_until
from ..schemas.batches import Batch, BatchList
from ..schemas.responses import ImageFormat, Job, JobList
from ..submission.batch_submit import BatchSubmitterDep
from .body_parser import BatchBodyDep
from .events import RETRY_MS, LastEventId
from .jobs import Limit, Prefer, StatusFilter, Wait, parse_cursor
from .results import Format, Quality

router = APIRouter(prefix="/batches", tags=["batches"])

BatchId = Annotated[str, Path(description="The `id` of the batch.")]
IndexCursor = Annotated[
    Annotated[str, Matches(r"^[0-9]{0,6}$", FROM_PREVIOUS_PAGE)] | None,
    EMPTY_IS_ABSENT,
    Query(alias="cursor", description="`next_cursor` of the previous page."),
]


@router.post(
    "",
    dependencies=[Depends(refuse_unknown_query)],
    status_code=202,
    operation_id="submit_batch",
    openapi_extra={"requestBody": openapi.BODY},
    responses=openapi.SUBMITTED | problems(400, 410, 413, 415, 422, 429, 500, 503, 507),
)
async def submit_batch(
    submitter: BatchSubmitterDep, body: BatchBodyDep, response: Response, services: ServicesDep
) -> Batch:
    """Queue up to 10,000 jobs as one batch.

    The body is JSON lines, each a request of `POST /img2img`, or one request with values to vary. All requests are
    checked before the first job is queued: if one is refused, the errors name it, as `items.3.strength`, and no job is
    queued. Images are best sent to `POST /images` before, and named by their `sha256`.
    """
    submitted = await submitter.submit(body.items, body.webhook, body.fingerprint)
    response.headers.update(submitted.headers)
    return await _view(submitted.record, services.queue, services.eta)


@router.get("", dependencies=[Depends(refuse_unknown_query)], operation_id="list_batches", responses=problems(422, 503))
async def list_batches(visible: VisibleJobsDep, cursor: CursorQuery = None, limit: Limit = 20) -> BatchList:
    """List batches, newest first."""
    pages: list[tuple[list[BatchRecord], Cursor | None]] = []
    cell_of: dict[str, VisibleJobs] = {}
    for cell in visible:
        pages.append(await run_sync(cell.queue.batches.page, parse_cursor(cursor), limit))
        cell_of |= {record.id: cell for record in pages[-1][0]}
    records, last = merge_pages(pages, limit)
    batches = [await _view(record, cell_of[record.id].queue, cell_of[record.id].eta) for record in records]
    return BatchList(batches=batches, next_cursor=str(last) if last else None)


@router.get(
    "/{batch_id}",
    dependencies=[Depends(refuse_unknown_query)],
    operation_id="get_batch",
    responses=openapi.BATCH | problems(404, 410, 422, 503),
)
async def get_batch(
    batch_id: BatchId,
    queue: QueueDep,
    job_changes: JobChangesDep,
    eta: EtaDep,
    response: Response,
    wait: Wait = None,
    prefer: Prefer = None,
) -> Batch:
    """Get the status of a batch and the number of its jobs by status. With `wait`, respond when it has ended."""
    record = await wait_until(
        lambda record: record.has_ended,
        batch_id,
        lambda: queue.batches.find(batch_id),
        requested_wait(wait, prefer, response),
        job_changes,
    )
    return await _view(record, queue, eta)


@router.get(
    "/{batch_id}/jobs",
    dependencies=[Depends(refuse_unknown_query)],
    operation_id="list_batch_jobs",
    responses=problems(404, 410, 422, 503),
)
def list_batch_jobs(
    batch_id: BatchId,
    queue: QueueDep,
    eta: EtaDep,
    status: StatusFilter = None,
    cursor: IndexCursor = None,
    limit: Limit = 20,
) -> JobList:
    """List the jobs of a batch in its order."""
    queue.batches.find(batch_id)
    records, next_index = _jobs_of(queue, batch_id, status, int(cursor or 0), limit)
    jobs = [Job.from_record(*pair) for pair in zip(records, eta.estimate(records), strict=True)]
    return JobList(jobs=jobs, next_cursor=None if next_index is None else str(next_index))


def _jobs_of(
    queue: JobQueue, batch_id: str, status: JobStatus | None, start: int, limit: int
) -> tuple[list[JobRecord], int | None]:
    """Return jobs of a batch from an index on, and the index of the next page if there is one."""
    found: list[JobRecord] = []
    while page := queue.batches.job_ids(batch_id, start, 100):
        for (_, index), record in zip(page, queue.job_store.get_all([job_id for job_id, _ in page]), strict=True):
            if record is None or status not in (None, record.status):
                continue
            if len(found) == limit:
                return found, index
            found.append(record)
        start = page[-1][1] + 1
    return found, None


async def _position(batch_id: BatchId, queue: QueueDep, response: Response, last_event_id: LastEventId = None) -> int:
    """Return the number of ended jobs that the client knows. Raises NotFound, Gone or HTTPException.

    Status 204 makes a browser stop reconnecting.
    """
    record = await run_sync(queue.batches.find, batch_id)
    position = last_event_id or 0
    if record.has_ended and position and not await run_sync(queue.batches.ended_job_ids, batch_id, position - 1, 1):
        raise HTTPException(204)
    response.headers["Cache-Control"] = "no-store"
    return position


@router.get(
    "/{batch_id}/events",
    operation_id="stream_batch_events",
    response_class=EventSourceResponse,
    responses=openapi.EVENTS | problems(404, 410, 422, 503),
)
async def stream_batch_events(
    batch_id: BatchId,
    position: Annotated[int, Depends(_position)],
    queue: QueueDep,
    job_changes: JobChangesDep,
    eta: EtaDep,
) -> AsyncIterator[ServerSentEvent]:
    """Stream the batch as Server-Sent Events: a `job` event for each job that has ended, in the order of their ends.

    `progress` follows the number of jobs by status. The last event is `ended` with the batch, `gone` if the batch was
    deleted, or `error` with a problem document if the API key was revoked or has expired. A client that reconnects with
    `Last-Event-ID` gets the jobs that have ended since.
    """
    yield ServerSentEvent(retry=RETRY_MS)
    async for event in batch_events.stream_batch_events(batch_id, position, queue, job_changes, eta):
        event_id = None if event.position is None else str(event.position)
        yield ServerSentEvent(event=event.name, data=event.data, id=event_id)
    if job_changes.is_closed:
        yield ServerSentEvent(comment="the server is stopping; reconnect", retry=RETRY_MS)


@router.get(
    "/{batch_id}/results",
    dependencies=[Depends(refuse_unknown_query)],
    operation_id="get_batch_results",
    response_class=Response,
    responses=openapi.ARCHIVE | problems(404, 410, 422, 503),
)
async def get_batch_results(
    request: Request,
    batch_id: BatchId,
    queue: QueueDep,
    store: StoreDep,
    store_threads: StoreThreadsDep,
    decoders: DecodersDep,
    image_format: Format = ImageFormat.PNG,
    quality: Quality = None,
) -> Response:
    """Download the images of all jobs that have succeeded so far, as a zip archive.

    Files have the names of the requests, or their positions. `jobs.jsonl` in it lists all jobs with their parameters,
    files and errors.
    """
    etag_suffix(image_format, quality)  # refuses a quality of PNGs
    await run_sync(queue.batches.find, batch_id)
    headers = {"Content-Disposition": f'attachment; filename="{batch_id}.zip"', "Cache-Control": "no-store"}
    if request.method == "HEAD":
        return Response(media_type="application/zip", headers=headers)

    async def read(record: JobRecord, index: int) -> bytes:
        png = await store_threads.run(read_result, store, queue.job_store, record, index)
        own_format = format_of(record, image_format)
        return png if own_format is ImageFormat.PNG else await decoders.convert(convert_image, png, own_format, quality)

    archive = BatchArchive(queue, read, image_format)
    return StreamingResponse(archive.parts(batch_id), media_type="application/zip", headers=headers)


@router.post("/{batch_id}/cancel", operation_id="cancel_batch", responses=problems(404, 410, 503))
async def cancel_batch(batch_id: BatchId, queue: QueueDep, eta: EtaDep) -> Batch:
    """Cancel the jobs of a batch that have not ended."""
    record = await run_sync(queue.batches.find, batch_id)
    if not record.has_ended:
        await run_sync(_cancel, queue, batch_id)
        record = await run_sync(queue.batches.find, batch_id)
    return await _view(record, queue, eta)


def _cancel(queue: JobQueue, batch_id: str) -> None:
    queue.batches.mark_cancelled(batch_id)
    # The last jobs first: the others are then not moved forward in the queue again and again.
    done = 0
    while job_ids := queue.batches.last_job_ids(batch_id, DELETED_AT_ONCE, skip=done):
        queue.cancel_jobs(job_ids)
        done += len(job_ids)


@router.delete("/{batch_id}", status_code=204, operation_id="delete_batch", responses=problems(404, 503))
async def delete_batch(batch_id: BatchId, queue: QueueDep, store: StoreDep, store_threads: StoreThreadsDep) -> None:
    """Delete a batch with its jobs, their parameters, results and inputs, after cancelling it if necessary.

    Deleting a batch again has no effect.
    """
    try:
        await run_sync(queue.batches.find, batch_id)
    except (Deleted, Expired):
        return
    await store_threads.run(Eraser(queue, store).delete_batch, batch_id, must_finish=True)


async def _view(record: BatchRecord, queue: JobQueue, eta: EtaDep) -> Batch:
    return Batch.from_record(record, await run_sync(batch_events.estimated_s, record, queue, eta))
