"""ModelOverview: which models workers serve, load or could not load, and how requests have changed them."""

from collections.abc import Mapping
from dataclasses import dataclass

from redis import Redis

from img2img.domain.model_card import ModelCard
from img2img.redis.job_queue import JobQueue
from img2img.redis.model_definitions import Changes, ModelDefinitions
from img2img.redis.model_registry import ModelRegistry
from img2img.redis.model_reports import WorkerReport, WorkerReports

from ..schemas.model_details import ModelDetails, WorkerModel
from ..schemas.responses import ModelList, ServedModel

FAILED = "The reason is in the log of the worker; an API key with the scope `admin` can read it here."


@dataclass(frozen=True)
class _Found:
    """One reading of the state of all workers."""

    live: Mapping[str, list[str]]
    cards: Mapping[str, ModelCard]
    workers: list[str]
    reports: Mapping[str, WorkerReport]
    changes: Changes

    def is_known(self, name: str) -> bool:
        """Return whether there is a model of this name, for clients."""
        change = self.changes.by_model.get(name)
        if change is not None and (change.removed or change.model is not None):
            return not change.removed
        return name in self.cards or any(name in report.models for report in self.reports.values())

    def pending(self) -> list[str]:
        """Return the models that exist and that no worker serves as they are now."""
        reported = {name for report in self.reports.values() for name in report.models}
        added = {name for name, change in self.changes.by_model.items() if change.model is not None}
        return sorted(name for name in reported | added if self.is_known(name) and not self._is_served(name))

    def _is_served(self, name: str) -> bool:
        return any(self.on_worker(name, worker, with_reason=False).state == "ready" for worker in self.workers)

    def on_worker(self, name: str, worker: str, *, with_reason: bool) -> WorkerModel:
        """Return the state of a model on one worker.

        Args:
            with_reason: Whether to include why it could not be loaded, which can contain paths.
        """
        report = self.reports.get(worker)
        if report is not None and name in report.models:
            state = report.models[name]
            detail = state.detail if with_reason or state.state == "loading" else FAILED
            return WorkerModel(worker=worker, state=state.state, detail=detail)
        follows = report is None or name not in self.changes.by_model or report.revision >= self.changes.revision
        is_ready = worker in self.live.get(name, ()) and follows
        return WorkerModel(worker=worker, state="ready" if is_ready else "waiting")


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
        served = [
            ServedModel(
                **found.cards[name].model_dump(),
                workers=workers,
                queued=self._queue.depth(name),
                default=name == self._default,
            )
            for name, workers in sorted(found.live.items())
            if name in found.cards
        ]
        reports = found.reports.items()
        notices = {worker: report.file_notice(with_reason=self._is_admin) for worker, report in reports}
        errors = [f"{worker}: {notice}" for worker, notice in notices.items() if notice]
        return ModelList(models=served, pending=[self._status(found, name) for name in found.pending()], notices=errors)

    def exists(self, name: str) -> bool:
        """Return whether there is a model of this name: served, known from earlier, or added by request."""
        return self._read().is_known(name)

    def status(self, name: str) -> ModelDetails:
        """Return the state of a model. One that does not exist counts as removed."""
        return self._status(self._read(), name)

    def _read(self) -> _Found:
        live, workers = self._models.live(), self._models.live_workers()
        changes = self._definitions.read()
        return _Found(live, self._models.known(), workers, self._reports.read(workers), changes)

    def _status(self, found: _Found, name: str) -> ModelDetails:
        states = [found.on_worker(name, worker, with_reason=self._is_admin) for worker in found.workers]
        queued = self._queue.depth(name)
        change = found.changes.by_model.get(name)
        workers = [state for state in states if state.state != "waiting" or name in found.live]
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
        return status.model_copy(update=_summary(status, exists=found.is_known(name), any_worker=bool(found.workers)))


def _summary(status: ModelDetails, *, exists: bool, any_worker: bool) -> dict[str, str]:
    """Return state and detail of a model over all workers."""
    if not exists:
        left = f"; {status.queued} of its jobs still wait" if status.queued else ""
        return {"state": "removed", "detail": f"Requests for it are rejected{left}."}

    def having(state: str) -> list[WorkerModel]:
        return [worker for worker in status.workers if worker.state == state]

    if ready := len(having("ready")):
        return {"state": "ready", "detail": f"{ready} worker{'s' * (ready != 1)} serve{'s' * (ready == 1)} it."}
    if loading := having("loading"):
        return {"state": "loading", "detail": f"{loading[0].worker}: {loading[0].detail}"}
    if failed := having("failed"):
        return {"state": "failed", "detail": f"{failed[0].worker}: {failed[0].detail}"}
    if not any_worker:
        return {"state": "waiting", "detail": "No worker runs; the next one that starts loads it."}
    return {"state": "waiting", "detail": "No worker has begun to load it; workers follow changes within 2 seconds."}
