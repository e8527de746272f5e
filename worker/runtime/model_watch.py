"""ModelWatch: follows the model file, folders of LoRAs and changes by request while the worker runs."""

import logging
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Protocol

from redis import Redis
from redis.exceptions import RedisError

from img2img.domain.model_config import ModelConfig
from img2img.domain.model_status import ModelState, ModelStatus
from img2img.file_watch import FileWatch
from img2img.redis.job_queue import JobQueue
from img2img.redis.model_definitions import Changes, ModelDefinitions
from img2img.redis.model_registry import ModelRegistry
from img2img.redis.model_reports import WorkerReport, WorkerReports

from ..errors import StartupError
from ..pipelines.loading.hub import allow_downloads
from ..pipelines.loading.served_models import ModelSelection, Selection, models_of_file

# Workers follow a change within twice this time.
POLL_S = 0.5
# A report is repeated after this time, before it expires.
REPORT_S = 5.0

log = logging.getLogger(__name__)


class Models(Protocol):
    """The models of a worker, as `ModelPool`."""

    def define(self, configs: Mapping[str, ModelConfig], finishing: Collection[str] = ()) -> None:
        """Set the models that the worker serves, and those of them that only run the jobs that wait."""

    def statuses(self) -> Mapping[str, ModelStatus]:
        """Return the states of all models."""


