"""A job and its pictures."""

from typing import Annotated

from fastapi import APIRouter, Header, Path, Response

from app import openapi
from app.contract.errors import Gone, NotFound, NotReady
from app.contract.job import JobRecord, JobStatus
from app.contract.spec import result_key
from app.contract.store import Store
from app.deps import QueueDep, StoreDep
from app.schemas import JobView

router = APIRouter(prefix="/jobs/{job_id}", tags=["jobs"])

JobId = Annotated[str, Path(description="The `id` of the job.")]
Index = Annotated[int, Path(ge=0, description="Which image, from 0.")]
IfNoneMatch = Annotated[str | None, Header(description="ETags that the client already has.")]


@router.get("", operation_id="get_job", responses=openapi.problems(404, 503))
def get_job(job_id: JobId, queue: QueueDep) -> JobView:
    """The job: its state, its progress, its parameters as resolved, its images."""
    return JobView.of(_found(queue.records.get(job_id), job_id))


@router.post("/cancel", operation_id="cancel_job", responses=openapi.problems(404, 503))
def cancel_job(job_id: JobId, queue: QueueDep) -> JobView:
    """Cancels a job that has not ended; one that has stays as it is."""
    return JobView.of(_found(queue.cancel(job_id), job_id))


@router.head("/images/{index}", include_in_schema=False)
@router.get(
    "/images/{index}",
    operation_id="get_image",
    response_class=Response,
    responses=openapi.PNG_IMAGE | openapi.problems(404, 409, 410, 422, 503),
)
def get_image(
    job_id: JobId, index: Index, queue: QueueDep, store: StoreDep, if_none_match: IfNoneMatch = None
) -> Response:
    """One result as a PNG. It never changes: its ETag is its sha256."""
    return _image(_found(queue.records.get(job_id), job_id), index, store, if_none_match)


@router.head("/result", include_in_schema=False)
@router.get(
    "/result",
    operation_id="get_result",
    response_class=Response,
    responses=openapi.PNG_IMAGE | openapi.problems(404, 409, 410, 503),
)
def get_result(job_id: JobId, queue: QueueDep, store: StoreDep, if_none_match: IfNoneMatch = None) -> Response:
    """The first image of the job."""
    return _image(_found(queue.records.get(job_id), job_id), 0, store, if_none_match)


def _found(record: JobRecord | None, job_id: str) -> JobRecord:
    if record is None:
        raise NotFound(f"There is no job {job_id[:80]}.")
    return record


def _image(record: JobRecord, index: int, store: Store, if_none_match: str | None) -> Response:
    if index >= record.spec.num_images:
        raise NotFound(f"This job makes {record.spec.num_images} image(s), counted from 0.")
    if not record.status.is_terminal:
        raise NotReady(f"The job is {record.status}; ask again later.", job_status=record.status)
    if record.status is not JobStatus.SUCCEEDED:
        raise Gone(f"The job {record.status} without a result.", job_status=record.status, error=record.error)
    info = record.images[index]
    headers = {
        "ETag": f'"{info.sha256}"',
        "Cache-Control": "private, max-age=31536000, immutable",
        "X-Content-Type-Options": "nosniff",
    }
    if if_none_match and _matches(if_none_match, info.sha256):
        return Response(status_code=304, headers=headers)
    picture = store.get(result_key(record.id, index))
    if picture is None:
        raise Gone("The picture is no longer stored.", job_status=record.status)
    return Response(picture, media_type="image/png", headers=headers)


def _matches(if_none_match: str, sha256: str) -> bool:
    tags = (tag.strip().removeprefix("W/").strip('"') for tag in if_none_match.split(","))
    return any(tag in (sha256, "*") for tag in tags)
