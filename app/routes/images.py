"""Uploaded images, which several jobs can refer to."""

from hashlib import sha256
from typing import Annotated

from anyio.to_thread import run_sync
from fastapi import APIRouter, Path, Response

from img2img.blobs import BlobStore
from img2img.domain.blob_keys import upload_key
from img2img.erasure import Eraser
from img2img.errors import Unavailable
from img2img.redis.idempotency import IdempotencyKey
from img2img.redis.job_queue import JobQueue
from img2img.stored_images import write_by_digest

from ..dependencies import CallerDep, DecodersDep, FreeDiskDep, QueueDep, SettingsDep, StoreDep, StoreThreadsDep
from ..imaging.decoder_share import DecoderShare
from ..openapi import operations as openapi
from ..schemas.responses import UploadedImage
from ..submission.submit import REPLAYED, IdempotencyKeyHeader
from .body_parser import ImageRequestDep

router = APIRouter(tags=["images"])

# How often an image is stored that is deleted at the same time.
MAX_UPLOADS = 5

ImageHash = Annotated[
    str, Path(alias="sha256", pattern="^[0-9a-f]{64}$", description="The `sha256` that `POST /images` returned.")
]


@router.post(
    "/images",
    status_code=201,
    operation_id="upload_image",
    openapi_extra={"requestBody": openapi.IMAGE_BODY},
    responses=openapi.UPLOADED | openapi.problems(400, 413, 415, 422, 429, 503, 507),
)
async def upload_image(
    request: ImageRequestDep,
    settings: SettingsDep,
    caller: CallerDep,
    queue: QueueDep,
    store: StoreDep,
    store_threads: StoreThreadsDep,
    free_disk: FreeDiskDep,
    decoders: DecodersDep,
    response: Response,
    idempotency_key: IdempotencyKeyHeader = None,
) -> UploadedImage:
    """Store an image for later requests of the same API key: its `sha256` can be an `image` of `POST /img2img`.

    It is kept for a while after it was last uploaded or used, or until it is deleted. Jobs that use it have their own
    copies, which are deleted with the jobs. A repeated upload has the same response.
    """
    size = await decoders.run(_check, request.image, decoders, images=[request.image])
    digest = sha256(request.image).hexdigest()
    if idempotency_key:
        reserved = IdempotencyKey(idempotency_key, digest, caller.owner)
        if not await run_sync(queue.reserve_idempotency_key, reserved, digest):
            response.headers.update(REPLAYED)
    key = upload_key(digest)
    await store_threads.run(free_disk.take, len(request.image))
    await store_threads.run(_store, request.image, key, settings.result_ttl, caller.owner, queue, store)
    return UploadedImage(sha256=digest, width=size[0], height=size[1])


@router.delete(
    "/images/{sha256}", status_code=204, operation_id="delete_image", responses=openapi.problems(404, 422, 503)
)
async def delete_image(image: ImageHash, queue: QueueDep, store: StoreDep, store_threads: StoreThreadsDep) -> None:
    """Delete an uploaded image. Jobs that use it, also queued ones, have their own copies and are not affected."""
    await store_threads.run(Eraser(queue, store).delete_upload, image)


def _store(image: bytes, key: str, keep_s: float, owner: str, queue: JobQueue, store: BlobStore) -> None:
    """Store an upload; again if it is deleted at the same time.

    Raises:
        QuotaExceeded, StorageFull: The image exceeds a quota.
        Unavailable: It is deleted again and again.
    """
    for _ in range(MAX_UPLOADS):
        queue.input_images.retain_upload(key, len(image), keep_s, owner)
        write_by_digest(store, key, image)
        if queue.input_images.has_upload(key, owner):
            return
    raise Unavailable("An earlier copy of this image is being deleted; try again in a moment.")


def _check(data: bytes, decoders: DecoderShare) -> tuple[int, int]:
    """Decode the image and return its size. Raises ImageError, UnsupportedMedia or Unavailable."""
    with decoders.open(data) as image:
        image.check()
        return image.size
