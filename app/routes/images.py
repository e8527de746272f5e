"""POST /images: uploads an image that several jobs can refer to."""

from hashlib import sha256

from anyio.to_thread import run_sync
from fastapi import APIRouter

from img2img.domain.blob_keys import upload_key
from img2img.stored_images import write_by_digest

from ..dependencies import CallerDep, DecodersDep, FreeDiskDep, QueueDep, SettingsDep, StoreDep
from ..imaging.decoder_share import DecoderShare
from ..openapi import operations as openapi
from ..schemas.responses import UploadedImage
from .body_parser import ImageRequestDep

router = APIRouter(tags=["images"])


@router.post(
    "/images",
    status_code=201,
    operation_id="upload_image",
    openapi_extra={"requestBody": openapi.IMAGE_BODY},
    responses=openapi.problems(400, 413, 415, 422, 429, 503, 507),
)
async def upload_image(
    request: ImageRequestDep,
    settings: SettingsDep,
    caller: CallerDep,
    queue: QueueDep,
    store: StoreDep,
    free_disk: FreeDiskDep,
    decoders: DecodersDep,
) -> UploadedImage:
    """Store an image for later requests of the same API key: its `sha256` can be an `image` of `POST /img2img`.

    It is kept for a while after it was last uploaded or used.
    """
    size = await decoders.run(_check, request.image, decoders, images=[request.image])
    digest = sha256(request.image).hexdigest()
    await run_sync(free_disk.take, len(request.image))
    sizes = {upload_key(digest): len(request.image)}
    await run_sync(queue.input_images.retain, sizes, settings.result_ttl, caller.owner)
    await run_sync(write_by_digest, store, upload_key(digest), request.image)
    return UploadedImage(sha256=digest, width=size[0], height=size[1])


def _check(data: bytes, decoders: DecoderShare) -> tuple[int, int]:
    """Decode the image and return its size. Raises ImageError, UnsupportedMedia or Unavailable."""
    with decoders.open(data) as image:
        image.check()
        return image.size
