"""A job's pictures: as they are stored, or converted on the way out."""

from typing import Annotated, Literal

from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response

from img2img.domain.job import ImageInfo, JobRecord, JobStatus
from img2img.domain.spec import result_key
from img2img.errors import Gone, NotFound

from ..dependencies import DecodersDep, QueueDep, SettingsDep, StoreDep
from ..http.errors import NotReady
from ..openapi import operations as openapi
from ..progress.image_formats import convert_image, etag_suffix
from ..schemas.responses import ImageFormat

router = APIRouter(prefix="/jobs/{job_id}", tags=["jobs"])

SIGNED_S = 60.0  # how long a signed URL leads to the picture; whoever has it needs no key

JobId = Annotated[str, Path(description="The `id` of the job.")]
Index = Annotated[int, Path(ge=0, description="Which image, from 0.")]
Format = Annotated[ImageFormat, Query(alias="format", description="Converts the PNG on the way out.")]
Quality = Annotated[int | None, Query(ge=1, le=100, description="Of webp and jpeg; 90 where it is not given.")]
IfNoneMatch = Annotated[str | None, Header(description="ETags that the client already has.")]


class Delivery:
    """How a client wants its picture."""

    def __init__(
        self,
        request: Request,
        settings: SettingsDep,
        queue: QueueDep,
        store: StoreDep,
        decoders: DecodersDep,
        image_format: Format = ImageFormat.PNG,
        quality: Quality = None,
        if_none_match: IfNoneMatch = None,
    ) -> None:
        self._method: Literal["GET", "HEAD"] = "HEAD" if request.method == "HEAD" else "GET"
        self._redirect = settings.result_redirect
        self._queue = queue
        self._store = store
        self._decoders = decoders
        self._format = image_format
        self._quality = quality
        self._if_none_match = if_none_match

    async def of(self, job_id: str, index: int) -> Response:
        """The answer with one image of a job."""
        variant = etag_suffix(self._format, self._quality)
        record = await run_sync(self._queue.job_store.find, job_id)
        tag = f"{_finished(record, index).sha256}{variant}"
        headers = {
            "ETag": f'"{tag}"',
            "Cache-Control": "private, max-age=31536000, immutable",
            "X-Content-Type-Options": "nosniff",
        }
        if self._if_none_match and _matches(self._if_none_match, tag):
            return Response(status_code=304, headers=headers)
        if self._redirect and not variant:
            url = await run_sync(self._store.sign, self._method, result_key(record.id, index), SIGNED_S)
            return Response(status_code=307, headers={"Location": url, "Cache-Control": "no-store"})
        picture = await run_sync(self._store.get, result_key(record.id, index))
        if picture is None:
            raise Gone("The picture is no longer stored.", job_status=record.status)
        if variant:
            picture = await run_sync(
                convert_image, picture, self._format, self._quality, limiter=self._decoders.limiter
            )
        return Response(picture, media_type=f"image/{self._format}", headers=headers)


DeliveryDep = Annotated[Delivery, Depends()]


@router.head("/images/{index}", include_in_schema=False)
@router.get(
    "/images/{index}",
    operation_id="get_image",
    response_class=Response,
    responses=openapi.RESULT_IMAGE | openapi.problems(404, 409, 410, 422, 503),
)
async def get_image(job_id: JobId, index: Index, delivery: DeliveryDep) -> Response:
    """One result. It never changes; the ETag of the PNG is its sha256."""
    return await delivery.of(job_id, index)


@router.head("/result", include_in_schema=False)
@router.get(
    "/result",
    operation_id="get_result",
    response_class=Response,
    responses=openapi.RESULT_IMAGE | openapi.problems(404, 409, 410, 422, 503),
)
async def get_result(job_id: JobId, delivery: DeliveryDep) -> Response:
    """The first image of the job."""
    return await delivery.of(job_id, 0)


def _finished(record: JobRecord, index: int) -> ImageInfo:
    if index >= record.spec.num_images:
        raise NotFound(f"This job makes {record.spec.num_images} image(s), counted from 0.")
    if not record.status.is_terminal:
        raise NotReady(f"The job is {record.status}; ask again later.", job_status=record.status)
    if record.status is not JobStatus.SUCCEEDED:
        raise Gone(f"The job {record.status} without a result.", job_status=record.status, error=record.error)
    return record.images[index]


def _matches(if_none_match: str, ours: str) -> bool:
    tags = (tag.strip().removeprefix("W/").strip('"') for tag in if_none_match.split(","))
    return any(tag in (ours, "*") for tag in tags)
