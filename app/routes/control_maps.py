"""POST /control-maps: what a ControlNet would be shown of a picture.

A job like any other, on the worker that would make the map for POST /img2img: some maps need a model, and what a client
looks at should be what its job follows, byte for byte.
"""

from hashlib import sha256

from anyio.to_thread import run_sync
from fastapi import APIRouter, Response

from app import openapi
from app.contract.conditions import Control, ControlType
from app.contract.errors import ParameterError
from app.contract.job import Terms
from app.contract.models import ModelRegistry, model_name
from app.contract.queue import JobQueue
from app.contract.spec import JobSpec, Task
from app.contract.store import Store
from app.deps import (
    CallerDep,
    DecodersDep,
    ForecasterDep,
    ModelsDep,
    QueueDep,
    RateDep,
    SettingsDep,
    StoreDep,
    TracesDep,
)
from app.references import Reference, referred
from app.request_body import ControlMapRequestDep
from app.resolve import resolve_model, resolve_size
from app.routes.img2img import submit
from app.schemas import ControlMapRequest
from app.settings import ApiSettings
from app.uploads import Upload, png
from app.views import JobView

router = APIRouter(tags=["jobs"])


@router.post(
    "/control-maps",
    status_code=202,
    operation_id="submit_control_map",
    openapi_extra={"requestBody": openapi.CONTROL_MAP_BODY},
    responses=openapi.SUBMITTED | openapi.problems(400, 410, 413, 415, 422, 429, 503),
)
async def submit_control_map(
    request: ControlMapRequestDep,
    response: Response,
    settings: SettingsDep,
    caller: CallerDep,
    queue: QueueDep,
    rate: RateDep,
    store: StoreDep,
    models: ModelsDep,
    forecaster: ForecasterDep,
    decoders: DecodersDep,
    traces: TracesDep,
) -> JobView:
    """Queues a job whose image 0 is the map. Its path can be the `image` of a control, with `preprocess` false."""
    await run_sync(queue.check_room, caller.owner)
    spec, blob = await run_sync(plan, request, settings, queue, store, models, limiter=decoders)
    blobs = {spec.inputs[0]: blob}
    terms = Terms(
        result_ttl_s=settings.result_ttl,
        deadline_s=request.deadline_s,
        owner=caller.owner,
        traceparent=traces.traceparent(),
    )
    response.headers.update(await run_sync(rate.spend, caller.owner, spec.cost))
    record, _ = await run_sync(submit, spec, terms, blobs, None, queue, store)
    response.headers["Location"] = f"/jobs/{record.id}"
    return JobView.of(record, *await run_sync(forecaster.of, [record]))


def plan(
    request: ControlMapRequest, settings: ApiSettings, queue: JobQueue, store: Store, models: ModelRegistry
) -> tuple[JobSpec, bytes]:
    """The job, and its picture as the worker takes it: of the size that a job with this picture would have."""
    card = resolve_model(request.model, model_name(settings.model), models.known())
    known = tuple(dict.fromkeys((*card.preprocessors, ControlType.TILE)))
    if request.type not in known:
        message = f"The model {card.name} can make maps of these types: {', '.join(known)}"
        raise ParameterError("type", message, got=request.type.value)
    upload = Upload(_bytes(request.image, settings, queue, store), settings.max_pixels)
    width, height = resolve_size(request.width, request.height, upload.size, card)
    blob = png(upload.fit(width, height, request.resize))
    spec = JobSpec(
        task=Task.CONTROL_MAP,
        model=card.name,
        image=sha256(blob).hexdigest(),
        prompt="",
        negative_prompt="",
        strength=0,
        guidance_scale=1,
        num_inference_steps=1,
        scheduler=card.default_scheduler,
        seed=0,
        num_images=1,
        width=width,
        height=height,
        resize=request.resize,
        controls=(Control(type=request.type, image=None, preprocess=True),),
    )
    return spec, blob


def _bytes(picture: bytes | Reference, settings: ApiSettings, queue: JobQueue, store: Store) -> bytes:
    return picture if isinstance(picture, bytes) else referred("image", picture, queue, store, settings.result_ttl)
