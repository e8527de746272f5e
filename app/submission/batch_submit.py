"""Submits a batch of jobs: all of its requests are checked before the first job is queued.

The specs of a batch are held as JSON and its images are stored as they are made, so that the memory depends little on
the number of jobs. If anything fails, what was stored and queued is deleted. If the API server dies, a repeated request
with the same idempotency key completes the batch; without one, retention deletes it.
"""

import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Annotated, Self

from anyio.to_thread import run_sync
from fastapi import Depends

from img2img.domain.blob_keys import input_key
from img2img.domain.job import DeadlinePolicy, JobOptions
from img2img.domain.job_batch import BatchMember, BatchRecord, BatchStatus
from img2img.domain.model_card import ModelCard
from img2img.domain.spec import JobSpec
from img2img.domain.webhook import BatchWebhook
from img2img.erasure import Eraser
from img2img.errors import Img2ImgError, NotConfirmed, ParameterError, Unavailable
from img2img.redis.idempotency import IdempotencyKey
from img2img.redis.job_queue import BatchGone, InputsDeleted
from img2img.stored_images import write_by_digest

from ..backends.moderation import texts_of
from ..schemas.batches import BatchItem
from ..schemas.image_references import UploadReference
from .batch_images import BatchImageReader
from .batch_items import BatchItems, naming_item, read_all
from .reuse import EarlierResults, reuse_cost
from .submit import REPLAYED, JobSubmitterDep, Submitted

log = logging.getLogger(__name__)

# A chunk of requests is checked in one turn at the decoders: until so many images were decoded, or this time is over.
CHUNK_IMAGES = 4
CHUNK_S = 0.5
# Jobs that are queued in one round trip.
QUEUED_AT_ONCE = 200
# The size of a referenced image is not known before it is read: a batch leaves decoders for small requests.
LARGE_IMAGE = UploadReference("")


@dataclass(frozen=True)
class _Spec:
    """The spec of a request, with its position in the batch."""

    index: int
    spec: JobSpec
    options: JobOptions
    name: str | None
    may_reuse: bool


@dataclass
class _Checked:
    """The jobs of a batch that were checked."""

    # Kind of the spec, the spec as JSON, options, name, whether an earlier result may be reused.
    jobs: list[tuple[type[JobSpec], str, JobOptions, str | None, bool]] = field(default_factory=list)
    # Generations of the stored inputs, by blob key.
    generations: dict[str, str] = field(default_factory=dict)
    cost: float = 0.0


