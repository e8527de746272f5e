"""Submits a request as a job: builds its spec, checks the limits, stores its images and queues it."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Generic, Protocol, TypeVar

from anyio.to_thread import run_sync
from fastapi import Depends, Header, Response

from img2img.domain.api_key import Scope
from img2img.domain.blob_keys import input_key, presigned_upload, upload_key
from img2img.domain.job import DeadlinePolicy, JobOptions, JobRecord, Priority
from img2img.domain.model_card import ModelCard
from img2img.domain.parameters import Task
from img2img.domain.spec import JobSpec
from img2img.domain.text_forms import Matches
from img2img.domain.webhook import BatchWebhook
from img2img.erasure import Eraser
from img2img.errors import Img2ImgError, ParameterError, Unavailable
from img2img.redis.idempotency import IdempotencyKey
from img2img.redis.job_queue import InputsDeleted, JobQueue, SourceGone
from img2img.stored_images import write_by_digest
from img2img.telemetry.logging import job_extra

from ..backends.decoder_share import DecoderShare
from ..dependencies import ContextDep, Services
from ..http.authentication import Caller
from ..http.errors import DeadlineUnmet, InsufficientScope
from ..http.in_flight import HeldBytes
from ..schemas.request_fields import MaskObject
from ..schemas.requests import ControlMapRequest, Img2ImgRequest, MaskRequest
from ..schemas.responses import DryRunResult, Job, QueueEstimate
from ..webhooks.ssrf_guard import check_webhook
from .defaults import resolve_generation
from .image_reader import ImageReader
from .masks import build_mask_spec
from .reuse import EarlierResults, check_reuse, reuse_cost
from .spec_builder import SpecBuilder, build_control_map_spec, needs_decoder
from .task_selection import check_model, choose_task

log = logging.getLogger(__name__)

Request = Img2ImgRequest | ControlMapRequest | MaskRequest

# How often a job is submitted whose inputs are deleted with other jobs at the same time.
MAX_SUBMITS = 5

IdempotencyKeyHeader = Annotated[
    Annotated[str, Matches(r"^[\x21-\x7e]{1,255}$", "1 to 255 characters of ASCII without spaces, such as a UUID")]
    | None,
    Header(
        alias="Idempotency-Key",
        description="Makes retries safe: the same request with the same key within 24 hours returns the same result.",
        examples=["7c4a8d09-order-17"],
    ),
]
# Header of a response with the result of an earlier request.
REPLAYED = {"Idempotency-Replayed": "true"}


Record = TypeVar("Record")


@dataclass(frozen=True)
class Submitted(Generic[Record]):
    """A queued job or accepted batch, or that of an earlier request with the same idempotency key.

    Attributes:
        headers: Those of the response.
        estimate: The place of a job in the queue, if it is known.
    """

    record: Record
    headers: Mapping[str, str]
    estimate: QueueEstimate | None = None


@dataclass(frozen=True)
class JobSubmitter:
    """Submits a request of one caller. All routes that create jobs use it, so all have the header."""

    context: ContextDep
    idempotency_key: IdempotencyKeyHeader = None

    @property
    def services(self) -> Services:
        return self.context.services

    @property
    def caller(self) -> Caller:
        return self.context.caller

    @property
    def decoders(self) -> DecoderShare:
        return self.context.decoders

    @property
    def held_bytes(self) -> HeldBytes:
        return self.context.held_bytes

    async def submit(self, request: Request) -> Submitted[JobRecord]:
        """Queue a job.

        A full queue is noticed before images are decoded. Of a refused request, only the decoding counts against the
        rate limit.

        Raises:
            Img2ImgError: The request is refused.
        """
        options = self.options(request)
        if self.services.moderation is None and self._is_deferred(request):
            # Nothing waits for a decoder or the blob store.
            return await run_sync(self._submit_at_once, request, options)
        key = None
        if self.idempotency_key:
            fingerprint = await run_sync(request.fingerprint, limiter=self.services.parsers)
            key = IdempotencyKey(self.idempotency_key, fingerprint, options.owner)
            if earlier := await run_sync(self._find_earlier, key):
                return earlier
        await run_sync(self.services.queue.check_limits, options.owner)
        spec, blobs = await self._resolve(request)
        self.held_bytes.add(sum(map(len, blobs.values())))
        await self.moderate(spec, blobs)
        if options.deadline_policy is DeadlinePolicy.REJECT:
            self._check_deadline(options, await run_sync(self.services.eta.estimate_next, spec, options))
        may_reuse = isinstance(request, Img2ImgRequest) and request.reuse
        return await self.services.store_threads.run(
            self._enqueue, spec, blobs, options, key, may_reuse, must_finish=True
        )

    async def submit_job(self, request: Request, response: Response) -> Job:
        """Queue a job as `submit` does, set the headers of the response, and return the job with its estimate."""
        submitted = await self.submit(request)
        response.headers.update(submitted.headers)
        estimate = submitted.estimate
        if estimate is None:
            [estimate] = await run_sync(self.services.eta.estimate, [submitted.record])
        return Job.from_record(submitted.record, estimate)

    def _submit_at_once(self, request: Request, options: JobOptions) -> Submitted[JobRecord]:
        """Queue a job whose images are not decoded here, as `submit` does."""
        key = None
        if self.idempotency_key:
            key = IdempotencyKey(self.idempotency_key, request.fingerprint(), options.owner)
            if earlier := self._find_earlier(key):
                return earlier
        self.services.queue.check_limits(options.owner)
        spec, blobs = self._build_spec(request)
        if options.deadline_policy is DeadlinePolicy.REJECT:
            self._check_deadline(options, self.services.eta.estimate_next(spec, options))
        may_reuse = isinstance(request, Img2ImgRequest) and request.reuse
        submitted = self._enqueue(spec, blobs, options, key, may_reuse)
        [estimate] = self.services.eta.estimate([submitted.record])
        return replace(submitted, estimate=estimate)

    def _find_earlier(self, key: IdempotencyKey) -> Submitted[JobRecord] | None:
        """Return the job of an earlier request with this key."""
        record = self.visible_queue().find_by_idempotency_key(key)
        return Submitted(record, {"Location": f"/jobs/{record.id}", **REPLAYED}) if record else None

    async def dry_run(self, request: Request) -> DryRunResult:
        """Return the job that the request would make. Raises the errors of `submit`, except for limits."""
        options = self.options(request)
        spec, blobs = await self._resolve(request)
        await self.moderate(spec, blobs)
        estimate = await run_sync(self.services.eta.estimate_next, spec, options)
        self._check_deadline(options, estimate)
        return DryRunResult(
            request=spec,
            priority=options.priority,
            cost=spec.cost,
            queue_position=estimate.queue_position,
            eta_s=estimate.eta_s,
        )

    def _check_deadline(self, options: JobOptions, estimate: QueueEstimate) -> None:
        """Raise DeadlineUnmet if the job is to be rejected by its estimate. Without an estimate it is accepted."""
        if options.deadline_policy is not DeadlinePolicy.REJECT or options.deadline_s is None:
            return
        if estimate.eta_s is not None and estimate.eta_s > options.deadline_s:
            raise DeadlineUnmet(options.deadline_s, estimate.eta_s)

    async def moderate(self, spec: JobSpec, blobs: Mapping[str, bytes]) -> None:
        """Ask the moderation endpoint, if there is one. Raises FlaggedRequest, ModerationUnavailable or Overloaded."""
        if self.services.moderation is not None:
            await self.services.moderation.check(spec, blobs, self.caller.owner)

    def model_card(self, model: str | None) -> ModelCard:
        """Return the card of the named model, or of the default model. Raises ParameterError or Unavailable."""
        return resolve_model(model, self.services.default_model.name, self.services.models)

    def visible_queue(self) -> JobQueue:
        """Return the queue, limited to the jobs and input images that the caller may see."""
        return self.services.queue.visible_to(self.caller.visible_owner)

    def options(self, request: Request) -> JobOptions:
        """Return the options of the job. Raises InsufficientScope or ParameterError."""
        if request.deadline_policy is not DeadlinePolicy.CANCEL and request.deadline_s is None:
            raise ParameterError("deadline_policy", "Only with `deadline_s`", got=request.deadline_policy)
        options = JobOptions(
            result_ttl_s=self.services.settings.result_ttl,
            deadline_s=request.deadline_s,
            deadline_policy=request.deadline_policy,
            owner=self.caller.owner,
            key_id=self.caller.key_id,
            traceparent=self.services.tracer.traceparent(),
        )
        if not isinstance(request, Img2ImgRequest):
            return options
        if request.priority is Priority.HIGH and not self.caller.may_prioritize:
            raise InsufficientScope(
                Scope.PRIORITY,
                "`priority: high` needs an API key with the scope `priority`, which `img2img keys create` and `rotate` "
                "give with `--scope`; without it, use `normal` or `low`.",
            )
        return replace(options, priority=request.priority, webhook=request.webhook)

    async def _resolve(self, request: Request) -> tuple[JobSpec, Mapping[str, bytes]]:
        """Return the spec of the request, and the blobs that it refers to by their sha256."""
        if self._is_deferred(request):
            return await run_sync(self._build_spec, request)
        return await self.decoders.run(self._build_spec, request, images=_images(request))

    def _is_deferred(self, request: Request) -> bool:
        """Whether a worker decodes the only image of a request."""
        return isinstance(request, Img2ImgRequest) and self._may_defer and not needs_decoder(request)

    @property
    def _may_defer(self) -> bool:
        """Whether workers may decode images that were sent to the bucket: unless they have to be moderated first."""
        settings = self.services.settings
        return self.services.upload_signer is not None and not (
            self.services.moderation is not None and "input" in settings.moderated
        )

    def _build_spec(self, request: Request) -> tuple[JobSpec, Mapping[str, bytes]]:
        """Return the spec of the request, and the blobs that it refers to by their sha256."""
        services = self.services
        reader = ImageReader(
            self.decoders,
            services.store,
            services.store_threads.call,
            self.visible_queue,
            services.settings.result_ttl,
            may_defer=self._may_defer,
        )
        card = self.model_card(request.model)
        if isinstance(request, ControlMapRequest):
            return build_control_map_spec(request, card, reader), reader.blobs
        if isinstance(request, MaskRequest):
            return build_mask_spec(request, card, reader), reader.blobs
        return self.build_spec(request, card, reader), reader.blobs

    def build_spec(self, request: Img2ImgRequest, card: ModelCard, reader: ImageReader) -> JobSpec:
        """Return the spec of a request. Its images are added to those of the reader."""
        services = self.services
        if request.webhook is not None:
            self.check_webhook(request.webhook)
        check_reuse(request)
        task = choose_task(request)
        check_model(request, task, card)
        resolved = resolve_generation(request, card) if task is not Task.UPSCALE else {}
        builder = SpecBuilder(request, card, reader, services.settings.max_pixels, resolved)
        return builder.build(task)

    def check_webhook(self, webhook: BatchWebhook) -> None:
        """Raise ParameterError for a webhook that the service would not call."""
        settings = self.services.settings
        if not settings.webhook_secrets:
            message = "This service sends no webhooks: its operator has to set IMG2IMG_WEBHOOK_SECRET"
            raise ParameterError("webhook", message)
        check_webhook(webhook, allow_private=settings.webhook_allow_private)

    def _enqueue(
        self,
        spec: JobSpec,
        blobs: Mapping[str, bytes],
        options: JobOptions,
        key: IdempotencyKey | None,
        may_reuse: bool,
    ) -> Submitted[JobRecord]:
        """Store the images and queue the job, unless a request with the same idempotency key has just done so.

        Args:
            may_reuse: Whether the job may end at once, with the result of an earlier one.
        """
        inputs = {input_key(digest): blobs[digest] for digest in spec.inputs if digest in blobs}
        results = EarlierResults(self.services)
        earlier = results.find(spec, options.owner) if may_reuse else None
        limiter = self.services.rate_limiter
        cost = spec.cost if earlier is None else min(spec.cost, reuse_cost(spec))
        headers = limiter.spend(options.owner, cost) if limiter else {}
        self.services.free_disk.take(sum(map(len, inputs.values())))
        reused = results.copy(earlier) if earlier is not None else None
        eraser = Eraser(self.services.queue, self.services.store)
        try:
            record, is_new = self._store_and_submit(inputs, spec, replace(options, reuses=reused), key)
        except Img2ImgError:
            eraser.drop_unused(spec.input_keys)
            if reused is not None:
                results.drop(reused)
            raise
        if reused is not None and record.id != reused.job_id:
            results.drop(reused)
        if not is_new:
            eraser.drop_unused(spec.input_keys)
        else:
            message = "%s: %s of %s, priority %s"
            state = "reused" if record.reused_from else "queued"
            log.info(message, state, spec.task, spec.model, record.priority, extra=job_extra(record.id))
        location = {"Location": f"/jobs/{record.id}"}
        return Submitted(record, {**headers, **location, **({} if is_new else REPLAYED)})

    def _store_and_submit(
        self, blobs: Mapping[str, bytes], spec: JobSpec, options: JobOptions, key: IdempotencyKey | None
    ) -> tuple[JobRecord, bool]:
        """Store the inputs by their blob keys and queue the job. Repeated if an input is deleted in between.

        If the job is deleted whose result it reuses, it is run.
        """
        queue = self.services.queue
        sizes = {blob_key: len(png) for blob_key, png in blobs.items()}
        # Sent by the client, and counted as an upload of its owner before.
        sent = (presigned_upload(blob_key) for blob_key in spec.input_keys)
        sizes |= {upload_key(upload.id): upload.bytes for upload in sent if upload}
        for _ in range(MAX_SUBMITS):
            generations = queue.input_images.retain(sizes, options.owner)
            for blob_key, png in blobs.items():
                write_by_digest(self.services.store, blob_key, png)
            try:
                if key is not None:
                    return queue.submit_idempotent(key, spec, options, generations)
                return queue.submit(spec, options, generations), True
            except InputsDeleted:
                continue
            except SourceGone:
                options = replace(options, reuses=None)
        raise Unavailable("A copy of an image is being deleted; try again in a moment.")


def _images(request: Request) -> list[object]:
    """Return the images of a request and its references to stored images."""
    if not isinstance(request, Img2ImgRequest):
        return [request.image]
    controls, prompts = request.controls, request.image_prompts
    nested = (*(c.image for c in controls), *(p.image for p in prompts), *(region.mask for region in request.regions))
    masks = [] if isinstance(request.mask, MaskObject) else [request.mask]
    return [request.image, *request.images, *masks, *nested]


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
