"""Submits a request as a job: builds its spec, checks the limits, stores its images and queues it."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Protocol

from anyio.to_thread import run_sync
from fastapi import Depends

from img2img.domain.blob_keys import input_key
from img2img.domain.job import JobOptions, JobRecord
from img2img.domain.model_card import ModelCard
from img2img.domain.parameters import Task
from img2img.domain.spec import JobSpec
from img2img.domain.webhook import Webhook
from img2img.errors import ParameterError, Unavailable
from img2img.redis.idempotency import IdempotencyKey
from img2img.redis.job_queue import JobQueue
from img2img.stored_images import write_by_digest
from img2img.telemetry.logging import job_extra

from ..dependencies import CallerDep, DecodersDep, ServicesDep
from ..schemas.requests import ControlMapRequest, Img2ImgRequest
from ..schemas.responses import DryRunResult
from ..webhooks.ssrf_guard import check_webhook
from .defaults import resolve_generation
from .spec_builder import ImageReader, SpecBuilder, build_control_map_spec
from .task_selection import check_model, choose_task

log = logging.getLogger(__name__)

Request = Img2ImgRequest | ControlMapRequest

# Header of a response with the job of an earlier request.
REPLAYED = {"Idempotency-Replayed": "true"}


@dataclass(frozen=True)
class SubmittedJob:
    """A queued job, or the job of an earlier request with the same idempotency key."""

    record: JobRecord
    # Headers of the response.
    headers: Mapping[str, str]


@dataclass(frozen=True)
class JobSubmitter:
    """Submits requests of one caller. All routes that create jobs use it."""

    services: ServicesDep
    caller: CallerDep
    decoders: DecodersDep

    async def submit(self, request: Request, idempotency_key: str | None = None) -> SubmittedJob:
        """Queue a job.

        A full queue is noticed before images are decoded. Of a refused request, only the decoding counts against the
        rate limit.

        Raises:
            Img2ImgError: The request is refused.
        """
        options = self._options(request)
        key = None
        if idempotency_key:
            fingerprint = await run_sync(request.fingerprint)
            key = IdempotencyKey(idempotency_key, fingerprint, options.owner)
            earlier = await run_sync(self._visible_queue().find_by_idempotency_key, key)
            if earlier:
                return SubmittedJob(earlier, {"Location": f"/jobs/{earlier.id}", **REPLAYED})
        await run_sync(self.services.queue.check_limits, options.owner)
        spec, blobs = await self.decoders.run(self._build_spec, request, images=_images(request))
        return await run_sync(self._enqueue, spec, blobs, options, key)

    async def dry_run(self, request: Request) -> DryRunResult:
        """Return the job that the request would make. Raises the errors of `submit`, except for limits."""
        spec, _ = await self.decoders.run(self._build_spec, request, images=_images(request))
        options = self._options(request)
        estimate = await run_sync(self.services.eta.estimate_next, spec, options)
        return DryRunResult(
            request=spec,
            priority=options.priority,
            cost=spec.cost,
            queue_position=estimate.queue_position,
            eta_s=estimate.eta_s,
        )

    def model_card(self, model: str | None) -> ModelCard:
        """Return the card of the named model, or of the default model. Raises ParameterError or Unavailable."""
        return resolve_model(model, self.services.default_model, self.services.models)

    def _visible_queue(self) -> JobQueue:
        """Return the queue, limited to the jobs and input images that the caller may see."""
        return self.services.queue.visible_to(self.caller.visible_owner)

    def _options(self, request: Request) -> JobOptions:
        options = JobOptions(
            result_ttl_s=self.services.settings.result_ttl,
            deadline_s=request.deadline_s,
            owner=self.caller.owner,
            traceparent=self.services.tracer.traceparent(),
        )
        if isinstance(request, ControlMapRequest):
            return options
        return replace(options, priority=request.priority, webhook=request.webhook)

    def _build_spec(self, request: Request) -> tuple[JobSpec, Mapping[str, bytes]]:
        """Return the spec of the request, and the blobs that it refers to by their sha256."""
        services = self.services
        card = self.model_card(request.model)
        reader = ImageReader(self.decoders, services.store, self._visible_queue, services.settings.result_ttl)
        if isinstance(request, ControlMapRequest):
            return build_control_map_spec(request, card, reader), reader.blobs
        if request.webhook is not None:
            self._check_webhook(request.webhook)
        task = choose_task(request)
        check_model(request, task, card)
        resolved = resolve_generation(request, card) if task is not Task.UPSCALE else {}
        builder = SpecBuilder(request, card, reader, services.settings.max_pixels, resolved)
        return builder.build(task), reader.blobs

    def _check_webhook(self, webhook: Webhook) -> None:
        settings = self.services.settings
        if not settings.webhook_secrets:
            message = "This service sends no webhooks: its operator has to set IMG2IMG_WEBHOOK_SECRET"
            raise ParameterError("webhook", message)
        check_webhook(webhook, allow_private=settings.webhook_allow_private)

    def _enqueue(
        self, spec: JobSpec, blobs: Mapping[str, bytes], options: JobOptions, key: IdempotencyKey | None
    ) -> SubmittedJob:
        """Store the images and queue the job, unless a request with the same idempotency key has just done so."""
        queue, store = self.services.queue, self.services.store
        digests, cost = spec.inputs, spec.cost
        keys = {digest: input_key(digest) for digest in digests}
        sizes = {blob_key: len(blobs[digest]) for digest, blob_key in keys.items()}
        limiter = self.services.rate_limiter
        headers = limiter.spend(options.owner, cost) if limiter else {}
        self.services.free_disk.take(sum(sizes.values()))
        queue.input_images.retain(sizes, options.result_ttl_s, options.owner)
        for digest, blob_key in keys.items():
            write_by_digest(store, blob_key, blobs[digest])
        record, is_new = queue.submit_idempotent(key, spec, options) if key else (queue.submit(spec, options), True)
        if is_new:
            message = "queued: %s of %s, priority %s"
            log.info(message, spec.task, spec.model, record.priority, extra=job_extra(record.id))
        location = {"Location": f"/jobs/{record.id}"}
        return SubmittedJob(record, {**headers, **location, **({} if is_new else REPLAYED)})


def _images(request: Request) -> list[object]:
    """Return the images of a request and its references to stored images."""
    if isinstance(request, ControlMapRequest):
        return [request.image]
    controls, prompts = request.controls, request.image_prompts
    return [request.image, request.mask, *(c.image for c in controls), *(p.image for p in prompts)]


class ModelCards(Protocol):
    """The cards of the models that workers have registered."""

    def find(self, name: str) -> ModelCard | None: ...

    def known_names(self) -> list[str]: ...


def resolve_model(name: str | None, default: str, cards: ModelCards) -> ModelCard:
    """Return the card of the model that a request names, or of the default model.

    Raises:
        ParameterError: There is no such model.
        Unavailable: No worker has registered the default model yet.
    """
    card = cards.find(name or default)
    if card:
        return card
    if name in (None, default):
        raise Unavailable(f"No worker has registered the model {default} yet; try again when one runs.")
    raise ParameterError("model", f"Input should be one of: {', '.join(cards.known_names())}", got=name)


JobSubmitterDep = Annotated[JobSubmitter, Depends(JobSubmitter)]
