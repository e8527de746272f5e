"""The queue as the front end uses it: RQ, JSON only, one queue per model. The job in RQ is an id and nothing else."""

import time
from contextlib import suppress
from copy import copy
from functools import cache
from typing import Self
from uuid import uuid4

from redis import Redis
from redis.client import Pipeline
from redis.exceptions import WatchError
from rq import Queue
from rq.command import send_command
from rq.job import Job
from rq.serializers import JSONSerializer

from img2img.domain.job import JobFailure, JobOptions, JobRecord, JobStatus
from img2img.domain.spec import JobSpec
from img2img.errors import Deleted
from img2img.redis.idempotency import IdempotencyKey
from img2img.redis.input_images import InputImageRefs
from img2img.redis.job_store import LATE_S, JobStore, job_index
from img2img.redis.queue_limits import QueueLimiter, QueueLimits

QUEUE = "img2img-{model}"
MAX_ATTEMPTS = 3
# RQ wants the name of a function. No process of this project imports or calls a name that it finds in Redis.
FUNCTION = "img2img.job"

WORKER_LOST = JobFailure(
    code="worker_lost", message=f"the worker that ran this job was lost {MAX_ATTEMPTS} times; it is not tried again"
)


TOO_LATE = JobFailure(code="deadline_exceeded", message="the job was not done by its deadline")


class InertJob(Job):
    """An RQ job that never calls a function, callback or webhook named in Redis, whoever wrote it there."""

    func_name = property(lambda _self: FUNCTION)
    success_callback = property(lambda _self: None)
    failure_callback = property(lambda _self: None)
    stopped_callback = property(lambda _self: None)

    def send_webhooks(self, *_args: object, **_kwargs: object) -> None:
        return


def rq_queue(model: str, redis: Redis) -> Queue:
    """The RQ queue of the jobs for one model."""
    return Queue(QUEUE.format(model=model), connection=redis, serializer=JSONSerializer, job_class=InertJob)