class ModelWatch:
    """Keeps the models of a worker as its model file, its folders of LoRAs and requests define them.

    Args:
        redis: client of the Redis with the changes by request.
        selection: chooses the models.
        model: model to serve without a model file.
        revision: revision of `model` on the hub.
        file: the model file.
        models: gets the complete set of models, at the start and whenever it changes.
    """

    def __init__(
        self,
        redis: Redis,
        selection: ModelSelection,
        *,
        model: str,
        revision: str | None,
        file: Path | None,
        models: Models,
    ) -> None:
        self._definitions = ModelDefinitions(redis)
        self._registry = ModelRegistry(redis)
        self._reports = WorkerReports(redis)
        self._queue = JobQueue(redis)
        self._selection = selection
        self._models = models
        self._read_file = partial(models_of_file, model, revision, file)
        self._watch = FileWatch(file) if file else None
        self._file: Mapping[str, ModelConfig] = {}
        self._file_error: str | None = None
        self._changes = Changes(0, {})
        self._revision = 0
        self._defined: dict[str, ModelConfig] = {}
        # Models that are only served until no job waits for them.
        self._finishing: frozenset[str] = frozenset()
        # Models that this worker serves no more, whose cards may have to be removed.
        self._dropped: set[str] = set()
        self._reported: tuple[float, WorkerReport | None] = (0.0, None)

    def start(self) -> None:
        """Define the models for the first time.

        Raises:
            StartupError: the model file is invalid, or lacks a model that is to be served.
            RedisError: the changes cannot be read.
        """
        self._file = self._read_file()
        self._changes = self._definitions.read()
        self._selection.check(self._file, self._changes.by_model)
        self._apply()

    @property
    def names(self) -> list[str]:
        """Names of the models that are defined now, in their order."""
        return list(self._defined)

    @property
    def removed(self) -> set[str]:
        """Names of the models that requests have removed."""
        return {name for name, change in self._changes.by_model.items() if change.removed}

    @contextmanager
    def running(self, worker: str) -> Iterator[None]:
        """Follow changes on a thread while the context lasts.

        Args:
            worker: name of the worker in its reports.
        """
        closed = threading.Event()
        thread = threading.Thread(target=self._run, args=(worker, closed), name="model-watch", daemon=True)
        thread.start()
        try:
            yield
        finally:
            closed.set()
            thread.join()

    def _run(self, worker: str, closed: threading.Event) -> None:
        is_reachable = True
        while not closed.wait(POLL_S):
            try:
                self.poll(worker)
                is_reachable = True
            except RedisError as error:
                if is_reachable:
                    log.warning("Redis is unavailable, so the models stay as they are: %s", error)
                is_reachable = False
            except Exception:
                log.exception("the models could not be followed, retrying")
        with suppress(RedisError):
            # Otherwise it expires.
            self._reports.withdraw(worker)

    def poll(self, worker: str) -> None:
        """Look for changes once, and report. Raises RedisError."""
        if self._watch and self._watch.has_changed():
            self._read_changed_file(self._watch.path)
        if self._definitions.revision() != self._changes.revision:
            self._changes = self._definitions.read()
        selection = self._apply()
        self._forget_dropped(worker)
        self._report(worker, selection)

    def _read_changed_file(self, path: Path) -> None:
        try:
            self._file = self._read_file()
        except StartupError as error:
            self._file_error = str(error)
            log.warning("the model file is ignored until it changes again: %s", error)
        else:
            self._file_error = None
            log.info("the model file %s has changed", path)

    def _apply(self) -> Selection:
        """Define the models, if they have changed."""
        self._reject_unusable_loras()
        return self._define()

    def leave_out_unusable_loras(self) -> bool:
        """Define the models without LoRAs that could not be loaded. Returns whether there are any.

        Raises:
            RedisError: the queue cannot be read.
        """
        if rejected := self._reject_unusable_loras():
            self._define()
        return rejected

    def _define(self) -> Selection:
        selection = self._selection.select(self._file, self._changes.by_model)
        removed = {name: config for name, config in self._defined.items() if name not in selection.configs}
        removed |= selection.removed
        # Jobs that were accepted before the removal are run.
        finishing = {name: removed[name] for name in self._queue.oldest(list(removed))}
        wanted = {**selection.configs, **finishing}
        begun = (finishing.keys() | self._defined.keys()) - selection.configs.keys() - self._finishing
        if (list(wanted.items()), frozenset(finishing)) != (list(self._defined.items()), self._finishing):
            if self._defined or self._changes.by_model:
                allow_downloads()
            self._log_changes(wanted)
            self._models.define(wanted, finishing)
            self._defined, self._finishing = wanted, frozenset(finishing)
        self._dropped |= begun
        return selection

    def _forget_dropped(self, worker: str) -> None:
        """Remove the cards of models that this worker has dropped, unless other workers serve them by their files."""
        self._dropped -= self._defined.keys() - self._finishing
        for name in list(self._dropped):
            if name in self.removed or not self._registry.is_served_by_others(name, worker):
                self._registry.forget(name)
                self._dropped.discard(name)

    def _reject_unusable_loras(self) -> bool:
        """Reject LoRAs that could not be loaded, so that the model has the others. Returns whether there are any.

        A model that is not loaded yet fails instead if its own definition names the LoRA.
        """
        rejected = False
        for name, status in self._models.statuses().items():
            config = self._defined.get(name)
            if status.error is None or status.changing or config is None:
                continue
            own = () if status.state is ModelState.LOADED else self._loras_of_definition(name)
            for lora in config.loras.keys() - own:
                # As `worker.pipelines.conditioning.loras` names it.
                _, label, reason = status.error.partition(f"LoRA {lora!r}")
                if label:
                    log.warning("the LoRA %s is left out of the model %s until it changes%s", lora, name, reason)
                    self._selection.reject_lora(config, lora, reason.strip(": "))
                    rejected = True
        return rejected

    def _loras_of_definition(self, name: str) -> Collection[str]:
        """Return the LoRAs in the definition of a model, without those of a folder and those added by request."""
        change = self._changes.by_model.get(name)
        definition = (change and change.model) or self._file.get(name)
        return definition.loras.keys() if definition else ()

    def _log_changes(self, wanted: Mapping[str, ModelConfig]) -> None:
        if not self._defined:
            return
        for name in wanted.keys() | self._defined.keys():
            old, new = self._defined.get(name), wanted.get(name)
            if old is None:
                log.info("model %s is added", name)
            elif new is None:
                log.info("model %s is removed", name)
            elif old != new:
                log.info("model %s is changed; LoRAs: %s", name, ", ".join(new.loras) or "none")

    def _report(self, worker: str, selection: Selection) -> None:
        # Not before the states of the models that belong to it are announced.
        revision, self._revision = self._revision, self._changes.revision
        report = WorkerReport(
            revision=revision,
            refused=selection.refused,
            file_error=self._file_error,
            loras_left_out=selection.loras_left_out,
        )
        at, last = self._reported
        if report != last or time.monotonic() - at > REPORT_S:
            for name, reason in report.refused.items():
                if last is None or last.refused.get(name) != reason:
                    log.warning("the change of the model %s by request is ignored: %s", name, reason)
            self._reports.publish(worker, report)
            self._reported = (time.monotonic(), report)
