"""ModelWatch: follows the model file, folders of LoRAs and changes by request while the worker runs."""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from redis import Redis
from redis.exceptions import RedisError

from img2img.domain.model_config import ModelConfig
from img2img.file_watch import FileWatch
from img2img.redis.job_queue import JobQueue
from img2img.redis.model_definitions import Changes, ModelDefinitions
from img2img.redis.model_registry import ModelRegistry
from img2img.redis.model_reports import WorkerReport, WorkerReports

from ..errors import StartupError
from ..pipelines.loading.served_models import ModelSelection, Selection, models_of_file

# Workers follow a change within twice this time.
POLL_S = 0.5
# A report is repeated after this time, before it expires.
REPORT_S = 5.0

log = logging.getLogger(__name__)

Define = Callable[[Mapping[str, ModelConfig]], None]


class ModelWatch:
    """Keeps the models of a worker as its model file, its folders of LoRAs and requests define them.

    Args:
        redis: client of the Redis with the changes by request.
        selection: chooses the models.
        model: model to serve without a model file.
        revision: revision of `model` on the hub.
        file: the model file.
        define: gets the complete set of models, at the start and whenever it changes.
        errors: returns why models could not be loaded, by name.
    """

    def __init__(
        self,
        redis: Redis,
        selection: ModelSelection,
        *,
        model: str,
        revision: str | None,
        file: Path | None,
        define: Define,
        errors: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        self._definitions = ModelDefinitions(redis)
        self._registry = ModelRegistry(redis)
        self._reports = WorkerReports(redis)
        self._queue = JobQueue(redis)
        self._selection = selection
        self._define, self._errors = define, errors
        self._read_file = lambda: models_of_file(model, revision, file)
        self._watch = FileWatch(file) if file else None
        self._file: Mapping[str, ModelConfig] = {}
        self._file_error: str | None = None
        self._changes = Changes(0, {})
        self._defined: dict[str, ModelConfig] = {}
        # Models that are only served until no job waits for them.
        self._finishing: frozenset[str] = frozenset()
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

    def is_finishing(self, name: str) -> bool:
        """Return whether a model was removed, and is only served until no job waits for it."""
        return name in self._finishing

    def run(self, worker: str, closed: threading.Event) -> None:
        """Follow changes until `closed` is set.

        Args:
            worker: name of the worker in its reports.
        """
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
        try:
            self._reports.withdraw(worker)
        except RedisError as error:
            log.info("the report of the models expires: %s", error)

    def poll(self, worker: str) -> None:
        """Look for changes once, and report. Raises RedisError."""
        if self._watch and self._watch.has_changed():
            self._read_changed_file(self._watch.path)
        if self._definitions.revision() != self._changes.revision:
            self._changes = self._definitions.read()
        self._report(worker, self._apply())

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
        self._leave_out_unsuitable_loras()
        selection = self._selection.select(self._file, self._changes.by_model)
        removed = {name: config for name, config in self._defined.items() if name not in selection.configs}
        removed |= selection.removed
        # Jobs that were accepted before the removal are run.
        finishing = {name: config for name, config in removed.items() if self._queue.depth(name)}
        wanted = {**selection.configs, **finishing}
        begun = (finishing.keys() | self._defined.keys()) - selection.configs.keys() - self._finishing
        self._finishing = frozenset(finishing)
        if wanted != self._defined or list(wanted) != list(self._defined):
            self._log_changes(wanted)
            self._define(wanted)
            self._defined = wanted
        for name in begun:
            # Another worker that still serves the model registers it again.
            self._registry.forget(name)
        return selection

    def _leave_out_unsuitable_loras(self) -> None:
        """Leave out a LoRA of a folder that does not fit its model, which could not be loaded with it."""
        for name, error in self._errors().items():
            config = self._defined.get(name)
            if config is None or config.lora_folder is None:
                continue
            for lora in config.loras:
                # As `worker.pipelines.conditioning.loras` names it.
                if f"LoRA {lora!r}" in error and self._selection.reject_lora(config, lora):
                    log.warning("the LoRA %s is left out of the model %s until its file changes: %s", lora, name, error)

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
        report = WorkerReport(
            revision=self._changes.revision, refused=selection.refused, file_error=self._file_error
        )
        at, last = self._reported
        if report != last or time.monotonic() - at > REPORT_S:
            for name, reason in report.refused.items():
                if last is None or last.refused.get(name) != reason:
                    log.warning("the change of the model %s by request is ignored: %s", name, reason)
            self._reports.publish(worker, report)
            self._reported = (time.monotonic(), report)