class JobQueue:
    """Submits, looks up and cancels jobs."""

    def __init__(self, redis: Redis, caps: QueueLimits = QueueLimits()) -> None:  # noqa: B008  # frozen
        self._redis = redis
        self._room = QueueLimiter(redis, caps)
        self.job_store = JobStore(redis)
        self.input_images = InputImageRefs(redis)
        self._queue = cache(lambda model: rq_queue(model, redis))

    def visible_to(self, owner: str | None) -> Self:
        """The same queue, whose `records` and `inputs` show only what is this owner's; None sees all."""
        seen = copy(self)
        seen.job_store = self.job_store.visible_to(owner)
        seen.input_images = self.input_images.visible_to(owner)
        return seen

    def find_by_idempotency_key(self, once: IdempotencyKey) -> JobRecord | None:
        """The job that this request made when it came before. Raises KeyReused, Expired or Deleted."""
        job_id = once.job_id(self._redis.get(once.redis_key))
        return self.job_store.find(job_id) if job_id else None

    def submit(self, spec: JobSpec, terms: JobOptions = JobOptions()) -> JobRecord:  # noqa: B008  # frozen
        """Queues a job: record and queue entry in one transaction, so that there is never one without the other.

        Raises QueueFull or TooManyQueued.
        """
        record = _new_record(spec, terms)
        self._take_place(record.id, record.owner)
        with self._redis.pipeline() as pipe:
            self._add(record, pipe)
            pipe.execute()
        return record

    def submit_idempotent(
        self,
        once: IdempotencyKey,
        spec: JobSpec,
        terms: JobOptions = JobOptions(),  # noqa: B008  # frozen
    ) -> tuple[JobRecord, bool]:
        """Queues a job unless its request has made one. Of requests that come at the same time, one does.

        Returns the job and whether it is new. Raises KeyReused, Expired, Deleted, QueueFull or TooManyQueued.
        """
        record = _new_record(spec, terms)
        while True:
            with self._redis.pipeline() as pipe:
                pipe.watch(once.redis_key)  # type: ignore[no-untyped-call]  # another request with it fails `execute`
                job_id = once.job_id(pipe.get(once.redis_key))
                if job_id:
                    self._room.leave(self._redis, record.id, record.owner)
                    return self.job_store.find(job_id), False
                self._take_place(record.id, record.owner)
                self._add(record, pipe)
                once.keep(pipe, record.id)
                with suppress(WatchError):
                    pipe.execute()
                    return record, True

    def _add(self, record: JobRecord, pipe: Pipeline) -> None:
        self._enqueue(record.id, record.spec.model, pipe)  # RQ opens the transaction itself: its commands come first
        self.job_store.add(pipe, record)
        self._room.leave(pipe, record.id, record.owner)

    def check_limits(self, owner: str) -> None:
        """Refuses a job that could not be queued now, before it costs anything. Raises QueueFull or TooManyQueued."""
        self._take_place("", owner)

    def _take_place(self, job_id: str, owner: str) -> None:
        queued, of_owner = job_index(None, JobStatus.QUEUED), job_index(owner, JobStatus.QUEUED)
        self._room.take(job_id, owner, queued, of_owner)

    def requeue(self, job_id: str, *, execution: str | None = None) -> None:
        """Puts a job that nobody runs any more before all others of its model; fails it if it has been tried too often.

        execution: the claim that was lost; a job that is in other hands by now is left there. Doing it twice, or half
        and then again, is the same as doing it once.
        """
        record = self.job_store.get(job_id)
        if record is None or record.status.is_terminal:
            self._redis.delete(Job.key_for(job_id))
            return
        if record.status is JobStatus.RUNNING:
            owner = record.execution or ""
            if execution not in (None, owner):
                return
            if record.attempts >= MAX_ATTEMPTS:
                self.job_store.fail(job_id, WORKER_LOST, execution=owner)
                self._redis.delete(Job.key_for(job_id))
                return
            if not self.job_store.release(job_id, execution=owner):
                return
        queue = self._queue(record.spec.model)
        with self._redis.pipeline() as pipe:
            pipe.multi()
            pipe.lrem(queue.intermediate_queue_key, 0, job_id)
            pipe.lrem(queue.key, 0, job_id)
            pipe.delete(Job.key_for(job_id))
            self._enqueue(job_id, record.spec.model, pipe, at_front=True)
            self.job_store.fair_queue.requeue(pipe, record)
            pipe.execute()

    def _enqueue(self, job_id: str, model: str, pipe: Pipeline, *, at_front: bool = False) -> None:
        self._queue(model).enqueue(
            FUNCTION,
            job_id=job_id,
            description="img2img",
            job_timeout=-1,
            result_ttl=60,
            failure_ttl=24 * 3600,
            at_front=at_front,
            pipeline=pipe,
        )

    def adopt(self, model: str) -> int:
        """Puts into line what waits in RQ's list alone, as jobs of an older version do. Returns how many there were."""
        queue = self._queue(model)
        adopted = 0
        for job_id in queue.get_job_ids():
            with suppress(ValueError, KeyError):  # a record that cannot be read: the worker that claims it says so
                record = self.job_store.get(job_id)
                adopted += record is not None and self.job_store.fair_queue.adopt(record, queue)
        return adopted

    def claim(self, model: str) -> bytes | None:
        """Takes the job whose turn it is from its queue to RQ's intermediate list, as LMOVE would the first. Its id, or
        None where no job waits for this model."""
        return self.job_store.fair_queue.claim(model, self._queue(model))

    def cancel(self, job_id: str, why: JobFailure | None = None) -> JobRecord | None:
        """Cancels a job that has not ended; one that has is left as it is. Returns the record, None if there is none.
        Whose it is, the caller has found out.

        The record says `cancelled` at once. A queued job leaves its queue; a running one is dropped by its worker at
        the next denoising step, told by RQ's command channel or, if that message is lost, by its next note of progress.
        """
        cancelled = self.job_store.cancel(job_id, why=why)
        record = self.job_store.get(job_id)
        if record is None or not cancelled:
            return record
        if self._queue(record.spec.model).remove(job_id):
            self._redis.delete(Job.key_for(job_id))
        elif record.execution is not None and record.worker is not None:
            # RQ's own helper asks RQ's record of the execution for the worker, and after an outage that can be a torso.
            send_command(self._redis, record.worker, "stop-execution", job_id=job_id, execution_id=record.execution)
        return record

    def cancel_overdue(self) -> None:
        """Cancels the jobs whose deadline has passed."""
        for job_id in self.job_store.overdue_ids():
            self.cancel(job_id, TOO_LATE)

    def delete(self, job_id: str) -> None:
        """Cancels the job if it has not ended, and forgets it; its pictures are the caller's to delete."""
        self.cancel(job_id)
        self.job_store.forget(job_id, Deleted, again_at=time.time() + LATE_S)

    def depth(self, model: str) -> int:
        """Jobs waiting for this model."""
        return int(self._queue(model).count)


def _new_record(spec: JobSpec, terms: JobOptions) -> JobRecord:
    created_at = time.time()
    return JobRecord(
        id=uuid4().hex,
        status=JobStatus.QUEUED,
        spec=spec,
        owner=terms.owner,
        priority=terms.priority,
        created_at=created_at,
        steps=spec.total_steps,
        result_ttl_s=terms.result_ttl_s,
        deadline_at=created_at + terms.deadline_s if terms.deadline_s is not None else None,
        webhook=terms.webhook,
        traceparent=terms.traceparent,
    )
