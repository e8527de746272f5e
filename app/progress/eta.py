"""Estimates when a queued job will end, from the work ahead of it and the throughput of the workers."""

import time
from collections.abc import Sequence

from img2img.domain.job import JobOptions, JobRecord, JobStatus
from img2img.domain.model_card import WorkerThroughput
from img2img.domain.spec import JobSpec
from img2img.redis.fair_queue import FairQueue
from img2img.redis.model_registry import ModelRegistry

from ..schemas.responses import QueueEstimate

# Workers report their throughput about as often. All requests to this process share the cached value.
THROUGHPUT_TTL_S = 1.0


class EtaEstimator:
    """Reads queue positions from Redis, and the throughput of the workers at most once a second."""

    def __init__(self, fair_queue: FairQueue, models: ModelRegistry) -> None:
        self._fair_queue = fair_queue
        self._models = models
        self._cached: dict[str, list[WorkerThroughput]] = {}
        self._read_at = -THROUGHPUT_TTL_S

    def estimate(self, records: Sequence[JobRecord]) -> list[QueueEstimate | None]:
        """Return an estimate for each queued job, and None for every other job. Raises RedisError."""
        queued = [record for record in records if record.status is JobStatus.QUEUED]
        job_ids = [record.id for record in records]
        throughputs = self._throughputs()
        estimates = {}
        for record, position in zip(queued, self._fair_queue.positions(queued), strict=True):
            if position is not None:
                workers = throughputs.get(record.spec.model, [])
                estimates[record.id] = QueueEstimate.from_position(
                    position,
                    record.spec.cost,
                    workers,
                    record.priority,
                    has_deadline=record.deadline_at is not None and not record.deadline_missed,
                )
        return list(map(estimates.get, job_ids))

    def estimate_next(self, spec: JobSpec, options: JobOptions) -> QueueEstimate:
        """Return the estimate for a job that would be submitted now. Raises RedisError."""
        position = self._fair_queue.next_position(
            spec.model, spec.cost, options.owner, options.priority, options.deadline_s
        )
        workers = self._throughputs().get(spec.model, [])
        has_deadline = options.deadline_s is not None
        return QueueEstimate.from_position(position, spec.cost, workers, options.priority, has_deadline=has_deadline)

    def _throughputs(self) -> dict[str, list[WorkerThroughput]]:
        """Return the throughput of each live worker, by model."""
        if time.monotonic() - self._read_at >= THROUGHPUT_TTL_S:
            live = self._models.live()
            self._cached = {model: self._models.throughputs(workers) for model, workers in live.items()}
            self._read_at = time.monotonic()
        return self._cached
