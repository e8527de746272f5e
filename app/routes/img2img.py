"""POST /img2img: steps 2 to 4 of a job's way."""

from functools import partial
from typing import Annotated

from anyio.to_thread import run_sync
from fastapi import APIRouter, Header, Query, Response

from img2img.domain.job import JobOptions, JobRecord
from img2img.errors import ParameterError
from img2img.redis.idempotency import IdempotencyKey

from ..dependencies import EtaDep
from ..openapi import operations as openapi
from ..progress.eta import EtaEstimator
from ..schemas.requests import Img2ImgRequest
from ..schemas.responses import DryRunResult, Job
from ..submission.spec_builder import SpecBuilder
from ..submission.submit import JobSubmitter, JobSubmitterDep, Plan
from ..webhooks.ssrf_guard import check_webhook
from .body_parser import RequestDep

router = APIRouter(tags=["jobs"])

DryRunQuery = Annotated[bool, Query(description="Only say what would be done: validate everything, make no job.")]
IdempotencyKeyHeader = Annotated[
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
    responses=openapi.SUBMITTED | openapi.DRY_RUN | openapi.problems(400, 410, 413, 415, 422, 429, 503),
)
async def submit_img2img(
    request: RequestDep,
    response: Response,
    admission: JobSubmitterDep,
    eta: EtaDep,
    dry_run: DryRunQuery = False,
    idempotency_key: IdempotencyKeyHeader = None,
) -> Job | DryRunResult:
    """Queues a job. Poll the `Location`; when the job has succeeded, fetch its images."""
    terms = terms_of(request, admission)
    if dry_run:
        spec, _ = await admission.plan(partial(plan, request, admission))
        response.status_code = 200
        forecast = await run_sync(eta.estimate_next, spec, terms)
        return DryRunResult(
            request=spec,
            priority=terms.priority,
            cost=spec.cost,
            queue_position=forecast.queue_position,
            eta_s=forecast.eta_s,
        )
    once = await run_sync(_once, request, idempotency_key, terms.owner) if idempotency_key else None
    made_before = await run_sync(admission.queue.find_by_idempotency_key, once) if once else None
    if made_before:
        return await run_sync(_accepted, response, made_before, False, eta)
    admitted = await admission.admit(partial(plan, request, admission), terms, once)
    response.headers.update(admitted.headers)
    return await run_sync(_accepted, response, admitted.record, admitted.new, eta)


def _once(request: Img2ImgRequest, key: str, owner: str) -> IdempotencyKey:
    return IdempotencyKey(key, request.fingerprint(), owner)


def _accepted(response: Response, record: JobRecord, new: bool, eta: EtaEstimator) -> Job:
    response.headers["Location"] = f"/jobs/{record.id}"
    if not new:
        response.headers["Idempotency-Replayed"] = "true"
    return Job.from_record(record, *eta.estimate([record]))


def plan(request: Img2ImgRequest, admission: JobSubmitter) -> Plan:
    """Every default made explicit, and the pictures as the worker takes them, by sha256."""
    settings = admission.settings
    if request.webhook is not None:
        if not settings.webhook_secrets:
            message = "This service signs no webhooks yet; whoever runs it should set IMG2IMG_WEBHOOK_SECRET"
            raise ParameterError("webhook", message)
        check_webhook(request.webhook, allow_private=settings.webhook_allow_private)
    planner = SpecBuilder(request, admission.card(request.model), admission.open, settings.max_pixels)
    return planner.plan(), planner.blobs


def terms_of(request: Img2ImgRequest, admission: JobSubmitter) -> JobOptions:
    """What holds for the job beside what it is to make."""
    return JobOptions(
        result_ttl_s=admission.settings.result_ttl,
        deadline_s=request.deadline_s,
        owner=admission.caller.owner,
        priority=request.priority,
        webhook=request.webhook,
        traceparent=admission.traces.traceparent(),
    )
