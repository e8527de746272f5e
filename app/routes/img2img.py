"""POST /img2img: steps 2 to 4 of a job's way."""

from hashlib import sha256
from typing import Annotated

from anyio.to_thread import run_sync
from fastapi import APIRouter, Query, Response

from app import openapi
from app.contract.job import JobRecord
from app.contract.models import ModelRegistry, model_name
from app.contract.queue import JobQueue
from app.contract.spec import JobSpec, input_key
from app.contract.store import Store
from app.deps import DecodersDep, ModelsDep, QueueDep, SettingsDep, StoreDep
from app.request_body import RequestDep
from app.resolve import resolve_model, resolve_scheduler, resolve_seed, resolve_size
from app.schemas import DryRun, Img2ImgRequest, JobView
from app.settings import ApiSettings
from app.uploads import Upload, png

router = APIRouter(tags=["jobs"])

DryRunQuery = Annotated[bool, Query(description="Only say what would be done: validate everything, make no job.")]


@router.post(
    "/img2img",
    status_code=202,
    operation_id="submit_img2img",
    openapi_extra={"requestBody": openapi.SUBMIT_BODY},
    responses=openapi.SUBMITTED | openapi.WOULD_BE_SUBMITTED | openapi.problems(400, 413, 415, 422, 503),
)
async def submit_img2img(
    request: RequestDep,
    response: Response,
    settings: SettingsDep,
    queue: QueueDep,
    store: StoreDep,
    models: ModelsDep,
    decoders: DecodersDep,
    dry_run: DryRunQuery = False,
) -> JobView | DryRun:
    """Queues a job. Poll the `Location`; when the job has succeeded, fetch its images."""
    spec, picture = await run_sync(resolve, request, settings, models, limiter=decoders)
    if dry_run:
        response.status_code = 200
        depth = await run_sync(queue.depth, spec.model)
        return DryRun(request=spec, cost=spec.cost, queue_position=depth)
    record = await run_sync(submit, request, spec, picture, settings, queue, store)
    response.headers["Location"] = f"/jobs/{record.id}"
    return JobView.of(record)


def resolve(request: Img2ImgRequest, settings: ApiSettings, models: ModelRegistry) -> tuple[JobSpec, bytes]:
    """Every default made explicit, and the picture as the model will see it."""
    card = resolve_model(request.model, model_name(settings.model), models.known())
    scheduler = resolve_scheduler(request, card)
    seed = resolve_seed(request.seed, request.num_images)
    upload = Upload(request.image, settings.max_pixels)
    width, height = resolve_size(request.width, request.height, upload.size, card)
    picture = png(upload.fit(width, height, request.resize))
    digest = sha256(picture).hexdigest()
    return JobSpec(
        model=card.name,
        image=digest,
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        strength=request.strength,
        guidance_scale=request.guidance_scale,
        num_inference_steps=request.num_inference_steps,
        scheduler=scheduler,
        seed=seed,
        num_images=request.num_images,
        width=width,
        height=height,
        resize=request.resize,
    ), picture


def submit(
    request: Img2ImgRequest, spec: JobSpec, picture: bytes, settings: ApiSettings, queue: JobQueue, store: Store
) -> JobRecord:
    """Stores the picture and queues the job."""
    queue.inputs.hold(spec.image, settings.result_ttl)
    store.put(input_key(spec.image), picture)
    return queue.submit(spec, result_ttl_s=settings.result_ttl, deadline_s=request.deadline_s)
