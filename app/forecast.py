"""When a waiting job will be done: the work ahead of it, by the pace of the workers that serve its model."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from app.contract.job import JobRecord, JobStatus, Terms
from app.contract.line import Line, Standing
from app.contract.models import ModelRegistry, WorkerPace
from app.contract.spec import JobSpec

FRESH_S = 1.0  # workers speak as often; between two looks, all clients of this process share what they said


@dataclass(frozen=True)
class Forecast:
    """Where a waiting job stands and when it will be done."""

    queue_position: int
    eta_s: float | None  # None where no live worker has said how fast it is


class Forecaster:
    """Asks Redis where jobs stand, and once a second how fast the workers are."""

    def __init__(self, line: Line, models: ModelRegistry) -> None:
        self._line = line
        self._models = models
        self._paces: dict[str, list[WorkerPace]] = {}
        self._asked_at = -FRESH_S

    def of(self, records: Sequence[JobRecord]) -> list[Forecast | None]:
        """For each job that waits; None for the others."""
        waiting = [record for record in records if record.status is JobStatus.QUEUED]
        standings = self._line.standings(waiting)
        found = {r.id: self._forecast(s, r.spec) for r, s in zip(waiting, standings, strict=True) if s is not None}
        return [found.get(record.id) for record in records]

    def of_next(self, spec: JobSpec, terms: Terms) -> Forecast:
        """For a job that would come now."""
        return self._forecast(self._line.end(spec.model, terms.owner, terms.priority), spec)

    def _forecast(self, standing: Standing, spec: JobSpec) -> Forecast:
        if time.monotonic() - self._asked_at >= FRESH_S:
            self._paces = {model: self._models.paces(workers) for model, workers in self._models.live().items()}
            self._asked_at = time.monotonic()
        paces = self._paces.get(spec.model, [])
        per_second = sum(pace.per_second for pace in paces if pace.per_second)
        work = standing.cost_ahead + sum(pace.left for pace in paces) + spec.cost
        return Forecast(standing.position, round(work / per_second, 1) if per_second else None)
