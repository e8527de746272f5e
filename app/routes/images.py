"""POST /images: a picture sent once, for jobs to refer to."""

from hashlib import sha256

from anyio.to_thread import run_sync
from fastapi import APIRouter

from img2img.blobs import BlobStore
from img2img.domain.spec import upload_key
from img2img.redis.job_queue import JobQueue

from ..dependencies import CallerDep, DecodersDep, QueueDep, SettingsDep, StoreDep
from ..http.authentication import Caller
from ..imaging.sandbox_pool import DecoderPool
from ..openapi import operations as openapi
from ..schemas.requests import ImageRequest
from ..schemas.responses import UploadedImage
from ..settings import ApiSettings
from .body_parser import ImageRequestDep

router = APIRouter(tags=["images"])


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
    """Keeps a picture for a while after it was last sent or used.

    `sha256` is then an `image` of `POST /img2img`, for the key that sent it.
    """
    return await run_sync(keep, request, settings, caller, queue, store, decoders, limiter=decoders.limiter)


def keep(
    request: ImageRequest,
    settings: ApiSettings,
    caller: Caller,
    queue: JobQueue,
    store: BlobStore,
    decoders: DecoderPool,
) -> UploadedImage:
    """Stores the picture as it came, once it has been seen to be one."""
    picture = decoders.open(request.image)
    width, height = picture.size
    picture.check()
    digest = sha256(request.image).hexdigest()
    queue.input_images.retain(upload_key(digest), settings.result_ttl, caller.owner)
    store.put(upload_key(digest), request.image)
    return UploadedImage(sha256=digest, width=width, height=height)
