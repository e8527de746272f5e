"""Publishes the progress of running jobs: steps, previews and the worker's throughput."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from redis import Redis

from img2img.domain.job import Priority
from img2img.domain.model_card import WorkerThroughput
from img2img.redis.job_store import JobStore, Progress
from img2img.redis.model_registry import ModelRegistry

from .execution import JobExecution
from .job_metrics import JobMetrics
from .preview_publisher import PreviewPublisher
from .throughput import ThroughputMeter

STEPS_INTERVAL_S = 0.2
THROUGHPUT_INTERVAL_S = 1.0


class ProgressPublisher:
    """Publishes progress at intervals. `publish` is called often, from the loop of the worker.

    Args:
        redis: where previews go.
        job_store: where steps go.
        registry: where the throughput goes, from which the API server estimates when a queued job will be done.
        in_flight: the worker's executions by id.
        throughput: measured here.
        metrics: count the steps.
        worker_name: name under which the throughput is published.
        lease_s: seconds for which the published throughput is valid.
    """

    def __init__(
        self,
        redis: Redis,
        job_store: JobStore,
        registry: ModelRegistry,
        in_flight: Mapping[str, JobExecution],
        throughput: ThroughputMeter,
        metrics: JobMetrics,
        *,
        worker_name: str,
        lease_s: int,
    ) -> None:
        self._job_store = job_store
        self._registry = registry
        self._in_flight = in_flight
        self._throughput = throughput
        self._metrics = metrics
        self._worker_name = worker_name
        self._lease_s = lease_s
        self._previews = PreviewPublisher(redis)
        self._steps_published_at = 0.0
        self._throughput_published_at = 0.0

    def publish(self) -> None:
        """Publish everything that is due. Raises RedisError."""
        running = [execution for execution in list(self._in_flight.values()) if execution.is_running]
        now = time.monotonic()
        if running and now - self._steps_published_at >= STEPS_INTERVAL_S:
            self._steps_published_at = now
            self._publish_steps(running)
        self._previews.publish(running)
        self._measure_throughput(running, now)
        if now - self._throughput_published_at >= THROUGHPUT_INTERVAL_S:
            self._throughput_published_at = now
            self._registry.report_throughput(self._worker_name, self._report(running), self._lease_s)

    def close(self) -> None:
        self._previews.close()

    def _report(self, running: Sequence[JobExecution]) -> WorkerThroughput:
        high = {e.id for e in running if e.record.priority is Priority.HIGH}
        due = {e.id for e in running if e.record.deadline_at is not None} - high
        remaining = self._throughput.remaining
        return WorkerThroughput(self._throughput.per_second, remaining(), remaining(high), remaining(due))

    def _publish_steps(self, running: Sequence[JobExecution]) -> None:
        """Publish the steps done. Stop the jobs that were cancelled or that another worker has taken over."""
        progress = [Progress(e.job_id, e.id, e.step, e.record.spec.total_steps) for e in running]
        executions = {execution.id: execution for execution in running}
        for lost in self._job_store.record_progress(progress):
            executions[lost.execution].stop()

    def _measure_throughput(self, running: Sequence[JobExecution], now: float) -> None:
        for execution in running:
            self._metrics.record_steps(execution)
            spec = execution.record.spec
            # Encoding and decoding count as one more step: see `JobSpec.cost`.
            steps = (spec.steps_run + 1) * spec.passes
            self._throughput.update(execution.id, spec.cost * (1 - execution.step / steps))
        self._throughput.advance(now, self._in_flight.keys())
