"""Requeues the jobs of dead workers. Every worker has a reaper; a lock lets one of them work at a time.

Fetching a job leaves traces in this order: RQ's intermediate list, a lease in RQ's registry, the job record. Wherever a
worker dies, one of the three searches below finds its job. RQ's own maintenance is not used: it goes by the job and not
by the lease that has expired, and would take a job away from the worker that runs it now.
"""

import logging
import time
from collections.abc import Callable, Iterable

from redis import Redis
from redis.exceptions import LockError, RedisError
from rq import Queue

from img2img.domain.job import JobFailure, JobStatus
from img2img.redis.clock import redis_clock
from img2img.redis.job_queue import MODEL_UNAVAILABLE, JobQueue
from img2img.redis.job_store import job_index
from img2img.redis.keys import REAPER_LOCK
from img2img.redis.model_registry import ModelRegistry
from img2img.redis.rq_adapter import lease_registry, queued_models, rq_queue
from img2img.telemetry.logging import job_extra

log = logging.getLogger(__name__)

LOCK_S = 10  # a round takes milliseconds; after this time the lock of a killed worker is free again
REMOVED_S = 60.0  # time that a job waits for a model that was removed, which another worker may still have
MAX_AUDITED_JOBS = 10_000  # with more unfinished jobs, the audit compares counts before it looks at single jobs

UNREADABLE = JobFailure(code="unreadable", message="the job's record cannot be read by this version of the worker")


