"""The queue of jobs: one RQ queue per model, whose entries are job ids. Everything else is in the job record."""

import json
from collections.abc import Mapping, Sequence
from copy import copy
from functools import cache
from typing import Self

from redis import Redis

from img2img.domain.api_key import ApiKey, owner_of
from img2img.domain.cells import digits_of, new_id
from img2img.domain.job import JobFailure, JobOptions, JobRecord, JobStatus
from img2img.domain.spec import JobSpec
from img2img.errors import Img2ImgError, InvalidApiKey, QueueFull
from img2img.redis import job_record, scripts
from img2img.redis.clock import redis_clock
from img2img.redis.decode import decode
from img2img.redis.durability import DurableWrites
from img2img.redis.idempotency import KEPT_S, IdempotencyKey
from img2img.redis.input_images import InputImageRefs
from img2img.redis.job_batches import JobBatches
from img2img.redis.job_store import JobStore, job_index
from img2img.redis.keys import JOB
from img2img.redis.queue_limits import QueueLimits
from img2img.redis.rq_adapter import RQFields, rq_job_fields, rq_job_key, rq_queue, send_stop_command, text_of

MAX_ATTEMPTS = 3
# Reply of the script that queues a job.
SOURCE_GONE = b"source_gone"

WORKER_LOST = JobFailure(
    code="worker_lost", message=f"the workers that ran this job were lost {MAX_ATTEMPTS} times; it is not retried"
)
# The reason is added to the message.
MODEL_UNAVAILABLE = JobFailure(code="model_unavailable", message="no worker can load the model")
DEADLINE_EXCEEDED = JobFailure(code="deadline_exceeded", message="the job was not done by its deadline")


class InputsDeleted(Img2ImgError):
    """Inputs of the job were deleted after they were retained. They have to be stored again."""


class BatchGone(Img2ImgError):
    """The batch of the job was cancelled or deleted."""


class SourceGone(Img2ImgError):
    """The job was deleted whose result is to be reused."""


