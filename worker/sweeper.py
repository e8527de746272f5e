"""Finds jobs that a dead worker left behind and puts them back. Every worker runs one; a lock lets one at a time work.

A claimed job leaves traces in this order: the intermediate list, a lease in RQ's registry, the record. Wherever its
worker died, one of the three sweeps below finds it.
"""

import logging
import time
from collections.abc import Iterable
from typing import Any

from redis import Redis
from redis.exceptions import LockError
from rq import Queue
from rq.job import Job
from rq.utils import as_text

from app.contract.job import JobFailure
from app.contract.queue import MAX_ATTEMPTS, JobQueue, rq_queue

log = logging.getLogger(__name__)

LOCK = "i2i:sweeper"
LOCK_S = 10  # a sweep takes milliseconds; if its owner is killed, another may sweep after this
STUCK_S = 10  # how long a job may be between the queue and a lease
ORPHAN_S = 60  # how long a job may be in no list at all

WORKER_LOST = JobFailure(
    code="worker_lost", message=f"the worker that ran this job died {MAX_ATTEMPTS} times; it is not tried again"
)

# Moves an id from the intermediate list to the front of its queue, if it is still there.
_PUT_BACK = """
if redis.call('LREM', KEYS[1], 1, ARGV[1]) > 0 then redis.call('LPUSH', KEYS[2], ARGV[1]) end
"""


class Sweeper:
    """Sweeps the queues of all known models."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._jobs = JobQueue(redis)
        self._lock = redis.lock(LOCK, timeout=LOCK_S, blocking=False)
        self._put_back = redis.register_script(_PUT_BACK)
        self._stuck_since: dict[str, float] = {}
        self._orphan_since: dict[str, float] = {}
        self._last_audit = 0.0

    def sweep(self, models: Iterable[str]) -> None:
        """One round, if no other worker is at it."""
        queues = [rq_queue(model, self._redis) for model in models]
        if not self._lock.acquire():
            return
        try:
            for queue in queues:
                queue.started_job_registry.cleanup(exception_handlers=[self._abandoned])
            self._sweep_stuck(queues)
            if time.monotonic() - self._last_audit > ORPHAN_S / 2:
                self._audit(queues)
                self._last_audit = time.monotonic()
        finally:
            try:
                self._lock.release()
            except LockError:
                log.warning("a sweep took longer than its lock")

    def _abandoned(self, job: Job, *_exc_info: Any) -> bool:
        """RQ found a lease that ran out, and is about to queue the job again or, out of retries, to fail it."""
        record = self._jobs.records.get(job.id)
        if record is None or record.execution is None:
            return True
        if job.retries_left:
            log.warning("job %s: its worker %s fell silent; queued again", job.id, record.worker)
            self._jobs.records.hand_back(job.id, execution=record.execution)
        else:
            log.error("job %s: its worker fell silent %d times; failed", job.id, record.attempts)
            self._jobs.records.fail(job.id, WORKER_LOST, execution=record.execution)
        return True

    def _sweep_stuck(self, queues: Iterable[Queue]) -> None:
        """Jobs that were taken from a queue, and whose worker died before it held a lease on them."""
        seen: dict[str, float] = {}
        for queue in queues:
            leased = {job_id for job_id, _ in queue.started_job_registry.get_job_and_execution_ids(cleanup=False)}
            for job_id in set(queue.intermediate_queue.get_job_ids()) - leased:
                seen[job_id] = self._stuck_since.get(job_id, time.monotonic())
                if time.monotonic() - seen[job_id] < STUCK_S:
                    continue
                log.warning("job %s: stuck on its way to a worker; queued again", job_id)
                record = self._jobs.records.get(job_id)
                if record is not None and record.execution is not None:
                    self._jobs.records.hand_back(job_id, execution=record.execution)
                self._put_back(keys=[queue.intermediate_queue_key, queue.key], args=[job_id])
        self._stuck_since = seen

    def _audit(self, queues: Iterable[Queue]) -> None:
        """Records of jobs that have not ended and that no list of RQ knows, seen so twice."""
        listed: set[str] = set()
        for queue in queues:
            listed.update(queue.get_job_ids(), queue.intermediate_queue.get_job_ids())
            listed.update(job for job, _ in queue.started_job_registry.get_job_and_execution_ids(cleanup=False))
        seen: dict[str, float] = {}
        for job_id in set(self._jobs.records.active_ids()) - listed:
            seen[job_id] = self._orphan_since.get(job_id, time.monotonic())
            if time.monotonic() - seen[job_id] < ORPHAN_S:
                continue
            log.error("job %s: in no queue; queued again", job_id)
            self._jobs.requeue(as_text(job_id))
        self._orphan_since = seen
