"""From a request to a job in the queue: the one way in, in the order that wastes least when the job is refused."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated

from anyio.to_thread import run_sync
from fastapi import Depends

from img2img.domain.job import JobOptions, JobRecord
from img2img.domain.model_card import ModelCard, model_name
from img2img.domain.spec import JobSpec, input_key
from img2img.redis.idempotency import IdempotencyKey
from img2img.telemetry.logging import job_extra

from ..dependencies import CallerDep, DecodersDep, ModelsDep, QueueDep, RateLimiterDep, SettingsDep, StoreDep, TracerDep
from ..imaging.sandbox_pool import SandboxedImage
from ..schemas.image_references import ImageReference, fetch_reference
from .defaults import resolve_model

log = logging.getLogger(__name__)

Plan = tuple[JobSpec, Mapping[str, bytes]]  # and the pictures that it names, as the worker takes them, by sha256


@dataclass(frozen=True)
class SubmittedJob:
    """A job that was queued, or one that the same request had made before."""

    record: JobRecord
    new: bool
    headers: Mapping[str, str]  # what the caller may still have


@dataclass(frozen=True)
class JobSubmitter:
    """What a request needs to become a job, for its caller."""

    settings: SettingsDep
    caller: CallerDep
    queue: QueueDep
    rate: RateLimiterDep
    store: StoreDep
    models: ModelsDep
    decoders: DecodersDep
    traces: TracerDep

    def card(self, model: str | None) -> ModelCard:
        """The model that a request names, or the default. Raises ParameterError or Unavailable."""
        return resolve_model(model, model_name(self.settings.model), self.models.known())

    def open(self, field: str, picture: bytes | ImageReference) -> SandboxedImage:
        """A picture of the request. Raises ParameterError, UnsupportedMedia or PictureError."""
        if not isinstance(picture, bytes):
            picture = fetch_reference(field, picture, self.queue, self.store, self.settings.result_ttl)
        return self.decoders.open(picture)

    async def plan(self, make: Callable[[], Plan]) -> Plan:
        """Makes a plan, which decodes pictures."""
        return await run_sync(make, limiter=self.decoders.limiter)

    async def admit(
        self, make: Callable[[], Plan], terms: JobOptions, once: IdempotencyKey | None = None
    ) -> SubmittedJob:
        """Queues what `make` plans. Raises QueueFull, TooManyQueued, JobTooExpensive or RateLimited.

        A full queue is found out before pictures are decoded; what cannot be planned is not counted against the rate.
        """
        await run_sync(self.queue.check_limits, terms.owner)
        spec, blobs = await self.plan(make)
        headers = await run_sync(self.rate.spend, terms.owner, spec.cost)
        record, new = await run_sync(self._submit, spec, terms, blobs, once)
        return SubmittedJob(record, new, headers)

    def _submit(
        self, spec: JobSpec, terms: JobOptions, blobs: Mapping[str, bytes], once: IdempotencyKey | None
    ) -> tuple[JobRecord, bool]:
        """Stores the pictures and queues the job, unless the same request has just done it."""
        for digest, picture in blobs.items():
            self.queue.input_images.retain(input_key(digest), terms.result_ttl_s, terms.owner)
            self.store.put(input_key(digest), picture)
        record, new = (
            (self.queue.submit(spec, terms), True) if once is None else self.queue.submit_idempotent(once, spec, terms)
        )
        if new:
            log.info(
                "queued: %s of %s, priority %s", spec.task, spec.model, record.priority, extra=job_extra(record.id)
            )
        return record, new


JobSubmitterDep = Annotated[JobSubmitter, Depends(JobSubmitter)]
