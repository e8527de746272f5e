"""POST /img2img: steps 2 to 4 of a job's way."""

import logging
from collections.abc import Mapping
from typing import Annotated

from anyio.to_thread import run_sync
from fastapi import APIRouter, Header, Query, Response

from app import openapi
from app.contract.errors import ParameterError
from app.contract.job import JobRecord, Terms
from app.contract.logs import of_job
from app.contract.models import ModelRegistry, model_name
from app.contract.once import Once
from app.contract.queue import JobQueue
from app.contract.spec import JobSpec, input_key
from app.contract.store import Store
from app.contract.traces import Traces
from app.courier.addresses import check_webhook
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
from app.door import Caller
from app.forecast import Forecaster
from app.plan import Planner
from app.references import Reference, referred
from app.request_body import RequestDep
from app.resolve import resolve_model
from app.schemas import Img2ImgRequest
from app.settings import ApiSettings
from app.uploads import Upload
from app.views import DryRun, JobView

log = logging.getLogger(__name__)

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
    responses=openapi.SUBMITTED | openapi.WOULD_BE_SUBMITTED | openapi.problems(400, 410, 413, 415, 422, 429, 503),
)
async def submit_img2img(
    request: RequestDep,
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
    dry_run: DryRunQuery = False,
    idempotency_key: IdempotencyKey = None,
) -> JobView | DryRun:
    """Queues a job. Poll the `Location`; when the job has succeeded, fetch its images."""
    once = await run_sync(_once, request, idempotency_key, caller.owner) if idempotency_key and not dry_run else None
    made_before = await run_sync(queue.made_before, once) if once else None
    if made_before:
        return await run_sync(_accepted, response, made_before, False, forecaster)
    if not dry_run:
        await run_sync(queue.check_room, caller.owner)
    spec, blobs = await run_sync(plan, request, settings, queue, store, models, limiter=decoders)
    terms = terms_of(request, settings, caller, traces)
    if dry_run:
        response.status_code = 200
        forecast = await run_sync(forecaster.of_next, spec, terms)
        return DryRun(
            request=spec,
            priority=terms.priority,
            cost=spec.cost,
            queue_position=forecast.queue_position,
            eta_s=forecast.eta_s,
        )
    response.headers.update(await run_sync(rate.spend, caller.owner, spec.cost))
    record, new = await run_sync(submit, spec, terms, blobs, once, queue, store)
    return await run_sync(_accepted, response, record, new, forecaster)


def _once(request: Img2ImgRequest, key: str, owner: str) -> Once:
    return Once(key, request.fingerprint(), owner)


def _accepted(response: Response, record: JobRecord, new: bool, forecaster: Forecaster) -> JobView:
    response.headers["Location"] = f"/jobs/{record.id}"
    if not new:
        response.headers["Idempotency-Replayed"] = "true"
    return JobView.of(record, *forecaster.of([record]))


def plan(
    request: Img2ImgRequest, settings: ApiSettings, queue: JobQueue, store: Store, models: ModelRegistry
) -> tuple[JobSpec, dict[str, bytes]]:
    """Every default made explicit, and the pictures as the worker takes them, by sha256."""
    if request.webhook is not None:
        if not settings.webhook_secrets:
            message = "This service signs no webhooks yet; whoever runs it should set IMG2IMG_WEBHOOK_SECRET"
            raise ParameterError("webhook", message)
        check_webhook(request.webhook, allow_private=settings.webhook_allow_private)

    def open_picture(name: str, picture: bytes | Reference) -> Upload:
        sent = picture if isinstance(picture, bytes) else referred(name, picture, queue, store, settings.result_ttl)
        return Upload(sent, settings.max_pixels)

    card = resolve_model(request.model, model_name(settings.model), models.known())
    planner = Planner(request, card, open_picture, settings.max_pixels)
    return planner.plan(), planner.blobs


def terms_of(request: Img2ImgRequest, settings: ApiSettings, caller: Caller, traces: Traces) -> Terms:
    """What holds for the job beside what it is to make."""
    return Terms(
        result_ttl_s=settings.result_ttl,
        deadline_s=request.deadline_s,
        owner=caller.owner,
        priority=request.priority,
        webhook=request.webhook,
        traceparent=traces.traceparent(),
    )


def submit(
    spec: JobSpec, terms: Terms, blobs: Mapping[str, bytes], once: Once | None, queue: JobQueue, store: Store
) -> tuple[JobRecord, bool]:
    """Stores the pictures and queues the job, unless the same request has just done it. Returns whether it is new."""
    for digest, picture in blobs.items():
        queue.inputs.hold(input_key(digest), terms.result_ttl_s)
        store.put(input_key(digest), picture)
    record, new = (queue.submit(spec, terms), True) if once is None else queue.submit_once(once, spec, terms)
    if new:
        log.info("queued: %s of %s, priority %s", spec.task, spec.model, record.priority, extra=of_job(record.id))
    return record, new
