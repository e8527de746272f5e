"""ModelOverview: which models workers serve, load or could not load, and how requests have changed them."""

from collections.abc import Mapping
from dataclasses import dataclass

from redis import Redis

from img2img.domain.model_card import ModelCard
from img2img.domain.model_change import ModelChange
from img2img.domain.model_status import ModelStatus
from img2img.printable import without_paths
from img2img.redis.job_queue import JobQueue
from img2img.redis.model_definitions import Changes, ModelDefinitions
from img2img.redis.model_registry import ModelRegistry
from img2img.redis.model_reports import WorkerReport, WorkerReports

from ..schemas.model_details import ModelDetails, ModelOnWorker, State
from ..schemas.responses import ModelAvailability, ModelList, ServedModel, by_model

# States in which a worker runs jobs of a model.
SERVED = ("loaded", "unloaded")


@dataclass(frozen=True)
class _Found:
    """One reading of the state of all workers."""

    live: Mapping[str, list[str]]
    cards: Mapping[str, ModelCard]
    # By worker and model.
    states: Mapping[str, Mapping[str, ModelStatus]]
    reports: Mapping[str, WorkerReport]
    changes: Changes

    def is_known(self, name: str) -> bool:
        """Return whether there is a model of this name, for clients."""
        change = self.changes.by_model.get(name)
        if change is not None and (change.removed or change.model is not None):
            return not change.removed
        return name in self.cards or any(name in states for states in self.states.values())

    def pending(self) -> list[str]:
        """Return the models that exist and that no worker serves as they are now."""
        defined = {name for states in self.states.values() for name in states}
        added = {name for name, change in self.changes.by_model.items() if change.model is not None}
        return sorted(name for name in defined | added if self.is_known(name) and not self._is_served(name))

    def _is_served(self, name: str) -> bool:
        return any(self.on_worker(name, worker, is_admin=False).state in SERVED for worker in self.states)

    def on_worker(self, name: str, worker: str, *, is_admin: bool) -> ModelOnWorker:
        """Return the state of a model on one worker.

        Args:
            is_admin: Whether a reason may contain paths.
        """
        status, report = self.states[worker].get(name), self.reports.get(worker, WorkerReport())
        state: State = "waiting"
        detail = report.refused.get(name)
        if detail is not None:
            state = "failed"
        elif status is not None and report.revision >= self.changes.by_model.get(name, ModelChange()).revision:
            state, detail = status.state.value, status.error
            if state in SERVED and status.changing:
                state = "waiting"
            elif state in SERVED and worker not in self.live.get(name, ()):
                state, detail = "loading", "its files are being read"
            elif state == "loading" and status.percent is not None:
                detail = f"{status.percent} %"
        detail = detail if detail is None or is_admin else without_paths(detail)
        left_out = report.loras_left_out.get(name, {})
        return ModelOnWorker(
            worker=worker,
            state=state,
            detail=detail,
            loras_left_out=left_out if is_admin else {lora: without_paths(why) for lora, why in left_out.items()},
        )


class ModelOverview:
    """Reads the state of the models for one caller.

    Args:
        queue: The queue whose jobs are counted.
        default: Name of the default model.
        is_admin: Whether the caller may see sources, paths and reasons.
    """

    def __init__(self, redis: Redis, queue: JobQueue, default: str, *, is_admin: bool) -> None:
        self._models = ModelRegistry(redis)
        self._definitions = ModelDefinitions(redis)
        self._reports = WorkerReports(redis)
        self._queue = queue
        self._default = default
        self._is_admin = is_admin

    def read_all(self) -> ModelList:
        """Return all models."""
        found = self._read()
        statuses = by_model(found.states, with_paths=self._is_admin)
        served = [
            ServedModel(
                **found.cards[name].model_dump(),
                state=ModelAvailability.best_of(status.state for status in statuses.get(name, ())),
                statuses=statuses.get(name, []),
                workers=workers,
                queued=self._queue.depth(name),
                default=name == self._default,
            )
            for name, workers in sorted(found.live.items())
            if name in found.cards and (name in statuses or not workers)
        ]
        notices = [
            f"{worker}: {notice}"
            for worker, report in found.reports.items()
            for notice in (
                report.file_notice(with_reason=self._is_admin),
                *report.lora_notices(with_reason=self._is_admin),
            )
            if notice
        ]
        pending = [self._status(found, name) for name in found.pending()]
        return ModelList(models=served, pending=pending, notices=notices)

    def exists(self, name: str) -> bool:
        """Return whether there is a model of this name: served, known from earlier, or added by request."""
        return self._read().is_known(name)

    def status(self, name: str) -> ModelDetails:
        """Return the state of a model. One that does not exist counts as removed."""
        return self._status(self._read(), name)

    def _read(self) -> _Found:
        live, cards, states = self._models.live(), self._models.known(), self._models.states()
        if not states:
            # Jobs for them wait for a worker, which a scaler may start.
            live = {name: [] for name in self._models.served_last()}
        return _Found(live, cards, states, self._reports.read(states), self._definitions.read())

    def _status(self, found: _Found, name: str) -> ModelDetails:
        workers = [
            found.on_worker(name, worker, is_admin=self._is_admin)
            for worker, states in found.states.items()
            if name in states or name in found.reports.get(worker, WorkerReport()).refused
        ]
        queued = self._queue.depth(name)
        change = found.changes.by_model.get(name)
        status = ModelDetails(
            name=name,
            state="waiting",
            detail="",
            default=name == self._default,
            queued=queued,
            workers=workers,
            card=found.cards.get(name),
            change=change if self._is_admin else None,
        )
        return status.model_copy(update=_summary(status, exists=found.is_known(name), any_worker=bool(found.states)))


def _summary(status: ModelDetails, *, exists: bool, any_worker: bool) -> dict[str, str]:
    """Return state and detail of a model over all workers."""
    if not exists:
        left = f"; {status.queued} of its jobs still wait" if status.queued else ""
        return {"state": "removed", "detail": f"Requests for it are rejected{left}."}

    def having(state: State) -> list[ModelOnWorker]:
        return [worker for worker in status.workers if worker.state == state]

    if loaded := len(having("loaded")):
        return {"state": "loaded", "detail": f"{loaded} worker{'s have' if loaded != 1 else ' has'} it in memory."}
    if having("unloaded"):
        return {"state": "unloaded", "detail": "It is loaded when a job needs it."}
    states: tuple[State, State] = ("loading", "failed")
    for state in states:
        if having(state):
            return {"state": state, "detail": f"{having(state)[0].worker}: {having(state)[0].detail or state}"}
    if not any_worker:
        return {"state": "waiting", "detail": "No worker runs; the next one that starts loads it."}
    return {"state": "waiting", "detail": "No worker has followed the change yet; that takes up to 2 seconds."}
