"""When a waiting job will be done: the work ahead of it, by the pace of the workers that serve its model."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from img2img.domain.job import JobOptions, JobRecord, JobStatus
from img2img.domain.model_card import WorkerThroughput
from img2img.domain.spec import JobSpec
from img2img.redis.fair_queue import FairQueue, QueuePosition
from img2img.redis.model_registry import ModelRegistry

FRESH_S = 1.0  # workers speak as often; between two looks, all clients of this process share what they said


@dataclass(frozen=True)
class QueueEstimate:
    """Where a waiting job stands and when it will be done."""

    queue_position: int
    eta_s: float | None  # None where no live worker has said how fast it is


class EtaEstimator:
    """Asks Redis where jobs stand, and once a second how fast the workers are."""

    def __init__(self, line: FairQueue, models: ModelRegistry) -> None:
        self._line = line
        self._models = models
        self._paces: dict[str, list[WorkerThroughput]] = {}
        self._asked_at = -FRESH_S

    def of(self, records: Sequence[JobRecord]) -> list[QueueEstimate | None]:
        """For each job that waits; None for the others."""
        waiting = [record for record in records if record.status is JobStatus.QUEUED]
        standings = self._line.positions(waiting)
        found = {r.id: self._forecast(s, r.spec) for r, s in zip(waiting, standings, strict=True) if s is not None}
        return [found.get(record.id) for record in records]

    def of_next(self, spec: JobSpec, terms: JobOptions) -> QueueEstimate:
        """For a job that would come now."""
        return self._forecast(self._line.next_position(spec.model, terms.owner, terms.priority), spec)

    def _forecast(self, standing: QueuePosition, spec: JobSpec) -> QueueEstimate:
        if time.monotonic() - self._asked_at >= FRESH_S:
            self._paces = {model: self._models.throughputs(workers) for model, workers in self._models.live().items()}
            self._asked_at = time.monotonic()
        paces = self._paces.get(spec.model, [])
        per_second = sum(pace.per_second for pace in paces if pace.per_second)
        work = standing.cost_ahead + sum(pace.left for pace in paces) + spec.cost
        return QueueEstimate(standing.position, round(work / per_second, 1) if per_second else None)
