"""POST /images: a picture sent once, for jobs to refer to."""

from hashlib import sha256

from anyio.to_thread import run_sync
from fastapi import APIRouter

from app import openapi
from app.contract.queue import JobQueue
from app.contract.spec import upload_key
from app.contract.store import Store
from app.decoding.pool import Decoders
from app.deps import DecodersDep, QueueDep, SettingsDep, StoreDep
from app.request_body import ImageRequestDep
from app.schemas import ImageRequest
from app.settings import ApiSettings
from app.views import ImageKept

router = APIRouter(tags=["images"])


@router.post(
    "/images",
    status_code=201,
    operation_id="keep_image",
    openapi_extra={"requestBody": openapi.IMAGE_BODY},
    responses=openapi.problems(400, 413, 415, 422, 503),
)
async def keep_image(
    request: ImageRequestDep, settings: SettingsDep, queue: QueueDep, store: StoreDep, decoders: DecodersDep
) -> ImageKept:
    """Keeps a picture for a while after it was last sent or used; `sha256` is then an `image` of `POST /img2img`."""
    return await run_sync(keep, request, settings, queue, store, decoders, limiter=decoders.limiter)


def keep(request: ImageRequest, settings: ApiSettings, queue: JobQueue, store: Store, decoders: Decoders) -> ImageKept:
    """Stores the picture as it came, once it has been seen to be one."""
    picture = decoders.open(request.image)
    width, height = picture.size
    picture.check()
    digest = sha256(request.image).hexdigest()
    queue.inputs.hold(upload_key(digest), settings.result_ttl)
    store.put(upload_key(digest), request.image)
    return ImageKept(sha256=digest, width=width, height=height)