@dataclass(frozen=True)
class BatchSubmitter:
    """Submits a batch of one caller."""

    jobs: JobSubmitterDep

    async def submit(self, items: BatchItems, webhook: BatchWebhook | None, fingerprint: str) -> Submitted[BatchRecord]:
        """Check all requests and queue their jobs.

        Raises:
            RequestValidationError, Img2ImgError: A request is refused. No job is queued.
        """
        submitter, queue = self.jobs, self.jobs.services.queue
        owner = submitter.caller.owner
        if webhook is not None:
            submitter.check_webhook(webhook)
        key, earlier = None, None
        if submitter.idempotency_key:
            key = IdempotencyKey(submitter.idempotency_key, fingerprint, owner)
            earlier = await run_sync(self._find_earlier, key)
            if earlier and earlier.status is not BatchStatus.ACCEPTING:
                return Submitted(earlier, _headers(earlier) | REPLAYED)
        if earlier is None:
            await run_sync(queue.check_limits, owner)
        checked = await self._check(items)
        record = earlier or BatchRecord(
            id=queue.new_id(),
            status=BatchStatus.ACCEPTING,
            owner=owner,
            created_at=await run_sync(queue.clock.now),
            result_ttl_s=submitter.services.settings.result_ttl,
            total=len(checked.jobs),
            webhook=webhook,
            traceparent=submitter.services.tracer.traceparent(),
        )
        return await submitter.services.store_threads.run(self._accept, record, checked, key, must_finish=True)

    def _find_earlier(self, key: IdempotencyKey) -> BatchRecord | None:
        batch_id = self.jobs.services.queue.find_id(key)
        return self.jobs.services.queue.batches.find(batch_id) if batch_id else None

    async def _check(self, items: BatchItems) -> _Checked:
        """Check all requests, and store their images."""
        submitter, checked = self.jobs, _Checked()
        services = submitter.services
        reader = BatchImageReader(
            submitter.decoders,
            services.store,
            services.store_threads.call,
            submitter.visible_queue,
            services.settings.result_ttl,
            images=items.images,
        )
        requests = _Requests(read_all(items))
        cards: dict[str | None, ModelCard] = {}
        moderated: set[object] = set()
        submitter.held_bytes.add(sum(map(len, items.images.values())))
        try:
            while not requests.is_done:
                specs = await submitter.decoders.run(self._build, requests, reader, cards, images=[LARGE_IMAGE])
                blobs = reader.take_blobs()
                await self._moderate(specs, blobs, moderated)
                new = {input_key(digest): png for digest, png in blobs.items()}
                await services.store_threads.run(self._store, new, checked, must_finish=True)
                reusing = [one for one in specs if one.may_reuse]
                if reusing:
                    checked.cost += await services.store_threads.run(self._cost_reusing, reusing, must_finish=True)
                for one in specs:
                    text = one.spec.model_dump_json()
                    submitter.held_bytes.add(len(text))
                    checked.jobs.append((type(one.spec), text, one.options, one.name, one.may_reuse))
                    checked.cost += 0 if one.may_reuse else one.spec.cost
        except Exception:
            await services.store_threads.run(self._drop, checked, must_finish=True)
            raise
        return checked

    def _build(
        self, requests: "_Requests", reader: BatchImageReader, cards: dict[str | None, ModelCard]
    ) -> list[_Spec]:
        """Return the specs of the next requests."""
        specs: list[_Spec] = []
        decoded, ends_at = reader.decoded + CHUNK_IMAGES, time.monotonic() + CHUNK_S
        for index, request in requests:
            with naming_item(index):
                options = self.jobs.options(request)
                if options.deadline_policy is DeadlinePolicy.REJECT:
                    message = "Jobs of a batch are not refused by their ETA; use `cancel` or `best_effort`"
                    raise ParameterError("deadline_policy", message, got=options.deadline_policy)
                card = cards.get(request.model)
                if card is None:
                    card = cards[request.model] = self.jobs.model_card(request.model)
                spec = self.jobs.build_spec(request, card, reader)
            specs.append(_Spec(index, spec, options, request.name, request.reuse))
            if reader.decoded >= decoded or time.monotonic() > ends_at:
                break
        return specs

    async def _moderate(self, specs: list[_Spec], blobs: Mapping[str, bytes], seen: set[object]) -> None:
        """Moderate each text and each image once."""
        if self.jobs.services.moderation is None:
            return
        for one in specs:
            texts = texts_of(one.spec)
            new = {digest: blobs[digest] for digest in one.spec.inputs if digest in blobs and digest not in seen}
            if new or texts not in seen:
                with naming_item(one.index):
                    await self.jobs.moderate(one.spec, new)
            seen.update((texts, *new))

    def _store(self, blobs: Mapping[str, bytes], checked: _Checked) -> None:
        services = self.jobs.services
        new = {key: png for key, png in blobs.items() if key not in checked.generations}
        services.free_disk.take(sum(map(len, new.values())))
        sizes = {key: len(png) for key, png in new.items()}
        checked.generations |= services.queue.input_images.retain(sizes, self.jobs.caller.owner)
        for key, png in new.items():
            write_by_digest(services.store, key, png)

    def _cost_reusing(self, specs: list[_Spec]) -> float:
        """Return the cost of jobs that may reuse a result: little for each that will."""
        results = EarlierResults(self.jobs.services)
        return sum(
            reuse_cost(one.spec) if results.find(one.spec, one.options.owner) else one.spec.cost for one in specs
        )

    def _drop(self, checked: _Checked) -> None:
        services = self.jobs.services
        Eraser(services.queue, services.store).drop_unused(list(checked.generations))

    def _accept(self, record: BatchRecord, checked: _Checked, key: IdempotencyKey | None) -> Submitted[BatchRecord]:
        """Queue the jobs. Deletes the batch if one of them cannot be queued."""
        services = self.jobs.services
        queue, limiter = services.queue, services.rate_limiter
        try:
            headers = limiter.spend(record.owner, checked.cost) if limiter else {}
            earlier_id = queue.batches.open(record, self.jobs.caller.key_id, key)
        except Img2ImgError:
            self._drop(checked)
            raise
        if earlier_id is not None:
            # Another request with the key has begun it at the same time, or an interrupted one before.
            record = queue.batches.find(earlier_id)
        try:
            jobs = enumerate(checked.jobs)
            while chunk := [self._queueable(record.id, index, *job) for index, job in islice(jobs, QUEUED_AT_ONCE)]:
                self._queue_chunk(chunk, checked, record.created_at)
            if not queue.batches.complete(record.id):
                raise BatchGone
        except NotConfirmed:
            # A repeated request completes the batch.
            raise
        except Img2ImgError as error:
            Eraser(queue, services.store).delete_batch(record.id)
            self._drop(checked)
            if key is not None:
                queue.release_idempotency_key(key)
            if isinstance(error, InputsDeleted | BatchGone):
                raise Unavailable("An image of the batch is being deleted; try again in a moment.") from None
            raise
        log.info("queued a batch of %d jobs", record.total)
        record = queue.batches.find(record.id)
        return Submitted(record, {**headers, **_headers(record), **(REPLAYED if earlier_id else {})})

    def _queueable(
        self,
        batch_id: str,
        index: int,
        kind: type[JobSpec],
        text: str,
        options: JobOptions,
        name: str | None,
        may_reuse: bool,
    ) -> tuple[JobSpec, JobOptions]:
        """Return a job of the batch, with the result of an earlier one if it may reuse it."""
        spec, member = kind.model_validate_json(text), BatchMember(id=batch_id, index=index, name=name)
        results = EarlierResults(self.jobs.services)
        earlier = results.find(spec, options.owner) if may_reuse else None
        reused = results.copy(earlier, member.job_id) if earlier is not None else None
        return spec, replace(options, batch=member, reuses=reused)

    def _queue_chunk(self, chunk: list[tuple[JobSpec, JobOptions]], checked: _Checked, created_at: float) -> None:
        """Queue jobs. Those whose earlier job is deleted at this moment are run."""
        queue, results = self.jobs.services.queue, EarlierResults(self.jobs.services)
        try:
            gone = [chunk[position] for position in queue.submit_to_batch(chunk, checked.generations, created_at)]
        except Img2ImgError:
            # The batch is deleted, but a job that was not queued is not deleted with it.
            for _, options in chunk:
                if options.reuses is not None:
                    results.drop(options.reuses)
            raise
        for _, options in gone:
            assert options.reuses
            results.drop(options.reuses)
        if gone:
            run = [(spec, replace(options, reuses=None)) for spec, options in gone]
            queue.submit_to_batch(run, checked.generations, created_at)


class _Requests:
    """The requests of a batch that are still to be checked, with their positions."""

    def __init__(self, requests: Iterator[BatchItem]) -> None:
        self._requests = enumerate(requests)
        self.is_done = False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> tuple[int, BatchItem]:
        try:
            return next(self._requests)
        except StopIteration:
            self.is_done = True
            raise


def _headers(record: BatchRecord) -> dict[str, str]:
    return {"Location": f"/batches/{record.id}"}


BatchSubmitterDep = Annotated[BatchSubmitter, Depends(BatchSubmitter)]