class Reaper:
    """Finds lost jobs in the queues of all models, also of removed ones whose last jobs still run.

    Args:
        redis: client of the Redis with the queues.
        lease_s: seconds without a heartbeat after which a worker counts as dead.
        on_lost: called for each job whose lease has expired.
    """

    def __init__(self, redis: Redis, *, lease_s: float, on_lost: Callable[[], object] = lambda: None) -> None:
        self._redis = redis
        self._jobs = JobQueue(redis)
        self._lock = redis.lock(REAPER_LOCK, timeout=LOCK_S, blocking=False)
        self._max_stuck_s = lease_s / 2  # time that a job may be between its queue and a lease
        self._max_orphaned_s = lease_s * 3  # time that a job may be in no list
        self._stuck_since: dict[str, float] = {}
        self._orphaned_since: dict[str, float] = {}
        self._registry = ModelRegistry(redis)
        self._removed_since: dict[str, float] = {}
        self._audited_at = 0.0
        self._on_lost = on_lost

    def reap(self) -> None:
        """Requeue the lost jobs, unless another worker is doing it. Raises RedisError."""
        models = queued_models(self._redis)
        queues = [rq_queue(model, self._redis) for model in models]
        if not self._lock.acquire():
            return
        try:
            for queue in queues:
                self._requeue_expired(queue)
            self._requeue_stuck(queues)
            self._delete_expired_results(queues)
            self._fail_jobs_of_removed(models)
            if time.monotonic() - self._audited_at > self._max_orphaned_s / 2:
                self._requeue_orphaned(queues)
                self._audited_at = time.monotonic()
        finally:
            try:
                self._lock.release()
            except LockError:
                log.warning("the search for lost jobs took longer than its lock (%d s)", LOCK_S)

    def _requeue_expired(self, queue: Queue) -> None:
        """Requeue jobs whose lease has expired, because their worker sends no heartbeats."""
        registry = lease_registry(queue)
        for lease in registry.expired():
            job_id, _, execution = lease.rpartition(":")
            log.warning("the lease has expired; requeueing the job", extra=job_extra(job_id))
            self._on_lost()
            self._requeue(job_id, execution)
            self._redis.zrem(registry.key, lease)

    def _requeue_stuck(self, queues: Iterable[Queue]) -> None:
        """Requeue jobs that were taken from a queue by a worker that died before it had a lease."""
        seen: dict[str, float] = {}
        for queue in queues:
            leased = {job_id for job_id, _ in queue.started_job_registry.get_job_and_execution_ids(cleanup=False)}
            for job_id in set(queue.intermediate_queue.get_job_ids()) - leased:
                seen[job_id] = self._stuck_since.get(job_id, time.monotonic())
                if time.monotonic() - seen[job_id] < self._max_stuck_s:
                    continue
                log.warning("no worker has got a lease; requeueing the job", extra=job_extra(job_id))
                self._requeue(job_id)
                queue.intermediate_queue.remove(job_id)
        self._stuck_since = seen

    def _fail_jobs_of_removed(self, models: Iterable[str]) -> None:
        """Fail jobs that came back to the queue of a model after it was removed. No worker would ever take them."""
        served = {model for statuses in self._registry.states().values() for model in statuses}
        removed = set(models) - served - set(self._registry.known_names())
        seen = {model: self._removed_since.get(model, time.monotonic()) for model in removed if self._jobs.depth(model)}
        for model, since in seen.items():
            if time.monotonic() - since < REMOVED_S:
                continue
            failure = MODEL_UNAVAILABLE.model_copy(update={"message": f"{MODEL_UNAVAILABLE.message} {model}: removed"})
            for job_id in self._jobs.queued_ids(model):
                if self._jobs.fail_queued(job_id, failure):
                    log.warning("its model was removed; the job fails", extra=job_extra(job_id))
        self._removed_since = seen

    def _delete_expired_results(self, queues: Iterable[Queue]) -> None:
        """Delete expired entries of RQ's registries of ended jobs, as RQ's own workers would.

        Their times are those of the host that ended the job. Nothing but RQ's tools reads them.
        """
        for queue in queues:
            for registry in (queue.finished_job_registry, queue.failed_job_registry):
                self._redis.zremrangebyscore(registry.key, 0, redis_clock(self._redis).now())

    def _requeue_orphaned(self, queues: Iterable[Queue]) -> None:
        """Requeue jobs that have not ended and that have been in none of RQ's lists for some time."""
        queues = list(queues)
        if self._are_too_many_but_all_listed(queues):
            self._orphaned_since = {}
            return
        listed: set[str] = set()
        for queue in queues:
            listed.update(queue.get_job_ids(), queue.intermediate_queue.get_job_ids())
            listed.update(job for job, _ in queue.started_job_registry.get_job_and_execution_ids(cleanup=False))
        seen: dict[str, float] = {}
        for job_id in set(self._jobs.job_store.active_ids()) - listed:
            seen[job_id] = self._orphaned_since.get(job_id, time.monotonic())
            if time.monotonic() - seen[job_id] < self._max_orphaned_s:
                continue
            log.error("the job is in no queue; requeueing it", extra=job_extra(job_id))
            self._requeue(job_id)
        self._orphaned_since = seen

    def _are_too_many_but_all_listed(self, queues: Iterable[Queue]) -> bool:
        """Return whether looking at each job would take seconds, but the counts show that all are listed."""
        # One transaction, so that a job that moves between lists is counted.
        with self._redis.pipeline() as pipe:
            for status in (JobStatus.QUEUED, JobStatus.RUNNING):
                pipe.zcard(job_index(None, status))
            for queue in queues:
                pipe.llen(queue.key)
                pipe.llen(queue.intermediate_queue_key)
                pipe.zcard(queue.started_job_registry.key)
            queued, running, *listed = pipe.execute()
        return bool(MAX_AUDITED_JOBS < queued + running <= sum(listed))

    def _requeue(self, job_id: str, execution: str | None = None) -> None:
        """Requeue one job. A job that cannot be read fails, so that it does not block the others."""
        try:
            self._jobs.requeue(job_id, execution=execution)
        except RedisError:
            raise
        except Exception:
            log.exception("the job cannot be requeued; it fails", extra=job_extra(job_id))
            self._jobs.job_store.fail(job_id, UNREADABLE)
