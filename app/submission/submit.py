"""Submits a request as a job: builds its spec, checks the limits, stores its images and queues it."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated

from anyio.to_thread import run_sync
from fastapi import Depends, Response

from img2img.domain.job import JobOptions, JobRecord
from img2img.domain.model_card import ModelCard, model_name
from img2img.domain.spec import JobSpec, input_key
from img2img.errors import ParameterError
from img2img.redis.idempotency import IdempotencyKey
from img2img.telemetry.logging import job_extra

from ..dependencies import (
    CallerDep,
    DecodersDep,
    EtaDep,
    ModelsDep,
    QueueDep,
    RateLimiterDep,
    SettingsDep,
    StoreDep,
    TracerDep,
)
from ..schemas.image_references import fetch_reference
from ..schemas.requests import ControlMapRequest, Img2ImgRequest
from ..schemas.responses import DryRunResult, Job
from ..webhooks.ssrf_guard import check_webhook
from .defaults import resolve_model
from .spec_builder import ImageReader, SpecBuilder, build_control_map_spec
from .task_selection import check_model, choose_task

log = logging.getLogger(__name__)

Request = Img2ImgRequest | ControlMapRequest


@dataclass(frozen=True)
class SubmittedJob:
    """A queued job, or the job of an earlier request with the same idempotency key."""

    record: JobRecord
    is_new: bool
    # Headers of the rate limit.
    headers: Mapping[str, str]


@dataclass(frozen=True)
class JobSubmitter:
    """Submits requests of one caller. All routes that create jobs use it."""

    settings: SettingsDep
    caller: CallerDep
    queue: QueueDep
    rate_limiter: RateLimiterDep
    store: StoreDep
    models: ModelsDep
    decoders: DecodersDep
    eta: EtaDep
    tracer: TracerDep

    async def submit(self, request: Request, idempotency_key: str | None = None) -> SubmittedJob:
        """Queue a job.

        A full queue is noticed before images are decoded. An invalid request does not count against the rate limit.

        Raises:
            Img2ImgError: The request is refused.
        """
        options = self._options(request)
        key = None
        if idempotency_key:
            fingerprint = await run_sync(request.fingerprint)
            key = IdempotencyKey(idempotency_key, fingerprint, options.owner)
            earlier = await run_sync(self.queue.find_by_idempotency_key, key)
            if earlier:
                return SubmittedJob(earlier, is_new=False, headers={})
        await run_sync(self.queue.check_limits, options.owner)
        spec, blobs = await run_sync(self._build_spec, request, limiter=self.decoders.limiter)
        return await run_sync(self._enqueue, spec, blobs, options, key)

    async def dry_run(self, request: Request) -> DryRunResult:
        """Return the job that the request would make. Raises what `submit` raises, except for limits."""
        spec, _ = await run_sync(self._build_spec, request, limiter=self.decoders.limiter)
        options = self._options(request)
        estimate = await run_sync(self.eta.estimate_next, spec, options)
        return DryRunResult(
            request=spec,
            priority=options.priority,
            cost=spec.cost,
            queue_position=estimate.queue_position,
            eta_s=estimate.eta_s,
        )

    async def respond(self, submitted: SubmittedJob, response: Response) -> Job:
        """Set the headers of the response to a submission and return its body."""
        response.headers.update(submitted.headers)
        response.headers["Location"] = f"/jobs/{submitted.record.id}"
        if not submitted.is_new:
            response.headers["Idempotency-Replayed"] = "true"
        return Job.from_record(submitted.record, *await run_sync(self.eta.estimate, [submitted.record]))

    def model_card(self, model: str | None) -> ModelCard:
        """Return the card of the named model, or of the default model. Raises ParameterError or Unavailable."""
        return resolve_model(model, model_name(self.settings.model), self.models.known())

    def _options(self, request: Request) -> JobOptions:
        options = JobOptions(
            result_ttl_s=self.settings.result_ttl,
            deadline_s=request.deadline_s,
            owner=self.caller.owner,
            traceparent=self.tracer.traceparent(),
        )
        if isinstance(request, ControlMapRequest):
            return options
        return replace(options, priority=request.priority, webhook=request.webhook)

    def _build_spec(self, request: Request) -> tuple[JobSpec, Mapping[str, bytes]]:
        """Return the spec of the request, and the blobs that it refers to by their sha256."""
        card = self.model_card(request.model)
        if isinstance(request, ControlMapRequest):
            reader = self._reader(request)
            return build_control_map_spec(request, card, reader), reader.blobs
        self._check_webhook(request)
        task = choose_task(request)
        check_model(request, task, card)
        reader = self._reader(request)
        return SpecBuilder(request, card, reader, self.settings.max_pixels).build(task), reader.blobs

    def _check_webhook(self, request: Img2ImgRequest) -> None:
        if request.webhook is None:
            return
        if not self.settings.webhook_secrets:
            message = "This service sends no webhooks: its operator has to set IMG2IMG_WEBHOOK_SECRET"
            raise ParameterError("webhook", message)
        check_webhook(request.webhook, allow_private=self.settings.webhook_allow_private)

    def _reader(self, request: Request) -> ImageReader:
        """Return a reader of the request's images, with references replaced by the images."""
        keep_s = self.settings.result_ttl
        images = {
            name: image if isinstance(image, bytes) else fetch_reference(name, image, self.queue, self.store, keep_s)
            for name, image in request.images().items()
        }
        return ImageReader(images, self.decoders)

    def _enqueue(
        self, spec: JobSpec, blobs: Mapping[str, bytes], options: JobOptions, key: IdempotencyKey | None
    ) -> SubmittedJob:
        """Store the images and queue the job, unless a request with the same idempotency key has just done so."""
        headers = self.rate_limiter.spend(options.owner, spec.cost)
        self.queue.input_images.retain(map(input_key, blobs), options.result_ttl_s, options.owner)
        for digest, png in blobs.items():
            self.store.put(input_key(digest), png)
        if key is None:
            record, is_new = self.queue.submit(spec, options), True
        else:
            record, is_new = self.queue.submit_idempotent(key, spec, options)
        if is_new:
            message = "queued: %s of %s, priority %s"
            log.info(message, spec.task, spec.model, record.priority, extra=job_extra(record.id))
        return SubmittedJob(record, is_new, headers)


JobSubmitterDep = Annotated[JobSubmitter, Depends(JobSubmitter)]
