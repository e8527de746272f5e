"""Jobs: list, get, cancel and delete."""

from contextlib import suppress
from typing import Annotated

from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, Header, Query, Response

from img2img.domain.job import JobRecord, JobStatus
from img2img.erasure import Eraser
from img2img.errors import Deleted, Expired
from img2img.redis.job_store import Cursor
from img2img.redis.merged_pages import merge_pages

from ..dependencies import EtaDep, JobChangesDep, QueueDep, StoreDep, StoreThreadsDep, VisibleJobsDep
from ..http.query_parameters import CursorQuery, refuse_unknown_query
from ..openapi import operations as openapi
from ..progress.long_poll import MAX_WAIT_S, requested_wait, wait_for_end
from ..schemas.responses import Job, JobList, QueueEstimate
from .parameters import JobId

router = APIRouter(prefix="/jobs", tags=["jobs"])

StatusFilter = Annotated[JobStatus | None, Query(description="Only jobs with this status.")]
Wait = Annotated[
    float | None,
    Query(ge=0, le=MAX_WAIT_S, description="Respond when the job has ended, or after this many seconds."),
]
Prefer = Annotated[str | None, Header(description="`wait=30` is equivalent to `?wait=30`.", examples=["wait=30"])]
Limit = Annotated[int, Query(ge=1, le=100, description="Jobs per page.")]


@router.get(
    "", dependencies=[Depends(refuse_unknown_query)], operation_id="list_jobs", responses=openapi.problems(422, 503)
)
def list_jobs(
    visible: VisibleJobsDep,
    status: StatusFilter = None,
    cursor: CursorQuery = None,
    limit: Limit = 20,
) -> JobList:
    """List jobs, newest first. A page may have fewer than `limit` jobs if some have expired."""
    before = parse_cursor(cursor)
    pages: list[tuple[list[JobRecord], Cursor | None]] = []
    estimates: dict[str, QueueEstimate | None] = {}
    for cell in visible:
        records, last = cell.queue.job_store.page(status, before, limit)
        pages.append((records, last))
        estimates |= dict(zip((record.id for record in records), cell.eta.estimate(records), strict=True))
    records, last = merge_pages(pages, limit)
    jobs = [Job.from_record(record, estimates[record.id]) for record in records]
    return JobList(jobs=jobs, next_cursor=str(last) if last else None)


def parse_cursor(cursor: str | None) -> Cursor | None:
    """Return the position in a list of a cursor."""
    return Cursor.parse(cursor) if cursor else None


@router.get(
    "/{job_id}",
    dependencies=[Depends(refuse_unknown_query)],
    operation_id="get_job",
    responses=openapi.JOB | openapi.problems(404, 410, 422, 503),
)
async def get_job(
    job_id: JobId,
    queue: QueueDep,
    job_changes: JobChangesDep,
    eta: EtaDep,
    response: Response,
    wait: Wait = None,
    prefer: Prefer = None,
) -> Job:
    """Get the status, progress, resolved parameters and images of a job. With `wait`, respond when it has ended."""
    record = await wait_for_end(job_id, requested_wait(wait, prefer, response), queue, job_changes)
    return Job.from_record(record, *await run_sync(eta.estimate, [record]))


@router.post("/{job_id}/cancel", operation_id="cancel_job", responses=openapi.problems(404, 410, 503))
def cancel_job(job_id: JobId, queue: QueueDep) -> Job:
    """Cancel a job. A job that has already ended is returned unchanged."""
    queue.job_store.find(job_id)
    queue.cancel(job_id)
    return Job.from_record(queue.job_store.find(job_id))


@router.delete("/{job_id}", status_code=204, operation_id="delete_job", responses=openapi.problems(404, 503))
async def delete_job(job_id: JobId, queue: QueueDep, store: StoreDep, store_threads: StoreThreadsDep) -> None:
    """Delete a job with its parameters, results and inputs, after cancelling it if necessary.

    Images that were uploaded with `POST /images`, and inputs that another job needs, are kept. A webhook that is not
    delivered yet is discarded. Deleting a job again has no effect.
    """
    # After an error, a repeated request deletes the rest.
    with suppress(Deleted, Expired):
        await run_sync(queue.job_store.find, job_id)
    await store_threads.run(Eraser(queue, store).delete_job, job_id)
