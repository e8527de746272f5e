"""Images of a job: stored PNGs, or conversions to another format."""

from typing import Annotated, Literal

from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response

from img2img.domain.blob_keys import result_key
from img2img.domain.job import ImageInfo, JobRecord, JobStatus
from img2img.errors import Gone, NotFound, Withheld
from img2img.stored_images import read_result

from ..dependencies import DecodersDep, HeldBytesDep, QueueDep, SettingsDep, StoreDep, StoreThreadsDep
from ..http.errors import NotReady
from ..http.query_parameters import refuse_unknown_query
from ..openapi import operations as openapi
from ..progress.image_formats import convert_image, etag_suffix
from ..schemas.responses import ImageFormat
from .parameters import JobId

router = APIRouter(prefix="/jobs/{job_id}", tags=["jobs"], dependencies=[Depends(refuse_unknown_query)])

# Lifetime of a signed URL, which gives access to the image without an API key.
SIGNED_URL_S = 60.0

Index = Annotated[int, Path(ge=0, description="Index of the image, from 0.")]
Format = Annotated[ImageFormat, Query(alias="format", description="Format to convert the PNG to.")]
Quality = Annotated[int | None, Query(ge=1, le=100, description="Quality of webp and jpeg; 90 by default.")]
IfNoneMatch = Annotated[str | None, Header(description="ETags that the client already has.")]


class ImageResponder:
    """Responds with an image of a job in the format that the request asks for."""

    def __init__(
        self,
        request: Request,
        settings: SettingsDep,
        queue: QueueDep,
        store: StoreDep,
        store_threads: StoreThreadsDep,
        decoders: DecodersDep,
        held_bytes: HeldBytesDep,
        image_format: Format = ImageFormat.PNG,
        quality: Quality = None,
        if_none_match: IfNoneMatch = None,
    ) -> None:
        self._method: Literal["GET", "HEAD"] = "HEAD" if request.method == "HEAD" else "GET"
        # The page at `/` may load images of its own origin only.
        self._redirect = settings.result_redirect and request.headers.get("sec-fetch-site") != "same-origin"
        self._queue = queue
        self._store = store
        self._store_threads = store_threads
        self._decoders = decoders
        self._held_bytes = held_bytes
        self._format = image_format
        self._quality = quality
        self._if_none_match = if_none_match

    async def respond(self, job_id: str, index: int | None) -> Response:
        """Return the image, a redirect to it, or 304. A client that has the image already gets 304 without a check.

        Args:
            index: None for the first image that is delivered.

        Raises:
            NotFound, NotReady, Gone, ParameterError: There is no such image.
            ResultDamaged: The stored image is damaged or missing.
        """
        suffix = etag_suffix(self._format, self._quality)
        record = await run_sync(self._queue.job_store.find, job_id)
        info = _result_image(record, index)
        index = info.index
        etag = f"{info.sha256}{suffix}"
        headers = {
            "ETag": f'"{etag}"',
            "Cache-Control": "private, max-age=31536000, immutable",
            "X-Content-Type-Options": "nosniff",
            "Content-Disposition": f'inline; filename="{record.id}-{index}.{self._format}"',
        }
        if self._if_none_match and _matches(self._if_none_match, etag):
            return Response(status_code=304, headers=headers)
        if self._redirect and not suffix:
            key = result_key(record.id, index)
            url = await self._store_threads.run(self._store.sign, self._method, key, SIGNED_URL_S)
            return Response(status_code=307, headers={"Location": url, "Cache-Control": "no-store"})
        # Until the client has received it.
        self._held_bytes.add(info.bytes)
        image = await self._store_threads.run(read_result, self._store, self._queue.job_store, record, index)
        if suffix:
            # Limited like decoding: a conversion needs as much memory.
            image = await self._decoders.run(convert_image, image, self._format, self._quality, images=[image])
        return Response(image, media_type=f"image/{self._format}", headers=headers)


ImageResponderDep = Annotated[ImageResponder, Depends()]


@router.get(
    "/images/{index}",
    operation_id="get_image",
    response_class=Response,
    responses=openapi.RESULT_IMAGE | openapi.problems(404, 409, 410, 422, 500, 503),
)
async def get_image(job_id: JobId, index: Index, responder: ImageResponderDep) -> Response:
    """Download an image of the job. It never changes; the ETag of the PNG is its SHA-256."""
    return await responder.respond(job_id, index)


@router.get(
    "/result",
    operation_id="get_result",
    response_class=Response,
    responses=openapi.RESULT_IMAGE | openapi.problems(404, 409, 410, 422, 500, 503),
)
async def get_result(job_id: JobId, responder: ImageResponderDep) -> Response:
    """Download the first image of the job that is not withheld."""
    return await responder.respond(job_id, None)


def _result_image(record: JobRecord, index: int | None) -> ImageInfo:
    if index is not None and index >= record.spec.num_images:
        raise NotFound(f"The job has {record.spec.num_images} image(s), numbered from 0.")
    if not record.status.is_terminal:
        raise NotReady(f"The job is {record.status}; try again when it has ended.", job_status=record.status)
    if record.status is not JobStatus.SUCCEEDED:
        raise Gone(f"The job {record.status} without a result.", job_status=record.status, error=record.error)
    image = record.images[0] if index is None else record.image(index)
    if image is None:
        raise Withheld(f"Image {index} of the job was flagged and is not delivered.")
    return image


def _matches(if_none_match: str, etag: str) -> bool:
    """Compare weakly, as RFC 9110 specifies for If-None-Match."""
    tags = (tag.strip().removeprefix("W/").strip('"') for tag in if_none_match.split(","))
    return any(tag in (etag, "*") for tag in tags)
