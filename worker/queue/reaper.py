"""Finds jobs that a dead worker left behind and puts them back. Every worker runs one; a lock lets one at a time work.

A claimed job leaves traces in this order: the intermediate list, a lease in RQ's registry, the record. Wherever its
worker died, one of the three sweeps below finds it. RQ's own sweeps are not used: they go by the job, not by the claim
whose lease ran out, and would take a job away from the worker that has it now.
"""

import logging
import time
from collections.abc import Callable, Iterable

from redis import Redis
from redis.exceptions import LockError, RedisError
from rq import Queue
from rq.utils import current_timestamp

from img2img.domain.job import JobFailure, JobStatus
from img2img.redis.decode import decode
from img2img.redis.job_queue import JobQueue
from img2img.redis.job_store import job_index
from img2img.redis.keys import REAPER_LOCK
from img2img.redis.rq_adapter import rq_queue
from img2img.telemetry.logging import job_extra

log = logging.getLogger(__name__)

LOCK_S = 10  # a sweep takes milliseconds; if its owner is killed, another may sweep after this
AUDIT_LIMIT = 10_000  # jobs that have not ended and are looked at one by one; of more, first their numbers

UNREADABLE = JobFailure(code="unreadable", message="the job's record cannot be read by this version of the worker")


class Reaper:
    """Sweeps the queues of all known models."""

    def __init__(self, redis: Redis, *, lease_s: float, on_lost: Callable[[], object] = lambda: None) -> None:
        """on_lost: called for each job whose lease ran out."""
        self._redis = redis
        self._jobs = JobQueue(redis)
        self._lock = redis.lock(REAPER_LOCK, timeout=LOCK_S, blocking=False)
        self._stuck_s = lease_s / 2  # how long a job may be between the queue and a lease
        self._orphan_s = lease_s * 3  # how long a job may be in no list at all
        self._stuck_since: dict[str, float] = {}
        self._orphan_since: dict[str, float] = {}
        self._last_audit = 0.0
        self._on_lost = on_lost

    def sweep(self, models: Iterable[str]) -> None:
        """One round, if no other worker is at it."""
        queues = [rq_queue(model, self._redis) for model in models]
        if not self._lock.acquire():
            return
        try:
            for queue in queues:
                self._sweep_expired(queue)
            self._sweep_stuck(queues)
            self._forget_ended(queues)
            if time.monotonic() - self._last_audit > self._orphan_s / 2:
                self._audit(queues)
                self._last_audit = time.monotonic()
        finally:
            try:
                self._lock.release()
            except LockError:
                log.warning("a sweep took longer than its lock")

    def _sweep_expired(self, queue: Queue) -> None:
        """Jobs whose worker fell silent and let their lease run out."""
        registry = queue.started_job_registry
        for entry in self._redis.zrangebyscore(registry.key, 0, current_timestamp()):
            lease = decode(entry)
            job_id, _, execution = lease.rpartition(":")
            log.warning("its worker fell silent", extra=job_extra(job_id))
            self._on_lost()
            self._requeue(job_id, execution)
            self._redis.zrem(registry.key, lease)

    def _sweep_stuck(self, queues: Iterable[Queue]) -> None:
        """Jobs that were taken from a queue, and whose worker died before it held a lease on them."""
        seen: dict[str, float] = {}
        for queue in queues:
            leased = {job_id for job_id, _ in queue.started_job_registry.get_job_and_execution_ids(cleanup=False)}
            for job_id in set(queue.intermediate_queue.get_job_ids()) - leased:
                seen[job_id] = self._stuck_since.get(job_id, time.monotonic())
                if time.monotonic() - seen[job_id] < self._stuck_s:
                    continue
                log.warning("stuck on its way to a worker", extra=job_extra(job_id))
                self._requeue(job_id)
                queue.intermediate_queue.remove(job_id)
        self._stuck_since = seen

    def _forget_ended(self, queues: Iterable[Queue]) -> None:
        """What RQ has noted of ended jobs and keeps no more. Its own workers see to that; nobody else does."""
        for queue in queues:
            for registry in (queue.finished_job_registry, queue.failed_job_registry):
                self._redis.zremrangebyscore(registry.key, 0, current_timestamp())

    def _audit(self, queues: Iterable[Queue]) -> None:
        """Records of jobs that have not ended and that no list of RQ knows, seen so twice."""
        queues = list(queues)
        if self._many_and_all_listed(queues):
            self._orphan_since = {}
            return
        listed: set[str] = set()
        for queue in queues:
            listed.update(queue.get_job_ids(), queue.intermediate_queue.get_job_ids())
            listed.update(job for job, _ in queue.started_job_registry.get_job_and_execution_ids(cleanup=False))
        seen: dict[str, float] = {}
        for job_id in set(self._jobs.job_store.active_ids()) - listed:
            seen[job_id] = self._orphan_since.get(job_id, time.monotonic())
            if time.monotonic() - seen[job_id] < self._orphan_s:
                continue
            log.error("in no queue", extra=job_extra(job_id))
            self._requeue(job_id)
        self._orphan_since = seen

    def _many_and_all_listed(self, queues: Iterable[Queue]) -> bool:
        """Whether so many jobs wait that looking at each would take seconds, and the lists have as many entries."""
        with self._redis.pipeline() as pipe:  # one transaction: no job is counted on neither side
            for status in (JobStatus.QUEUED, JobStatus.RUNNING):
                pipe.zcard(job_index(None, status))
            for queue in queues:
                pipe.llen(queue.key)
                pipe.llen(queue.intermediate_queue_key)
                pipe.zcard(queue.started_job_registry.key)
            queued, running, *listed = pipe.execute()
        return bool(AUDIT_LIMIT < queued + running <= sum(listed))

    def _requeue(self, job_id: str, execution: str | None = None) -> None:
        """Puts one job back. One that cannot be read fails alone, and does not keep the others from being found."""
        try:
            self._jobs.requeue(job_id, execution=execution)
        except RedisError:
            raise
        except Exception:
            log.exception("could not be put back", extra=job_extra(job_id))
            self._jobs.job_store.fail(job_id, UNREADABLE)
