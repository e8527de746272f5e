"""Decides which models a worker loads for the jobs that wait."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from img2img.domain.model_status import ModelState, ModelStatus
from img2img.printable import without_paths
from img2img.redis.job_queue import MODEL_UNAVAILABLE, JobQueue
from img2img.redis.model_registry import ModelRegistry

from .served_models import ServedModels

log = logging.getLogger(__name__)

# A job waits this long for the workers that have its model loaded. Then another worker loads the model too, and a model
# with jobs of its own gives way to others whose jobs have waited as long.
PATIENCE_S = 10.0
# A worker that would have to unload a model leaves the load for this long to workers that need not.
COURTESY_S = 1.0
# A model keeps its turn for so many times the time of its load, so that most of the time is spent on jobs.
LOAD_SHARE = 2.0
# Jobs fail when they have waited for this time, and no worker could load their model for as long.
UNAVAILABLE_S = 60.0
FAILED_AT_ONCE = 100
# A worker announces its load within this time.
RESERVATION_S = 5


class ModelPlacement:
    """Loads the models of waiting jobs, the one whose job has waited longest first.

    Jobs go to workers that have their model in memory. A model that is not loaded here is loaded if no live worker has
    it, or if its oldest job has waited for `patience_s`. It takes the place of models without jobs, least recently used
    first, and of models whose turn is over.

    Args:
        worker: name of this worker.
        jobs: the job queue.
        registry: has the states of the models in other workers.
        models: the models of this worker.
    """

    def __init__(
        self,
        worker: str,
        jobs: JobQueue,
        registry: ModelRegistry,
        models: ServedModels,
        *,
        patience_s: float = PATIENCE_S,
        unavailable_s: float = UNAVAILABLE_S,
    ) -> None:
        self._worker = worker
        self._jobs = jobs
        self._registry = registry
        self._models = models
        self._patience_s = patience_s
        self._unavailable_s = unavailable_s
        # Since when no worker can load a model that jobs wait for, by Redis' clock.
        self._unavailable_since: dict[str, float] = {}

    def place(self) -> None:
        """Begin to load a model, if there is one to be loaded. Raises RedisError."""
        statuses = self._models.statuses()
        served = (ModelState.LOADED, ModelState.UNLOADED)
        self._unavailable_since = {
            model: since
            for model, since in self._unavailable_since.items()
            if model in statuses and statuses[model].state not in served
        }
        if all(status.state is ModelState.LOADED for status in statuses.values()):
            return
        now = self._jobs.clock.now()
        ages = {model: now - queued_at for model, queued_at in self._jobs.oldest(list(statuses)).items()}
        absent = (ModelState.UNLOADED, ModelState.FAILED)
        waiting = sorted((m for m in ages if statuses[m].state in absent), key=lambda model: -ages[model])
        if not waiting:
            return
        others = {worker: states for worker, states in self._registry.states().items() if worker != self._worker}
        keep = {model for model in ages if statuses[model].state is ModelState.LOADED and self._has_turn(model)}
        for model in waiting:
            if statuses[model].state is ModelState.FAILED:
                self._fail_jobs(model, statuses[model], others, now)
            if self._is_wanted(model, ages[model], others, keep) and self._registry.reserve_load(
                model, self._worker, RESERVATION_S
            ):
                self._models.request(model, keep)
                return

    def _has_turn(self, model: str) -> bool:
        loaded_s, load_s = self._models.turn_s(model)
        return loaded_s < max(self._patience_s, LOAD_SHARE * load_s)

    def _is_wanted(
        self, model: str, age: float, others: Mapping[str, Mapping[str, ModelStatus]], keep: set[str]
    ) -> bool:
        if not self._models.can_load(model, keep):
            return False
        states = [statuses[model].state for statuses in others.values() if model in statuses]
        if age >= self._patience_s:
            return True
        if ModelState.LOADED in states or ModelState.LOADING in states:
            return False
        return age >= COURTESY_S or ModelState.UNLOADED not in states or not self._models.needs_eviction(model)

    def _fail_jobs(
        self, model: str, status: ModelStatus, others: Mapping[str, Mapping[str, ModelStatus]], now: float
    ) -> None:
        """Fail the jobs that have waited for too long for a model that no live worker can load."""
        states = [statuses[model].state for statuses in others.values() if model in statuses]
        if any(state is not ModelState.FAILED for state in states):
            self._unavailable_since.pop(model, None)
            return
        # The first failure may be one that passes, and jobs may have waited for others before.
        if now - self._unavailable_since.setdefault(model, now) < self._unavailable_s:
            return
        reason = without_paths(status.error or "")
        failure = MODEL_UNAVAILABLE.model_copy(update={"message": f"{MODEL_UNAVAILABLE.message} {model}: {reason}"})
        # Oldest first. The next call fails further ones.
        for job_id in self._jobs.queued_ids(model, FAILED_AT_ONCE):
            record = self._jobs.job_store.get(job_id)
            if record is None:
                continue
            if now - record.created_at < self._unavailable_s:
                return
            if self._jobs.fail_queued(job_id, failure):
                log.warning("failed the job %s: %s", job_id, failure.message)
