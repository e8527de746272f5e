"""The models of a worker: loaded when jobs need them, unloaded when their memory is needed, changed while jobs run."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import torch

from img2img.domain.model_card import ModelCard
from img2img.domain.model_config import ModelConfig
from img2img.domain.model_status import ModelState, ModelStatus

from ..engine.errors import is_device_lost, is_out_of_memory
from ..errors import StartupError, WorkerDied
from ..pipelines.loading.failures import GB, device_memory
from ..pipelines.memory import memory_by_device
from ..pipelines.model import Model
from .allocator import collect_unloaded, freeze_gc
from .model_loader import ModelLoader
from .model_memory import MemoryBudget
from .pool_metrics import PoolMetrics
from .pooled_model import RETRY_S, PooledModel

log = logging.getLogger(__name__)

# Longest time without a check of the engine, while the start waits for a model.
CHECK_S = 0.2


class ModelLease:
    """A use of a loaded model by one job. The model stays in memory until it is released."""

    def __init__(self, model: Model, release: Callable[[bool], None]) -> None:
        self.model = model
        self._release: Callable[[bool], None] | None = release

    def release(self, *, used: bool = True) -> None:
        """End the use. A second call has no effect.

        Args:
            used: whether there was a job. The least recently used model is unloaded first.
        """
        release, self._release = self._release, None
        if release is not None:
            del self.model
            release(used)


class ModelPool:
    """The models that a worker serves, by name. All methods are safe from any thread.

    One thread of the pool describes and loads models, one after another.

    Args:
        loader: describes and loads one model.
        budget: decides how many models fit.
        max_loaded: limit of the number of models in memory.
        metrics: counts what happens.
    """

    def __init__(
        self,
        loader: ModelLoader,
        budget: MemoryBudget,
        *,
        max_loaded: int | None = None,
        metrics: PoolMetrics | None = None,
    ) -> None:
        self._loader = loader
        self._budget = budget
        self._max_loaded = max_loaded
        self._metrics = metrics or PoolMetrics()
        self._changed = threading.Condition()
        self._models: dict[str, PooledModel] = {}  # the defined ones, in their order
        self._retired: list[PooledModel] = []  # those in memory that are no longer defined
        self._requested: list[PooledModel] = []
        self._fatal: BaseException | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="models", daemon=True)

    # What the worker serves

    def define(self, configs: Mapping[str, ModelConfig]) -> None:
        """Set the models that the worker serves, by name: at the start, and at any later time. Returns at once.

        New models are described on the pool's thread, and loaded when jobs need them. Removed ones take no new jobs,
        and are unloaded when their running jobs have ended. For changed ones, new jobs get the new configuration, and
        running jobs keep what they started with. A model that differs only in its LoRAs stays loaded.

        A configuration that cannot be used makes the model `failed`.
        """
        with self._changed:
            models = {}
            for name, config in configs.items():
                old = self._models.get(name)
                if old is not None and old.wanted_config.model_copy(update={"loras": config.loras}) == config:
                    old.next_config = config if config != old.config else None
                    models[name] = old
                else:
                    models[name] = PooledModel(config)
            for name, old in self._models.items():
                if models.get(name) is not old:
                    self._retire(old, models.get(name))
            self._models = models
            self._changed.notify_all()

    def _retire(self, old: PooledModel, successor: PooledModel | None) -> None:
        old.is_retired = old.is_draining = True
        if old.model is not None:
            self._retired.append(old)
        log.info("model %s was %s", old.name, "removed" if successor is None else "changed")
        # A model in use is loaded again with its new configuration, without waiting for a job.
        if successor is not None and old.state in (ModelState.LOADED, ModelState.LOADING):
            successor.begin()
            self._requested.append(successor)
        if old in self._requested:
            self._requested.remove(old)

    @property
    def cards(self) -> list[ModelCard]:
        """The cards of the models whose card is known."""
        with self._changed:
            return [model.card for model in self._models.values() if model.card is not None]

    def statuses(self) -> dict[str, ModelStatus]:
        """Return the states of all models, by name."""
        with self._changed:
            return {name: model.status() for name, model in self._models.items()}

    def percent(self) -> int | None:
        """Return which part of the weights of the model that is being loaded was read; None without one."""
        with self._changed:
            return next((m.files.percent for m in self._models.values() if m.files is not None), None)

    # Jobs

    def lease(self, name: str) -> ModelLease | None:
        """Return a lease on a model for one job; None if it is not loaded or about to be unloaded."""
        with self._changed:
            pooled = self._models.get(name)
            if pooled is None or pooled.model is None or pooled.is_draining:
                return None
            pooled.in_flight += 1
            return ModelLease(pooled.model, lambda used: self._release(pooled, used=used))

    def _release(self, pooled: PooledModel, *, used: bool) -> None:
        with self._changed:
            pooled.in_flight -= 1
            if used:
                pooled.used_at = time.monotonic()
            if pooled.in_flight == 0 and pooled.is_draining:
                self._changed.notify_all()

    def turn_s(self, name: str) -> tuple[float, float]:
        """Return for how many seconds a model has been loaded, and how long it took to load."""
        with self._changed:
            pooled = self._models.get(name)
            return (0.0, 0.0) if pooled is None else (time.monotonic() - pooled.loaded_at, pooled.load_s)

    def can_load(self, name: str, keep: Collection[str] = ()) -> bool:
        """Return whether `request` would accept a model now."""
        with self._changed:
            return self._victims(name, keep) is not None

    def needs_eviction(self, name: str) -> bool:
        """Return whether another model would have to be unloaded for this one."""
        with self._changed:
            pooled = self._models.get(name)
            return pooled is not None and not self._fits(pooled, ())

    def request(self, name: str, keep: Collection[str] = ()) -> bool:
        """Load a model in the background, and unload others for it if necessary, the least recently used ones first.

        Models with jobs in flight get no new ones until they are unloaded.

        Args:
            keep: models that must stay loaded.

        Returns:
            Whether it will be loaded. False if another one is being loaded, or if there is no room.
        """
        with self._changed:
            victims = self._victims(name, keep)
            if victims is None:
                return False
            for victim in victims:
                victim.is_draining = True
            self._models[name].begin()
            self._requested.append(self._models[name])
            self._changed.notify_all()
            return True

    def _victims(self, name: str, keep: Collection[str]) -> list[PooledModel] | None:
        """Return the models to unload for another one; None if it cannot be loaded now."""
        pooled = self._models.get(name)
        if pooled is None or pooled.card is None or self._requested or self._retired:
            return None
        if pooled.state not in (ModelState.UNLOADED, ModelState.FAILED) or time.monotonic() < pooled.retry_at:
            return None
        candidates = sorted(
            (model for model in self._loaded() if model.name not in keep),
            key=lambda model: (model.in_flight > 0, model.used_at),
        )
        victims: list[PooledModel] = []
        while not self._fits(pooled, victims):
            if not candidates:
                # Alone it is tried in any case: it may fit, and if not, its error says so.
                return victims if len(victims) == len(self._loaded()) else None
            victims.append(candidates.pop(0))
        return victims

    def _loaded(self) -> list[PooledModel]:
        return [model for model in self._models.values() if model.model is not None]

    def _fits(self, pooled: PooledModel, victims: Sequence[PooledModel]) -> bool:
        in_memory = [*self._loaded(), *self._retired]
        if self._max_loaded is not None and len(in_memory) - len(victims) >= self._max_loaded:
            return False
        loaded, freed = (sum(model.needed_bytes for model in models) for models in (in_memory, victims))
        return self._budget.fits(pooled.needed_bytes, loaded, freed)

    # Start and end

    def start(self, names: Iterable[str], check: Callable[[], None] = lambda: None) -> None:
        """Start the pool's thread, and load models.

        Args:
            names: the models to load. If none of them can be loaded, the first other one that can be.
            check: called often; raises if the engine has died.

        Raises:
            StartupError: no model can be served.
        """
        self._thread.start()
        names = list(names)
        served = [name for name in names if self._load_now(name, check)]
        for name in [] if served or not names else [name for name in self._models if name not in names]:
            if self._load_now(name, check):
                return
        if not served:
            self._wait(lambda: any(m.card for m in self._models.values()) or self._all_failed(), check)
            with self._changed:
                if names or self._all_failed():
                    raise StartupError(next(m.error for m in self._models.values() if m.error) or "no model")

    def _load_now(self, name: str, check: Callable[[], None]) -> bool:
        pooled = self._models[name]
        with self._changed:
            pooled.begin()
            self._requested.append(pooled)
            self._changed.notify_all()
        self._wait(lambda: pooled.state is not ModelState.LOADING, check)
        return pooled.state is ModelState.LOADED

    def _all_failed(self) -> bool:
        return all(model.state is ModelState.FAILED for model in self._models.values())

    def _wait(self, condition: Callable[[], bool], check: Callable[[], None]) -> None:
        with self._changed:
            while not self._changed.wait_for(condition, CHECK_S):
                self.check()
                check()

    def check(self) -> None:
        """Raise WorkerDied if the device has failed or the pool's thread has ended."""
        if self._fatal is not None:
            raise WorkerDied(f"the models cannot be loaded any more: {self._fatal}") from self._fatal
        if not self._thread.is_alive() and not self._closed:
            raise WorkerDied("the thread that loads models has died")

    def close(self) -> None:
        """End the pool's thread once it has finished what it does."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    # The pool's thread

    def _run(self) -> None:
        # Its OpenMP threads would compete with those of the engine.
        torch.set_num_threads(1)
        while (work := self._next()) is not None:
            work()

    def _next(self) -> Callable[[], object] | None:
        """Wait for work and return it; None if closed."""
        with self._changed:
            while not self._closed:
                retired = next((model for model in self._retired if model.in_flight == 0), None)
                if retired is not None:
                    return lambda: self._unload(retired)
                changed = next((model for model in self._models.values() if model.next_config is not None), None)
                if changed is not None and changed.state is not ModelState.LOADING:
                    return lambda: self._change_loras(changed)
                if self._requested:
                    requested = self._requested[0]
                    return lambda: self._load(requested)
                unknown = next((model for model in self._models.values() if model.needs_description), None)
                if unknown is not None:
                    return lambda: self._describe(unknown)
                # A model that could not be described is tried again.
                self._changed.wait(RETRY_S)
        return None

    def _describe(self, pooled: PooledModel) -> bool:
        """Find out the card and the size of a model. Return whether that was possible."""
        try:
            description = self._loader.describe(pooled.config)
        except StartupError as error:
            self._fail(pooled, str(error))
            return False
        with self._changed:
            pooled.card, pooled.is_stale = description.card, False
            pooled.disk_bytes = description.disk_bytes
            pooled.expected_bytes = description.memory_bytes
            if pooled.state is ModelState.FAILED:
                pooled.state, pooled.error = ModelState.UNLOADED, None
            self._changed.notify_all()
        return True

    def _change_loras(self, pooled: PooledModel) -> None:
        """Give a model the LoRAs of its next configuration. If one of them cannot be used, a loaded model keeps its."""
        with self._changed:
            config, pooled.next_config = pooled.wanted_config, None
            model = pooled.model
            pooled.config, pooled.is_stale, pooled.error = config, model is None, None
            if model is None:
                # A model that could not be loaded because of a LoRA is tried again.
                pooled.retry_at = 0.0
                return
            pooled.has_replaced_modules = True
        try:
            self._loader.set_loras(model, config)
        except StartupError as error:
            log.error("%s; it keeps the LoRAs that it had", error)
            with self._changed:
                pooled.error = str(error)
            return
        with self._changed:
            pooled.card = model.card
            pooled.memory = memory_by_device(model.modules())
            self._changed.notify_all()
        self._record_memory()

    def _load(self, pooled: PooledModel) -> None:
        """Load a requested model, once the models that make room for it have no jobs any more."""
        try:
            if pooled.card is not None or self._describe(pooled):
                with self._changed:
                    pooled.begin()
                self._make_room(pooled)
                self._load_weights(pooled)
        finally:
            with self._changed:
                if pooled in self._requested:
                    self._requested.remove(pooled)
                if pooled.is_retired and pooled.model is not None and pooled not in self._retired:
                    self._retired.append(pooled)
                self._changed.notify_all()

    def _make_room(self, pooled: PooledModel) -> None:
        with self._changed:
            draining = [model for model in self._loaded() if model.is_draining]
        for victim in draining:
            self._evict(victim)
        # At the start, and after a change of the configuration, no victims were chosen.
        while not self._has_room(pooled) and self._evict_one():
            pass

    def _has_room(self, pooled: PooledModel) -> bool:
        with self._changed:
            return self._fits(pooled, ())

    def _load_weights(self, pooled: PooledModel) -> None:
        while True:
            if pooled.is_retired:
                return
            if reason := self._budget.why_too_large(pooled.needed_bytes):
                self._fail(pooled, f"cannot load model {pooled.name!r}: {reason}; {_SMALLER}")
                return
            started = time.monotonic()
            try:
                assert pooled.files is not None
                model = self._loader.load(pooled.config, pooled.files)
            except StartupError as error:
                message, is_lost, lacks_memory = str(error), *_causes(error)
            else:
                seconds = time.monotonic() - started
                freeze_gc()
                self._succeed(pooled, model, seconds)
                return
            # Outside of the handler, where the error no longer keeps the frames with the weights.
            collect_unloaded()
            if is_lost:
                self._fatal = WorkerDied(message)
            if is_lost or not lacks_memory or not self._evict_one():
                self._fail(pooled, message)
                return
            log.warning("model %s did not fit; trying again", pooled.name)
            pooled.begin()

    def _succeed(self, pooled: PooledModel, model: Model, seconds: float) -> None:
        memory = memory_by_device(model.modules())
        with self._changed:
            pooled.succeed(model, memory, seconds)
            pooled.is_draining = pooled.is_retired
            self._changed.notify_all()
        self._metrics.record_load(pooled.name, seconds)
        self._record_memory()
        log.info("loaded %s in %.1f s; its weights take %.2f GB", pooled.name, seconds, sum(memory.values()) / GB)

    def _fail(self, pooled: PooledModel, message: str) -> None:
        with self._changed:
            pooled.fail(message)
            self._changed.notify_all()
        self._metrics.record_failure(pooled.name)
        log.error("%s", message)

    def _record_memory(self) -> None:
        with self._changed:
            in_memory = [(model.name, dict(model.memory)) for model in (*self._loaded(), *self._retired)]
        self._metrics.record_memory(in_memory)

    def _evict_one(self) -> bool:
        """Unload the least recently used model, if there is one. Waits for its jobs."""
        with self._changed:
            waiting = [model for model in self._retired if model.in_flight > 0]
            loaded = sorted(self._loaded(), key=lambda model: (model.in_flight > 0, model.used_at))
            victim = next(iter(waiting or loaded), None)
            if victim is None:
                return False
            victim.is_draining = True
        self._evict(victim)
        return True

    def _evict(self, victim: PooledModel) -> None:
        with self._changed:
            self._changed.wait_for(lambda: victim.in_flight == 0 or self._closed)
        self._unload(victim)

    def _unload(self, pooled: PooledModel) -> None:
        with self._changed:
            if pooled.in_flight or pooled.model is None:
                return
            freed = pooled.needed_bytes
            pooled.unload()
            if pooled in self._retired:
                self._retired.remove(pooled)
            self._changed.notify_all()
        collect_unloaded(unfreeze=pooled.has_replaced_modules)
        self._metrics.record_eviction(pooled.name)
        self._record_memory()
        memory = device_memory(self._loader.device)
        log.info("unloaded %s, which took %.2f GB; %s", pooled.name, freed / GB, memory)


_SMALLER = "set a `dtype` of 2 bytes, raise the limit, or choose a smaller model"


def _causes(error: BaseException) -> tuple[bool, bool]:
    """Return whether an error was caused by a lost device, and whether by a lack of memory."""
    chain = []
    cause: BaseException | None = error
    while cause is not None:
        chain.append(cause)
        cause = cause.__cause__
    return any(map(is_device_lost, chain)), any(map(is_out_of_memory, chain))
