"""What a worker says of itself to those who run it: metrics for Prometheus, and the spans of each job."""

from __future__ import annotations

import threading
import time
from collections import Counter as Counts
from importlib.metadata import version
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.exposition import start_http_server

from img2img.domain.job import JobStatus
from img2img.telemetry.tracing import SpanData, Tracer, Value

if TYPE_CHECKING:
    from .execution import JobExecution

LONG = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)  # seconds of a job, or of waiting for it
SHORT = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)  # of a stage
NAMES = {"wait": "admit"}  # the engine's; here, `wait` is the queue's
CANCEL = (0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class JobMetrics:
    """What is counted of jobs. Labels are names of models, stages and priorities: never ids."""

    def __init__(self, traces: Tracer | None = None) -> None:
        self._traces = traces or Tracer()
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        Gauge("img2img_build_info", "1, with the version.", ["version"], registry=registry).labels(
            version("img2img-server")
        ).set(1)
        self._waits = Histogram(
            "img2img_queue_wait_seconds",
            "From a job's submit to its first claim.",
            ["model", "priority"],
            buckets=LONG,
            registry=registry,
        )
        self._jobs = Histogram(
            "img2img_job_duration_seconds",
            "From the submit to the stored picture, of jobs that succeeded.",
            ["model"],
            buckets=LONG,
            registry=registry,
        )
        self._stages = Histogram(
            "img2img_stage_duration_seconds",
            "A job's time by stage; in denoise and the like with its turns in company.",
            ["model", "stage"],
            buckets=SHORT,
            registry=registry,
        )
        self._cancels = Histogram(
            "img2img_cancel_latency_seconds",
            "From a running job's cancel to the engine without it.",
            ["model"],
            buckets=CANCEL,
            registry=registry,
        )
        self._steps = Counter(
            "img2img_denoising_steps", "Denoising steps done, of each picture or tile.", ["model"], registry=registry
        )
        self._images = Counter("img2img_images", "Pictures stored.", ["model"], registry=registry)
        self.lost = Counter(
            "img2img_lost_leases",
            "Jobs that this worker's sweeps took from workers that fell silent.",
            registry=registry,
        )
        self._noted: Counts[str] = Counts()  # steps, by execution
        self._lock = threading.Lock()

    def serve(self, host: str, port: int | None) -> None:
        """Answers on this port until the process ends; None: on none. Raises OSError."""
        if port is not None:
            start_http_server(port, host, self.registry)

    def claimed(self, claim: JobExecution) -> None:
        """A job has come in."""
        record = claim.record
        if record.attempts == 1 and record.started_at is not None:  # later on, nobody knows since when it waited
            waited_s = max(0.0, record.started_at - record.created_at)
            self._waits.labels(record.spec.model, record.priority).observe(waited_s)
            wait = SpanData("wait", record.created_at, record.created_at + waited_s)
            self._traces.record(wait, record.traceparent, {"img2img.job_id": record.id})

    def note_steps(self, claim: JobExecution) -> None:
        """Counts the steps done since this was last called. Safe from any thread."""
        if claim.running is None:
            return
        with self._lock:
            spec = claim.record.spec
            done = claim.running.step - len(claim.kept) * spec.total_steps // spec.num_images  # of this run alone
            new, self._noted[claim.execution.id] = done - self._noted[claim.execution.id], done
            self._steps.labels(spec.model).inc(max(0, new))

    def ended(self, claim: JobExecution) -> None:
        """A job has gone, whatever its end."""
        self.note_steps(claim)
        with self._lock:
            self._noted.pop(claim.execution.id, None)
        model, left_as = claim.record.spec.model, claim.left_as
        ours = left_as is not None and left_as.execution == claim.execution.id
        if left_as is not None and ours and left_as.finished_at is not None:
            if left_as.status is JobStatus.SUCCEEDED:
                self._jobs.labels(model).observe(max(0.0, left_as.finished_at - left_as.created_at))
                self._images.labels(model).inc(len(left_as.images))
            if left_as.status is JobStatus.CANCELLED and claim.rendered_at is not None:
                self._cancels.labels(model).observe(max(0.0, claim.rendered_at - left_as.finished_at))
        spans = {**claim.spans(), **({"store": claim.saved} if claim.saved else {})}
        seconds = {**claim.seconds(), **({"store": claim.saved[1] - claim.saved[0]} if claim.saved else {})}
        for name, stage_s in seconds.items():
            self._stages.labels(model, NAMES.get(name, name)).observe(stage_s)
        self._trace(claim, spans, str(left_as.status) if left_as is not None and ours else "lost")

    def _trace(self, claim: JobExecution, spans: dict[str, tuple[float, float]], end: str) -> None:
        """The span of the claim, and in it those of its stages."""
        record, epoch = claim.record, time.time() - time.perf_counter()
        parts = tuple(SpanData(NAMES.get(name, name), epoch + a, epoch + b) for name, (a, b) in sorted(spans.items()))
        attributes: dict[str, Value] = {
            "img2img.job_id": record.id,
            "img2img.model": record.spec.model,
            "img2img.task": str(record.spec.task),
            "img2img.attempt": record.attempts,
            "img2img.steps": record.spec.total_steps,
            "img2img.end": end,
        }
        run = SpanData("run", record.started_at or epoch + claim.load_started, time.time())
        self._traces.record(run, record.traceparent, attributes, parts, "failed" if end == JobStatus.FAILED else None)
