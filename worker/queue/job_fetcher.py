"""How a worker comes to its jobs: one at a time, as long as there is room, its models in turn. Knows RQ and records."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from redis.exceptions import RedisError
from rq import Queue
from rq.exceptions import NoSuchJobError
from rq.executions import Execution
from rq.job import Job
from rq.serializers import JSONSerializer
from rq.worker import BaseWorker

from img2img.domain.job import JobRecord, JobStatus
from img2img.redis.decode import decode
from img2img.redis.job_queue import MAX_ATTEMPTS, JobQueue
from img2img.redis.rq_adapter import InertJob, rq_queue

from .execution import JobExecution
from .reaper import UNREADABLE

if TYPE_CHECKING:
    from ..runner import JobRunner

log = logging.getLogger(__name__)


class JobFetcher:
    """The claims of a worker, and what brings in new ones."""

    def __init__(
        self,
        worker: BaseWorker,
        jobs: JobQueue,
        runner: JobRunner,
        *,
        load: Callable[[JobExecution], object],
        on_rendered: Callable[[JobExecution], None],
    ) -> None:
        """load: called with each new claim, once it is in `claims`. on_rendered: what the claim calls."""
        self._worker = worker
        self._redis = worker.connection
        self._jobs = jobs
        self._records = jobs.job_store
        self._runner = runner
        self._load = load
        self._on_rendered = on_rendered
        self._queues = {card.name: rq_queue(card.name, self._redis) for card in runner.cards}
        self._turns = list(self._queues)  # model names, the one whose turn it is first
        self._emptying = False  # a job that is to run alone is next
        self.claims: dict[str, JobExecution] = {}  # by execution id

    @property
    def room(self) -> int:
        """Pictures and tiles that may still come in. None beside a job on its last attempt: its worker was lost each
        time before, so it may be what kills workers, and then it fails alone. None either while as many jobs as there
        are slots wait to be stored: the store is slower than the engine, and pictures would fill the memory."""
        claims = list(self.claims.values())
        if claims and (self._emptying or any(claim.is_last_attempt for claim in claims)):
            return 0
        if sum(claim.rendered for claim in claims) >= self._runner.slots:
            return 0
        return self._runner.slots - sum(claim.left for claim in claims if not claim.rendered)

    def claim_one(self) -> bool:
        """Takes one job, of the first model in turn that has any. A job is always in some list of RQ."""
        for model in list(self._turns):
            moved = self._jobs.claim(model)
            if moved is None:
                continue
            source = self._queues[model]
            try:
                self._take(decode(moved), source)
            except RedisError:
                raise
            except Exception:
                log.exception("%r in %s cannot be read; dropped", moved, source.name)
                self._redis.lrem(source.intermediate_queue_key, 1, moved)  # type: ignore[arg-type]
                self._records.fail(str(moved, errors="replace"), UNREADABLE)
            if not self._emptying:  # else it is this model's turn again, when there is room for the job alone
                self._turns.remove(model)
                self._turns.append(model)
            return True
        return False

    def _take(self, job_id: str, source: Queue) -> None:
        self._emptying = False
        try:
            job = InertJob.fetch(job_id, connection=self._redis, serializer=JSONSerializer)
        except NoSuchJobError:  # cancelled while it was queued
            source.intermediate_queue.remove(job_id)
            return
        waiting = self._records.get(job_id)
        self._emptying = waiting is not None and waiting.attempts == MAX_ATTEMPTS - 1 and bool(self.claims)
        if self._emptying:
            self._jobs.requeue(job_id)
            return
        execution = self._worker.prepare_execution(job)
        self._records.start(job_id, execution=execution.id, worker=self._worker.name)
        record = self._records.get(job_id)  # not what `start` answered: its answer may have been to a second try
        if record is None or record.status is not JobStatus.RUNNING or record.execution != execution.id:
            self.drop(job, source, execution, record)
            return
        self._worker.prepare_job_execution(job, remove_from_intermediate_queue=True)
        claim = JobExecution(job, source, execution, record, self._on_rendered)
        self.claims[execution.id] = claim
        self._load(claim)

    def drop(self, job: Job, source: Queue, execution: Execution, record: JobRecord | None) -> None:
        """A job that is no longer to be run: ended meanwhile, or in another worker's hands."""
        with self._redis.pipeline() as pipe:
            self._worker.cleanup_execution(job, pipeline=pipe, execution=execution)
            pipe.lrem(source.intermediate_queue_key, 1, job.id)
            if record is None or record.status.is_terminal:
                pipe.delete(job.key)
            pipe.execute()
