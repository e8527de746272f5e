"""A job, and lists of them."""

import re
from typing import Annotated

from anyio.to_thread import run_sync
from fastapi import APIRouter, Header, Path, Query, Response

from img2img.domain.job import JobStatus
from img2img.domain.spec import result_keys
from img2img.errors import Deleted, Expired
from img2img.redis.job_store import Cursor

from ..dependencies import EtaDep, JobChangesDep, QueueDep, StoreDep
from ..openapi import operations as openapi
from ..progress.long_poll import wait_for_end
from ..schemas.responses import Job, JobList

router = APIRouter(prefix="/jobs", tags=["jobs"])

JobId = Annotated[str, Path(description="The `id` of the job.")]
StatusFilter = Annotated[JobStatus | None, Query(description="Only jobs in this state.")]
CursorQuery = Annotated[
    str | None,
    Query(pattern=r"^[0-9]{1,11}(\.[0-9]{1,9})?-[0-9a-f]{32}$", description="The `next_cursor` of the page before."),
]
MAX_WAIT_S = 60
Wait = Annotated[
    float | None,
    Query(ge=0, le=MAX_WAIT_S, description="Answer when the job has ended, or after so many seconds as it is then."),
]
Prefer = Annotated[str | None, Header(description="`wait=30` does what `?wait=30` does.", examples=["wait=30"])]
Limit = Annotated[int, Query(ge=1, le=100, description="Jobs of one page.")]


@router.get("", operation_id="list_jobs", responses=openapi.problems(422, 503))
def list_jobs(
    queue: QueueDep,
    eta: EtaDep,
    status: StatusFilter = None,
    cursor: CursorQuery = None,
    limit: Limit = 20,
) -> JobList:
    """The jobs, newest first. A page may be shorter than asked for, where jobs went meanwhile."""
    records, last = queue.job_store.page(status, _place(cursor), limit)
    next_cursor = f"{last.created_at!r}-{last.job_id}" if last else None
    jobs = [Job.from_record(*pair) for pair in zip(records, eta.estimate(records), strict=True)]
    return JobList(jobs=jobs, next_cursor=next_cursor)


def _place(cursor: str | None) -> Cursor | None:
    if cursor is None:
        return None
    created_at, _, job_id = cursor.partition("-")
    return Cursor(float(created_at), job_id)


@router.get("/{job_id}", operation_id="get_job", responses=openapi.JOB | openapi.problems(404, 410, 422, 503))
async def get_job(
    job_id: JobId,
    queue: QueueDep,
    feed: JobChangesDep,
    eta: EtaDep,
    response: Response,
    wait: Wait = None,
    prefer: Prefer = None,
) -> Job:
    """The job: its state, its progress, its parameters as resolved, its images. With `wait`: when it has ended."""
    preferred = _preferred_wait(prefer) if wait is None else None
    if preferred is not None:
        response.headers["Preference-Applied"] = f"wait={preferred}"
    record = await wait_for_end(job_id, wait or preferred or 0, queue, feed)
    return Job.from_record(record, *await run_sync(eta.estimate, [record]))


def _preferred_wait(prefer: str | None) -> int | None:
    """The seconds of `Prefer: wait=30` (RFC 7240), as far as they are granted."""
    found = re.search(r"(?:^|[,;\s])wait\s*=\s*\"?([0-9]{1,9})", prefer or "", re.IGNORECASE)
    return min(int(found[1]), MAX_WAIT_S) if found else None


@router.post("/{job_id}/cancel", operation_id="cancel_job", responses=openapi.problems(404, 410, 503))
def cancel_job(job_id: JobId, queue: QueueDep) -> Job:
    """Cancels a job that has not ended; one that has stays as it is."""
    queue.job_store.find(job_id)
    queue.cancel(job_id)
    return Job.from_record(queue.job_store.find(job_id))


@router.delete("/{job_id}", status_code=204, operation_id="delete_job", responses=openapi.problems(404, 503))
def delete_job(job_id: JobId, queue: QueueDep, store: StoreDep) -> None:
    """Deletes the job and its pictures, cancelling it first if it has not ended. To delete it again changes nothing."""
    try:
        queue.job_store.find(job_id)
    except (Deleted, Expired):
        return
    queue.delete(job_id)
    store.delete(*result_keys(job_id))
