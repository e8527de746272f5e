"""POST /img2img: steps 2 to 4 of a job's way."""

from collections.abc import Mapping
from typing import Annotated

from anyio.to_thread import run_sync
from fastapi import APIRouter, Header, Query, Response

from app import openapi
from app.contract.job import JobRecord, Terms
from app.contract.models import ModelRegistry, model_name
from app.contract.once import Once
from app.contract.queue import JobQueue
from app.contract.spec import JobSpec, input_key
from app.contract.store import Store
from app.deps import DecodersDep, ForecasterDep, ModelsDep, QueueDep, SettingsDep, StoreDep
from app.forecast import Forecaster
from app.plan import Planner
from app.references import Reference, referred
from app.request_body import RequestDep
from app.resolve import resolve_model
from app.schemas import ControlMapRequest, Img2ImgRequest
from app.settings import ApiSettings
from app.uploads import Upload
from app.views import DryRun, JobView

router = APIRouter(tags=["jobs"])

DryRunQuery = Annotated[bool, Query(description="Only say what would be done: validate everything, make no job.")]
IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        pattern=r"^[\x21-\x7e]{1,255}$",
        description="Any text of your choice. The same key and request within 24 hours give the same job again.",
        examples=["7c4a8d09-order-17"],
    ),
]


@router.post(
    "/img2img",
    status_code=202,
    operation_id="submit_img2img",
    openapi_extra={"requestBody": openapi.SUBMIT_BODY},
    responses=openapi.SUBMITTED | openapi.WOULD_BE_SUBMITTED | openapi.problems(400, 410, 413, 415, 422, 503),
)
async def submit_img2img(
    request: RequestDep,
    response: Response,
    settings: SettingsDep,
    queue: QueueDep,
    store: StoreDep,
    models: ModelsDep,
    forecaster: ForecasterDep,
    decoders: DecodersDep,
    dry_run: DryRunQuery = False,
    idempotency_key: IdempotencyKey = None,
) -> JobView | DryRun:
    """Queues a job. Poll the `Location`; when the job has succeeded, fetch its images."""
    once = await run_sync(_once, request, idempotency_key) if idempotency_key and not dry_run else None
    made_before = await run_sync(queue.made_before, once) if once else None
    if made_before:
        return await run_sync(_accepted, response, made_before, False, forecaster)
    spec, blobs = await run_sync(plan, request, settings, queue, store, models, limiter=decoders)
    if dry_run:
        response.status_code = 200
        forecast = await run_sync(forecaster.of_next, spec)
        return DryRun(request=spec, cost=spec.cost, queue_position=forecast.queue_position, eta_s=forecast.eta_s)
    record, new = await run_sync(submit, request, spec, blobs, once, settings, queue, store)
    return await run_sync(_accepted, response, record, new, forecaster)


def _once(request: Img2ImgRequest, key: str) -> Once:
    return Once(key, request.fingerprint())


def _accepted(response: Response, record: JobRecord, new: bool, forecaster: Forecaster) -> JobView:
    response.headers["Location"] = f"/jobs/{record.id}"
    if not new:
        response.headers["Idempotency-Replayed"] = "true"
    return JobView.of(record, *forecaster.of([record]))


def plan(
    request: Img2ImgRequest, settings: ApiSettings, queue: JobQueue, store: Store, models: ModelRegistry
) -> tuple[JobSpec, dict[str, bytes]]:
    """Every default made explicit, and the pictures as the worker takes them, by sha256."""

    def open_picture(name: str, picture: bytes | Reference) -> Upload:
        sent = picture if isinstance(picture, bytes) else referred(name, picture, queue, store, settings.result_ttl)
        return Upload(sent, settings.max_pixels)

    card = resolve_model(request.model, model_name(settings.model), models.known())
    planner = Planner(request, card, open_picture, settings.max_pixels)
    return planner.plan(), planner.blobs


def submit(
    request: Img2ImgRequest | ControlMapRequest,
    spec: JobSpec,
    blobs: Mapping[str, bytes],
    once: Once | None,
    settings: ApiSettings,
    queue: JobQueue,
    store: Store,
) -> tuple[JobRecord, bool]:
    """Stores the pictures and queues the job, unless the same request has just done it. Returns whether it is new."""
    for digest, picture in blobs.items():
        queue.inputs.hold(input_key(digest), settings.result_ttl)
        store.put(input_key(digest), picture)
    terms = Terms(result_ttl_s=settings.result_ttl, deadline_s=request.deadline_s)
    if once is None:
        return queue.submit(spec, terms), True
    return queue.submit_once(once, spec, terms)
