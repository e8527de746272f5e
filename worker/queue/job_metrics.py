"""Prometheus metrics and traces of the jobs of a worker."""

from __future__ import annotations

import threading
import time
from collections import Counter as Counts
from importlib.metadata import version
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.exposition import start_http_server

from img2img.domain.job import JobStatus
from img2img.moderation import MODERATION_CHECKS
from img2img.stored_images import DAMAGED_IMAGES
from img2img.telemetry.tracing import SpanData, Tracer, Value

if TYPE_CHECKING:
    from .execution import JobExecution

# Histogram buckets in seconds.
JOB_BUCKETS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)
STAGE_BUCKETS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
CANCEL_BUCKETS = (0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class JobMetrics:
    """Metrics of jobs. Labels are names of models, stages and priorities, never ids.

    Args:
        tracer: gets the spans of each job.
    """

    def __init__(self, tracer: Tracer | None = None) -> None:
        self._tracer = tracer or Tracer()
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        Gauge("img2img_build_info", "Always 1; the version is a label.", ["version"], registry=registry).labels(
            version("img2img-server")
        ).set(1)
        registry.register(DAMAGED_IMAGES)
        registry.register(MODERATION_CHECKS)
        self._queue_waits = Histogram(
            "img2img_queue_wait_seconds",
            "Time from the submission of a job to its first start.",
            ["model", "priority"],
            buckets=JOB_BUCKETS,
            registry=registry,
        )
        self._job_durations = Histogram(
            "img2img_job_duration_seconds",
            "Time from the submission of a job to its stored images. Only jobs that succeeded.",
            ["model"],
            buckets=JOB_BUCKETS,
            registry=registry,
        )
        self._stage_durations = Histogram(
            "img2img_stage_duration_seconds",
            "Time of a job by stage. Includes the time of the jobs with which it shares batches.",
            ["model", "stage"],
            buckets=STAGE_BUCKETS,
            registry=registry,
        )
        self._cancel_latencies = Histogram(
            "img2img_cancel_latency_seconds",
            "Time from the cancellation of a running job until it has left the engine.",
            ["model"],
            buckets=CANCEL_BUCKETS,
            registry=registry,
        )
        self._steps = Counter(
            "img2img_denoising_steps", "Denoising steps done, per image or tile.", ["model"], registry=registry
        )
        self._images = Counter("img2img_images", "Images stored.", ["model"], registry=registry)
        self.lost_leases = Counter(
            "img2img_lost_leases",
            "Jobs that this worker requeued because the lease of another worker had expired.",
            registry=registry,
        )
        self.clock_skew = Gauge(
            "img2img_clock_skew_seconds",
            "How far the clock of this host is ahead of that of Redis.",
            registry=registry,
        )
        self._steps_recorded: Counts[str] = Counts()  # by execution id
        self._lock = threading.Lock()

    def serve(self, host: str, port: int | None) -> None:
        """Serve the metrics until the process ends. Without a port they are not served. Raises OSError."""
        if port is not None:
            start_http_server(port, host, self.registry)

    def record_start(self, execution: JobExecution) -> None:
        """Record the start of a job."""
        record = execution.record
        # A requeued job has waited twice, and the record knows only when it was submitted.
        if record.attempts == 1 and record.started_at is not None:
            wait_s = max(0.0, record.started_at - record.created_at)
            self._queue_waits.labels(record.spec.model, record.priority).observe(wait_s)
            wait = SpanData("queue_wait", record.created_at, record.created_at + wait_s)
            self._tracer.record(wait, record.traceparent, {"img2img.job_id": record.id})

    def record_steps(self, execution: JobExecution) -> None:
        """Count the steps done since the last call. Safe from any thread."""
        with self._lock:
            done = execution.steps_done
            new, self._steps_recorded[execution.id] = done - self._steps_recorded[execution.id], done
            self._steps.labels(execution.record.spec.model).inc(max(0, new))

    def record_end(self, execution: JobExecution, now: float) -> None:
        """Record the outcome of a job.

        Args:
            now: time of Redis, as the times of the job record.
        """
        self.record_steps(execution)
        with self._lock:
            self._steps_recorded.pop(execution.id, None)
        model, record = execution.record.spec.model, execution.final_record
        outcome = "lost"
        if record is not None and record.execution == execution.id:
            outcome = str(record.status)
            if record.status is JobStatus.SUCCEEDED and record.finished_at:
                self._job_durations.labels(model).observe(max(0.0, record.finished_at - record.created_at))
                self._images.labels(model).inc(len(record.images))
            if record.status is JobStatus.CANCELLED and record.finished_at and execution.rendered_at:
                left_at = now - (time.monotonic() - execution.rendered_at)
                self._cancel_latencies.labels(model).observe(max(0.0, left_at - record.finished_at))
        for name, seconds in execution.timeline.seconds().items():
            self._stage_durations.labels(model, name).observe(seconds)
        self._trace(execution, outcome, now)

    def _trace(self, execution: JobExecution, outcome: str, now: float) -> None:
        """Add the span of the execution, with its stages as children."""
        record, epoch = execution.record, now - time.perf_counter()
        begin = record.started_at or record.created_at

        def at(seconds: float) -> float:
            # The time of Redis is an estimate, by which a stage could be outside of its job.
            return min(max(epoch + seconds, begin), now)

        stages = tuple(
            SpanData(name, at(stage.start), at(stage.end)) for name, stage in sorted(execution.timeline.stages.items())
        )
        attributes: dict[str, Value] = {
            "img2img.job_id": record.id,
            "img2img.model": record.spec.model,
            "img2img.task": str(record.spec.task),
            "img2img.attempt": record.attempts,
            "img2img.steps": record.spec.total_steps,
            "img2img.end": outcome,
        }
        run = SpanData("run", begin, now)
        status = "failed" if outcome == JobStatus.FAILED else None
        self._tracer.record(run, record.traceparent, attributes, stages, status)
