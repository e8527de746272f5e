"""Fetches jobs for a worker, one at a time while the engine has room for them, from its models in rotation."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, MutableMapping
from functools import cache

from redis.exceptions import RedisError
from rq import Queue
from rq.exceptions import NoSuchJobError
from rq.serializers import JSONSerializer
from rq.worker import BaseWorker

from img2img.domain.job import JobRecord, JobStatus, Priority
from img2img.errors import UnreadableJob
from img2img.redis.decode import decode
from img2img.redis.fair_queue import due_at
from img2img.redis.job_queue import MAX_ATTEMPTS, JobQueue
from img2img.redis.rq_adapter import InertJob, rq_queue
from img2img.telemetry.logging import job_extra

from ..engine.task import Urgency
from .execution import JobExecution
from .leases import discard_job
from .reaper import UNREADABLE
from .served_models import ModelLease, ServedModels

log = logging.getLogger(__name__)

# The engine's priorities: 0 is the highest.
PRIORITIES = {priority: number for number, priority in enumerate(reversed(Priority))}
UNREADABLE_S = 3600.0  # time that a job waits for a worker that can read it
PAUSE_S = 1.0  # in which other workers can take such a job


class JobFetcher:
    """Turns queued jobs into executions of this worker.

    Jobs of high priority, and those with a deadline before one in flight is due, are also fetched when all slots are
    taken, up to twice as many images as slots: the engine pauses others.

    Args:
        worker: the RQ worker that gets the leases.
        jobs: the job queue.
        models: the models to fetch jobs for. Those that are loaded get jobs.
        slots: images or tiles in flight at once.
        in_flight: the worker's executions by id; new ones are added.
        load: called with each new execution once it is in `in_flight`.
        on_rendered: passed to each execution.
    """

    def __init__(
        self,
        worker: BaseWorker,
        jobs: JobQueue,
        models: ServedModels,
        slots: int,
        in_flight: MutableMapping[str, JobExecution],
        *,
        load: Callable[[JobExecution], object],
        on_rendered: Callable[[JobExecution], None],
    ) -> None:
        self._worker = worker
        self._redis = worker.connection
        self._jobs = jobs
        self._job_store = jobs.job_store
        self._models = models
        self._slots = slots
        self._in_flight = in_flight
        self._load = load
        self._on_rendered = on_rendered
        self._queue = cache(lambda model: rq_queue(model, self._redis))
        self._rotation: list[str] = []  # model names, the next one first
        self._draining_for_exclusive = False  # whether the next job has to run alone
        self._unreadable: set[str] = set()
        self._paused_until: dict[str, float] = {}

    @property
    def free_slots(self) -> int:
        """Images or tiles that can be fetched now."""
        return self._room(self._slots)

    def _room(self, slots: int) -> int:
        executions = list(self._in_flight.values())
        # A job on its last attempt runs alone. Its worker was lost in each attempt before, so it may be the job that
        # crashes workers, and no other job should be lost with it again.
        if executions and (self._draining_for_exclusive or any(e.is_last_attempt for e in executions)):
            return 0
        # A blob store slower than the engine would fill the memory with rendered images.
        if sum(not e.occupies_slots for e in executions) >= self._slots:
            return 0
        return slots - sum(e.remaining for e in executions)

    def fetch(self) -> bool:
        """Fetch one job if there is room for it. Return whether a queue had one."""
        if self.free_slots > 0:
            return self.fetch_one()
        return self._room(2 * self._slots) > 0 and self.fetch_one(self._latest_due())

    def _latest_due(self) -> float:
        """Return when the last of the jobs in flight that can be paused for a deadline is due."""
        records = [execution.record for execution in list(self._in_flight.values()) if execution.occupies_slots]
        return max((due_at(record) for record in records if record.priority is not Priority.HIGH), default=0.0)

    def fetch_one(self, due_before: float | None = None) -> bool:
        """Fetch one job, of the first loaded model in rotation that has any. Return whether a queue had one.

        The job is in one of RQ's lists at any time.

        Args:
            due_before: which jobs to fetch beyond the slots, see `FairQueue.claim`.
        """
        names = [card.name for card in self._models.cards]
        self._rotation = [name for name in self._rotation if name in names]
        self._rotation += [name for name in names if name not in self._rotation]
        for model in list(self._rotation):
            if self._paused_until.get(self._queue(model).name, 0) > time.monotonic():
                continue
            lease = self._models.lease(model)
            if lease is None:
                continue
            moved = None
            try:
                moved = self._jobs.claim(model, due_before)
                if moved is not None:
                    self._start_claimed(moved, model, lease)
            except BaseException:
                lease.release(used=False)
                raise
            if moved is None:
                lease.release(used=False)
                continue
            # A model whose job has to run alone stays first, until the worker is empty.
            if not self._draining_for_exclusive:
                self._rotation.remove(model)
                self._rotation.append(model)
            return True
        return False

    def _start_claimed(self, moved: bytes, model: str, lease: ModelLease) -> None:
        queue = self._queue(model)
        try:
            is_started = self._start(decode(moved), queue, lease)
        except RedisError:
            raise
        except Exception:
            log.exception("cannot read job %r in %s; the job fails", moved, queue.name)
            self._redis.lrem(queue.intermediate_queue_key, 1, moved)  # type: ignore[arg-type]
            self._job_store.fail(str(moved, errors="replace"), UNREADABLE)
            is_started = False
        if not is_started:
            lease.release()

    def _start(self, job_id: str, queue: Queue, lease: ModelLease) -> bool:
        """Start an execution of a claimed job. Return False if it is not to be run now."""
        self._draining_for_exclusive = False
        if not self._is_readable(job_id):
            self._leave_to_later_version(job_id, queue)
            return False
        try:
            job = InertJob.fetch(job_id, connection=self._redis, serializer=JSONSerializer)
        except NoSuchJobError:
            # Cancelled while it was queued.
            queue.intermediate_queue.remove(job_id)
            return False
        queued = self._job_store.get(job_id)
        is_last_attempt = queued is not None and queued.attempts == MAX_ATTEMPTS - 1
        self._draining_for_exclusive = is_last_attempt and bool(self._in_flight)
        if self._draining_for_exclusive:
            self._jobs.requeue(job_id)
            return False
        rq_execution = self._worker.prepare_execution(job)
        self._job_store.start(job_id, execution=rq_execution.id, worker=self._worker.name)
        # Read the record instead of trusting the reply of `start`: after a lost connection the command is sent again.
        record = self._job_store.get(job_id)
        if record is None or record.status is not JobStatus.RUNNING or record.execution != rq_execution.id:
            discard_job(self._worker, job, queue, rq_execution, record)
            return False
        self._worker.prepare_job_execution(job, remove_from_intermediate_queue=True)
        execution = JobExecution(job, queue, rq_execution, record, lease, self._urgency(record), self._on_rendered)
        self._in_flight[execution.id] = execution
        self._load(execution)
        return True

    def _is_readable(self, job_id: str) -> bool:
        """Return whether this version can run the job. A later one may have written values that it does not know."""
        try:
            record = self._job_store.get(job_id)
        except UnreadableJob:
            return False
        return record is None or not record.unknown_fields

    def _leave_to_later_version(self, job_id: str, queue: Queue) -> None:
        """Queue the job again for another worker. If none takes it, the reaper queues it from time to time."""
        if self._job_store.unreadable_s(job_id) > UNREADABLE_S:
            log.error("no worker of a later version took the job; it fails", extra=job_extra(job_id))
            self._job_store.fail(job_id, UNREADABLE)
        elif job_id not in self._unreadable:
            log.warning("a later version has submitted the job; it is left to other workers", extra=job_extra(job_id))
            self._unreadable.add(job_id)
            self._jobs.requeue(job_id)
            self._paused_until[queue.name] = time.monotonic() + PAUSE_S
            return
        self._unreadable.discard(job_id)
        queue.intermediate_queue.remove(job_id)

    def _urgency(self, record: JobRecord) -> Urgency:
        deadline = None
        if record.deadline_at is not None:
            deadline = time.perf_counter() + record.deadline_at - self._jobs.clock.estimate()
        return Urgency(PRIORITIES[record.priority], deadline)