class JobQueue:
    """Submits, claims, requeues and cancels jobs.


    Args:
        cell: Name of the cell whose Redis it is; empty for a service without cells.
        writes: Confirms that jobs are submitted, cancelled and deleted, where that is acknowledged to a client. All
            methods that do so raise NotConfirmed. Default: nothing is confirmed.
    """

    def __init__(
        self,
        redis: Redis,
        limits: QueueLimits = QueueLimits(),  # noqa: B008  # frozen
        writes: DurableWrites | None = None,
        cell: str = "",
    ) -> None:
        self._cell_digits = digits_of(cell)
        self.writes = writes or DurableWrites(redis)
        self._redis = redis
        self._limits = limits
        self.clock = redis_clock(redis)
        self.job_store = JobStore(redis, self.writes)
        self.input_images = InputImageRefs(redis, limits)
        self.batches = JobBatches(redis, limits, self.writes)
        self._queue = cache(lambda model: rq_queue(model, redis))
        self._submit_script = scripts.register(redis, "submit_job")
        self._requeue_script = scripts.register(redis, "requeue_job")

    def visible_to(self, owner: str | None) -> Self:
        """Return a queue with only the jobs and input images of this owner; None means those of all owners."""
        restricted = copy(self)
        restricted.job_store = self.job_store.visible_to(owner)
        restricted.input_images = self.input_images.visible_to(owner)
        restricted.batches = self.batches.visible_to(owner)
        return restricted

    def new_id(self) -> str:
        """Return a new id of a job or a batch."""
        return new_id(self._cell_digits)

    def check_limits(self, owner: str) -> None:
        """Check that a job could be queued now, before its request is processed. `submit` checks again.

        Raises:
            QueueFull: As many jobs are waiting as may.
            TooManyQueued: As many jobs of this owner are waiting as may.
        """
        if self._limits == QueueLimits():
            return
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.zcard(job_index(owner, JobStatus.QUEUED))
            pipe.zcard(job_index(None, JobStatus.QUEUED))
            queued_of_owner, queued = pipe.execute()
        if self._limits.max_queued_per_owner is not None and queued_of_owner >= self._limits.max_queued_per_owner:
            raise self._limits.owner_error()
        if self._limits.max_queued is not None and queued >= self._limits.max_queued:
            raise QueueFull

    def find_by_idempotency_key(self, key: IdempotencyKey) -> JobRecord | None:
        """Return the job that the same request has submitted before, if any.

        Raises:
            IdempotencyKeyReused: Another request came with this key.
            NotFound, Expired, Deleted: The job is gone.
        """
        job_id = self.find_id(key)
        if job_id is None:
            return None
        record = self.job_store.find(job_id)
        self.writes.confirm()
        return record

    def find_id(self, key: IdempotencyKey) -> str | None:
        """Return the id that the same request has got before, if any. Raises IdempotencyKeyReused."""
        stored = self._redis.get(key.redis_key)
        return None if stored is None else key.job_id(stored)

    def release_idempotency_key(self, key: IdempotencyKey) -> None:
        """Let the key be used again, because what was made with it is deleted."""
        self._redis.delete(key.redis_key)

    def reserve_idempotency_key(self, key: IdempotencyKey, result_id: str) -> bool:
        """Reserve a key for a request that makes no job. Returns False if the same request has done so before.

        Raises:
            IdempotencyKeyReused: Another request came with this key.
        """
        value = f"{key.fingerprint} {result_id}"
        if self._redis.set(key.redis_key, value, nx=True, ex=KEPT_S):
            return True
        key.job_id(self._redis.get(key.redis_key) or value)
        return False

    def submit(
        self,
        spec: JobSpec,
        options: JobOptions = JobOptions(),  # noqa: B008  # frozen
        generations: Mapping[str, str] | None = None,
    ) -> JobRecord:
        """Queue a job.

        Args:
            generations: Generations of its inputs, by blob key, as `input_images.retain` has returned them.

        Raises:
            QueueFull: As many jobs are waiting as may.
            TooManyQueued: As many jobs of this owner are waiting as may.
            QuotaExceeded: The inputs exceed the quota of this owner.
            InvalidApiKey: The API key was revoked.
            InputsDeleted: An input was deleted since; store the inputs again.
            SourceGone: The job was deleted whose result this one reuses.
        """
        record = _new_record(self.new_id(), spec, options, self.clock.now())
        self._submit(record, None, generations)
        return record

    def submit_idempotent(
        self,
        key: IdempotencyKey,
        spec: JobSpec,
        options: JobOptions = JobOptions(),  # noqa: B008  # frozen
        generations: Mapping[str, str] | None = None,
    ) -> tuple[JobRecord, bool]:
        """Queue a job, unless the same request has done so before or is doing so at the same time.

        Returns:
            The job, and whether it is new.

        Raises:
            IdempotencyKeyReused: Another request came with this key.
            NotFound, Expired, Deleted: The job of the earlier request is gone.
            QueueFull, TooManyQueued, QuotaExceeded, InputsDeleted, InvalidApiKey, SourceGone: As for `submit`.
        """
        record = _new_record(self.new_id(), spec, options, self.clock.now())
        earlier_id = self._submit(record, key, generations)
        return (record, True) if earlier_id is None else (self.job_store.find(earlier_id), False)

    def submit_to_batch(
        self, jobs: Sequence[tuple[JobSpec, JobOptions]], generations: Mapping[str, str], created_at: float
    ) -> list[int]:
        """Queue jobs of a batch, in one round trip. Those that are queued already are left as they are.

        Args:
            jobs: Spec and options of each; the options name the batch and the place in it.
            generations: Generations of their inputs, as for `submit`.
            created_at: Time of the batch.

        Returns:
            Positions in `jobs` of those that were not queued, because the job was deleted whose result they reuse.

        Raises:
            BatchGone: The batch was cancelled or deleted.
            QueueFull, TooManyQueued, QuotaExceeded, InputsDeleted, InvalidApiKey: As for `submit`. Some of the jobs
                may be queued.
        """
        calls = []
        # The same for all jobs of a queue, and slow to make.
        rq_fields: dict[str, RQFields] = {}
        for spec, options in jobs:
            assert options.batch
            # The order of lists by time is that of the batch.
            record = _new_record(options.batch.job_id, spec, options, created_at + options.batch.index * 1e-6)
            fields = rq_fields.get(spec.model)
            if fields is None:
                fields = rq_fields[spec.model] = RQFields.of(self._queue(spec.model), record.id)
            calls.append(self._submit_arguments(record, None, generations, fields))
        replies = self.writes.run_all(self._submit_script, calls)
        for reply in replies:
            if reply != SOURCE_GONE:
                self._check_reply(reply)
        return [position for position, reply in enumerate(replies) if reply == SOURCE_GONE]

    def _submit(
        self, record: JobRecord, key: IdempotencyKey | None, generations: Mapping[str, str] | None
    ) -> str | None:
        """Queue a new job in one step. Returns the id of the job that has used the idempotency key before, if any."""
        rq_fields = RQFields.of(self._queue(record.spec.model), record.id)
        keys, args = self._submit_arguments(record, key, generations or {}, rq_fields)
        reply: bytes = self.writes.run(self._submit_script, keys=keys, args=args)
        self._check_reply(reply)
        return key.job_id(decode(reply[1:])) if key is not None and reply.startswith(b"=") else None

    def _submit_arguments(
        self, record: JobRecord, key: IdempotencyKey | None, generations: Mapping[str, str], rq_fields: RQFields
    ) -> tuple[list[str], list[str | bytes]]:
        """Return the keys and the arguments of the script that queues a job.

        Fields are in one argument as JSON, because the client takes long to send many; except for those with bytes.
        """
        queue = self._queue(record.spec.model)
        inputs = list(record.spec.input_keys)
        job = {
            "id": record.id,
            "model": record.spec.model,
            "owner": record.owner,
            "key_id": record.key_id or None,
            "priority": record.priority,
            "cost": record.spec.cost,
            "created_at": record.created_at,
            "deadline_at": record.deadline_at,
            "inputs": inputs,
            "generations": {name: generations[name] for name in inputs if name in generations},
            "max_queued": self._limits.max_queued,
            "max_queued_per_owner": self._limits.max_queued_per_owner,
            "max_stored_bytes_per_owner": self._limits.max_stored_bytes_per_owner,
        }
        if key is not None:
            job |= {"idempotency_key": key.redis_key, "fingerprint": key.fingerprint, "idempotency_ttl_s": KEPT_S}
        if record.reused_from is not None:
            job["reused_from"] = record.reused_from
        if record.batch is not None:
            job |= {"batch": record.batch.id, "batch_index": record.batch.index}
        # Lua decodes null as a value that counts as true.
        known = {name: value for name, value in job.items() if value is not None}
        known["record"] = [text_of(item) for field in job_record.to_fields(record).items() for item in field]
        known["rq"] = rq_fields.text
        names = [rq_job_key(record.id), queue.key, queue.redis_queues_keys]
        return names, [json.dumps(known, ensure_ascii=False), *rq_fields.binary]

    def _check_reply(self, reply: bytes) -> None:
        """Raise the error that a reply of the script means, if any."""
        if reply == b"revoked":
            raise InvalidApiKey
        if reply == b"owner_limit":
            raise self._limits.owner_error()
        if reply == b"limit":
            raise QueueFull
        if reply == b"inputs_deleted":
            raise InputsDeleted
        if reply == b"batch_gone":
            raise BatchGone
        if reply == SOURCE_GONE:
            raise SourceGone
        if reply.startswith(b"quota "):
            used, frees_at = decode(reply).split(" ")[1:]
            raise self.input_images.quota_error("owner", int(used), frees_at)

    def claim(self, model: str, due_before: float | None = None) -> bytes | None:
        """Move the next job of a model to the intermediate list of its RQ queue. Returns its id, or None.

        Args:
            due_before: Which jobs to take beyond the slots of a worker, see `FairQueue.claim`.
        """
        queue, fair_queue = self._queue(model), self.job_store.fair_queue
        return fair_queue.claim(model, queue.key, queue.intermediate_queue_key, due_before)

    def requeue(self, job_id: str, *, execution: str | None = None) -> None:
        """Queue a job that no worker runs any more before all others of its model; fail it after MAX_ATTEMPTS.

        A second call has no effect, also after a first one that was interrupted.

        Args:
            execution: The execution that lost the job; a job that another execution owns is left alone.
        """
        # Not the whole record, which a later version may have written.
        names = ("status", "model", "execution", "attempts")
        fields = self._redis.hmget(JOB.format(id=job_id), *names)
        status, model, owner, attempts = (decode(field or "") for field in fields)
        if not status or JobStatus(status).is_terminal:
            self._redis.delete(rq_job_key(job_id))
            return
        if status == JobStatus.RUNNING:
            if execution not in (None, owner):
                return
            if int(attempts or 0) >= MAX_ATTEMPTS:
                self.job_store.fail(job_id, WORKER_LOST, execution=owner)
                self._redis.delete(rq_job_key(job_id))
                return
            if not self.job_store.release(job_id, execution=owner):
                return
        queue = self._queue(model)
        self._requeue_script(
            keys=[rq_job_key(job_id), queue.key, queue.redis_queues_keys, queue.intermediate_queue_key],
            args=[job_id, *rq_job_fields(queue, job_id)],
        )

    def cancel(self, job_id: str, reason: JobFailure | None = None) -> JobRecord | None:
        """Cancel a job unless it has ended. Returns its record, or None if there is none.

        The record is `cancelled` at once. A queued job leaves its queue. The worker of a running job drops it at the
        next denoising step, when it gets RQ's stop command or, if that is lost, with its next report of progress.
        """
        cancelled = self.job_store.cancel(job_id, reason=reason)
        record = self.job_store.get(job_id)
        if record is None or not cancelled:
            return record
        if self._queue(record.spec.model).remove(job_id):
            self._redis.delete(rq_job_key(job_id))
        elif record.execution is not None and record.worker is not None:
            send_stop_command(self._redis, record.worker, job_id, record.execution)
        return record

    def cancel_jobs(self, job_ids: Sequence[str]) -> None:
        """Cancel jobs: those that wait together, and those that run one by one."""
        waiting = self.job_store.cancel_queued(job_ids)
        with self._redis.pipeline(transaction=False) as pipe:
            for job_id in waiting:
                pipe.hget(JOB.format(id=job_id), "model")
            models = list(map(decode, pipe.execute()))
            for job_id, model in zip(waiting, models, strict=True):
                # New jobs are at the end of the list.
                pipe.lrem(self._queue(model).key, -1, job_id)
            removed = pipe.execute()
            for job_id, count in zip(waiting, removed, strict=True):
                if count:
                    pipe.delete(rq_job_key(job_id))
            pipe.execute()
        for job_id in set(job_ids) - set(waiting):
            self.cancel(job_id)

    def fail_queued(self, job_id: str, failure: JobFailure) -> bool:
        """Fail a job that no worker runs. Returns False if it was claimed or has ended since."""
        record = self.job_store.get(job_id)
        if record is None or record.status is not JobStatus.QUEUED or not self._queue(record.spec.model).remove(job_id):
            return False
        failed = self.job_store.fail(job_id, failure)
        self._redis.delete(rq_job_key(job_id))
        return failed

    def oldest(self, models: Sequence[str]) -> dict[str, float]:
        """Return the time of submission of the first job in each queue that has any, by model."""
        if not models:
            return {}
        with self._redis.pipeline(transaction=False) as pipe:
            for model in models:
                pipe.lindex(self._queue(model).key, 0)
            first = {model: job_id for model, job_id in zip(models, pipe.execute(), strict=True) if job_id}
            for job_id in first.values():
                pipe.hget(JOB.format(id=decode(job_id)), "created_at")
            times = pipe.execute() if first else []
        return {model: float(time or 0) for model, time in zip(first, times, strict=True)}

    def queued_ids(self, model: str, limit: int = 0) -> list[str]:
        """Return the ids of the jobs that wait for a model, oldest first, at most `limit` if it is not 0."""
        return list(map(decode, self._redis.lrange(self._queue(model).key, 0, limit - 1)))

    def cancel_submitted_with(self, key: ApiKey) -> int:
        """Cancel the unfinished jobs that a revoked API key has submitted. Returns their number.

        None of them is left, because `submit` refuses a revoked key.
        """
        count = 0
        # Queued jobs again at the end: a worker may have put one back.
        for status in (JobStatus.QUEUED, JobStatus.RUNNING, JobStatus.QUEUED):
            for job_id in map(decode, self._redis.zrange(job_index(owner_of(key), status), 0, -1)):
                # An earlier version has not recorded the key, which was the owner.
                submitted_with = self._redis.hget(JOB.format(id=job_id), "key_id") or owner_of(key)
                if decode(submitted_with) == key.id:
                    count += self.cancel(job_id) is not None
        return count

    def cancel_overdue(self) -> None:
        """Cancel the jobs that have missed their deadline, or mark those that go on."""
        for job_id in self.job_store.overdue_ids():
            if not self.job_store.miss_deadline(job_id):
                self.cancel(job_id, DEADLINE_EXCEEDED)

    def depth(self, model: str) -> int:
        """Return the number of jobs that wait for a model."""
        return int(self._queue(model).count)


def _new_record(job_id: str, spec: JobSpec, options: JobOptions, created_at: float) -> JobRecord:
    reused = options.reuses
    return JobRecord(
        id=reused.job_id if reused else job_id,
        status=JobStatus.SUCCEEDED if reused else JobStatus.QUEUED,
        spec=spec,
        owner=options.owner,
        key_id=options.key_id,
        priority=options.priority,
        created_at=created_at,
        started_at=created_at if reused else None,
        finished_at=created_at if reused else None,
        step=spec.total_steps if reused else 0,
        steps=spec.total_steps,
        images=reused.images if reused else (),
        result_ttl_s=options.result_ttl_s,
        expires_at=created_at + options.result_ttl_s if reused and not options.batch else None,
        deadline_at=created_at + options.deadline_s if options.deadline_s is not None else None,
        deadline_policy=options.deadline_policy,
        webhook=options.webhook,
        traceparent=options.traceparent,
        batch=options.batch,
        reused_from=reused.source if reused else None,
        result_digest=reused.digest if reused else None,
    )
