"""Uploaded images, which several jobs can refer to."""

from hashlib import sha256
from typing import Annotated

from anyio.to_thread import run_sync
from fastapi import APIRouter, Path

from img2img.domain.blob_keys import upload_key
from img2img.erasure import Eraser

from ..dependencies import CallerDep, DecodersDep, QueueDep, SettingsDep, StoreDep
from ..imaging.sandbox_pool import DecoderPool
from ..openapi import operations as openapi
from ..schemas.responses import UploadedImage
from .body_parser import ImageRequestDep

router = APIRouter(tags=["images"])

ImageHash = Annotated[
    str, Path(alias="sha256", pattern="^[0-9a-f]{64}$", description="The `sha256` that `POST /images` returned.")
]


@router.post(
    "/images",
    status_code=201,
    operation_id="upload_image",
    openapi_extra={"requestBody": openapi.IMAGE_BODY},
    responses=openapi.problems(400, 413, 415, 422, 503),
)
async def upload_image(
    request: ImageRequestDep,
    settings: SettingsDep,
    caller: CallerDep,
    queue: QueueDep,
    store: StoreDep,
    decoders: DecodersDep,
) -> UploadedImage:
    """Store an image for later requests of the same API key: its `sha256` can be an `image` of `POST /img2img`.

    It is kept for a while after it was last uploaded or used, or until it is deleted. Jobs that use it have their own
    copies, which are deleted with the jobs.
    """
    size = await run_sync(_check, request.image, decoders, limiter=decoders.limiter)
    digest = sha256(request.image).hexdigest()
    await run_sync(queue.input_images.retain_upload, upload_key(digest), settings.result_ttl, caller.owner)
    await run_sync(store.put, upload_key(digest), request.image)
    return UploadedImage(sha256=digest, width=size[0], height=size[1])


@router.delete(
    "/images/{sha256}", status_code=204, operation_id="delete_image", responses=openapi.problems(404, 422, 503)
)
def delete_image(image: ImageHash, queue: QueueDep, store: StoreDep) -> None:
    """Delete an uploaded image. Jobs that use it, also queued ones, have their own copies and are not affected."""
    Eraser(queue, store).delete_upload(image)


def _check(data: bytes, decoders: DecoderPool) -> tuple[int, int]:
    """Decode the image and return its size. Raises ImageError, UnsupportedMedia or Unavailable."""
    with decoders.open(data) as image:
        image.check()
        return image.size
