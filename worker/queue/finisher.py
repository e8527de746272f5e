"""Ends executions, several at a time: stores the images, records the outcome in the job record, then in RQ."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, MutableMapping
from typing import TypeVar

from obstore.exceptions import BaseError as StoreError
from redis.exceptions import RedisError
from rq.utils import now
from rq.worker import BaseWorker

from img2img.blobs import BlobStore
from img2img.domain.blob_keys import result_keys, without_hashes
from img2img.domain.job import ImageInfo, JobFailure, JobStatus
from img2img.errors import Cancelled, JobError
from img2img.redis.job_queue import JobQueue
from img2img.telemetry.logging import job_context, job_extra

from .execution import RETRY_INTERVAL_S, STORE_TIMEOUT_S, JobExecution, StorageUnavailable
from .job_metrics import JobMetrics
from .leases import discard_job, release_lease
from .throughput import ThroughputMeter

log = logging.getLogger(__name__)

T = TypeVar("T")


class Finisher:
    """Ends rendered executions. Several threads can call `run`: each execution is ended by one of them.

    Args:
        worker: the RQ worker that holds the leases.
        jobs: the job queue.
        store: where the images are stored.
        in_flight: the worker's executions by id; those that have ended are removed.
        throughput: gets the work of the executions that have ended.
        metrics: gets their outcomes.
        on_ended: called when an execution has ended.
    """

    def __init__(
        self,
        worker: BaseWorker,
        jobs: JobQueue,
        store: BlobStore,
        in_flight: MutableMapping[str, JobExecution],
        throughput: ThroughputMeter,
        metrics: JobMetrics,
        *,
        on_ended: Callable[[], object],
    ) -> None:
        self._worker = worker
        self._clock = jobs.clock
        self._job_store = jobs.job_store
        self._store = store
        self._in_flight = in_flight
        self._throughput = throughput
        self._metrics = metrics
        self._on_ended = on_ended
        # RQ's worker has one field for the id of a job that was stopped.
        self._stopped_job_lock = threading.Lock()
        self._rendered: queue.SimpleQueue[JobExecution | None] = queue.SimpleQueue()
        self._store_unavailable_since: float | None = None

    def put(self, execution: JobExecution) -> None:
        """Queue a rendered execution. Safe from any thread."""
        self._rendered.put(execution)

    def close(self) -> None:
        """Let `run` return once the queue is empty."""
        self._rendered.put(None)

    def run(self) -> None:
        """End executions until closed."""
        while self.finish_next():
            pass

    def finish_next(self) -> bool:
        """Wait for the next rendered execution and end it. Return False if closed."""
        execution = self._rendered.get()
        if execution is None:
            # For the other threads.
            self._rendered.put(None)
            return False
        try:
            with job_context(execution.job_id, execution.record.traceparent):
                self._finish(execution)
        except Exception:
            log.exception("the job could not be ended; its lease will expire", extra=job_extra(execution.job_id))
        finally:
            execution.end()
            self._in_flight.pop(execution.id, None)
            self._throughput.remove(execution.id, is_done=not execution.is_stopping)
            self._on_ended()
        try:
            self._metrics.record_end(execution, self._clock.estimate())
        except Exception:
            # A fault in metrics must not end the thread that ends jobs.
            log.exception("the metrics of the job could not be recorded", extra=job_extra(execution.job_id))
        return True

    def _finish(self, execution: JobExecution) -> None:
        job_id = execution.job_id
        started = time.perf_counter()
        try:
            images = self._publish(execution)
        except Cancelled:
            retry_until_redis_answers(lambda: self._job_store.cancel(job_id, execution=execution.id))
            log.info("cancelled")
        except JobError as error:
            # Log the code only: the message may quote the prompt.
            log.warning("failed: %s", error.code, exc_info=error.__cause__)
            failure = JobFailure(code=error.code, message=without_hashes(error.message))
            retry_until_redis_answers(lambda: self._job_store.fail(job_id, failure, execution=execution.id))
        else:
            execution.timeline.add("save", started, time.perf_counter())
            timings, steps = execution.timeline.seconds(), execution.record.spec.total_steps
            if execution.timeline.skipped_calls:
                timings["skipped_calls"] = execution.timeline.skipped_calls
            is_ours = retry_until_redis_answers(
                lambda: self._job_store.succeed(
                    job_id,
                    execution=execution.id,
                    images=images,
                    timings=timings,
                    steps=steps,
                    withheld=execution.withheld,
                    digest=execution.digest,
                )
            )
            if is_ours:
                log.info(
                    "succeeded in %.2f s; images: %d", self._clock.estimate() - execution.record.created_at, len(images)
                )
        retry_until_redis_answers(lambda: self._end_in_rq(execution))

    def _publish(self, execution: JobExecution) -> list[ImageInfo]:
        """Store the images. During an outage of the store it is tried again, so that no rendered image is lost.

        The limit applies to the whole outage, not to each job.

        Raises:
            JobError: the job failed or was stopped, or the outage lasts too long.
            DeviceLost: the device failed.
        """
        while True:
            try:
                images = execution.publish(self._store)
            except StorageUnavailable as error:
                now_s = time.monotonic()
                self._store_unavailable_since = since = self._store_unavailable_since or now_s
                if now_s - since > STORE_TIMEOUT_S or execution.is_stopping:
                    raise
                log.warning("%s; trying again", error)
                time.sleep(RETRY_INTERVAL_S)
            else:
                self._store_unavailable_since = None
                return images

    def _end_in_rq(self, execution: JobExecution) -> None:
        """Update RQ after the job record. Of a job that another worker has taken over, only our lease is ended."""
        job, rq_execution = execution.job, execution.rq_execution
        record = execution.final_record = self._job_store.get(job.id)
        job.ended_at = now()
        if record is None:
            log.info("the job was deleted while it ran")
            self._delete_images(job.id)
            discard_job(self._worker, job, execution.queue, rq_execution, record)
        elif not record.status.is_terminal or record.execution != execution.id:
            log.warning("another worker has taken over the job")
            release_lease(self._worker, job, rq_execution)
        elif record.status is JobStatus.SUCCEEDED:
            registry = execution.queue.started_job_registry
            self._worker.handle_job_success(job, execution.queue, registry, execution=rq_execution)
        else:
            # Not the message, which may quote the prompt: RQ keeps it for a day, also if the job is deleted.
            reason = record.error.code if record.error else ""
            with self._stopped_job_lock:
                self._worker._stopped_job_id = job.id if record.status is JobStatus.CANCELLED else None
                self._worker.handle_job_failure(job, execution.queue, exc_string=reason, execution=rq_execution)

    def _delete_images(self, job_id: str) -> None:
        """Delete images that were stored after the job was deleted. Retention deletes those that are left here."""
        try:
            self._store.delete(*result_keys(job_id))
        except (StoreError, OSError):
            log.warning("images of a deleted job could not be deleted; they will be later", exc_info=True)


def retry_until_redis_answers(command: Callable[[], T]) -> T:
    """Call `command` until it raises no RedisError, so that an outage of Redis does not lose rendered images."""
    while True:
        try:
            return command()
        except RedisError as error:
            log.warning("Redis is unavailable, retrying: %s", error)
            time.sleep(RETRY_INTERVAL_S)
