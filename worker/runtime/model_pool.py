"""The models of a worker: loaded when jobs need them, unloaded when their memory is needed, changed while jobs run."""

import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping

from img2img.domain.model_card import ModelCard
from img2img.domain.model_config import ModelConfig
from img2img.domain.model_status import ModelState, ModelStatus

from ..errors import HubUnavailable, StartupError
from ..pipelines.model import Model
from .model_loader import ModelLoader
from .model_memory import MemoryBudget
from .pool_metrics import PoolMetrics
from .pool_state import PoolState
from .pool_thread import PoolThread, dismantle
from .pooled_model import PooledModel

log = logging.getLogger(__name__)

# Longest time without a check of the engine, while the start waits for a model.
CHECK_S = 0.2
# Longest time that the start waits for the descriptions of models that are not loaded.
DESCRIPTIONS_S = 30.0


def _is_kept(old: PooledModel, config: ModelConfig) -> bool:
    """Return whether a model need not be loaded again for a configuration: an equal one, or one with other LoRAs."""
    before = old.wanted_config
    return before == config or (old.can_change_loras and before.model_copy(update={"loras": config.loras}) == config)


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

    Args:
        loader: describes and loads one model.
        budget: decides how many models fit.
        max_loaded: limit of the number of models in memory.
        metrics: counts loads and evictions.
    """

    def __init__(
        self,
        loader: ModelLoader,
        budget: MemoryBudget,
        *,
        max_loaded: int | None = None,
        metrics: PoolMetrics | None = None,
    ) -> None:
        self._state = PoolState(loader.device, budget, max_loaded)
        self._changed = self._state.changed
        self._thread = PoolThread(self._state, loader, metrics or PoolMetrics())
        self._finishing: frozenset[str] = frozenset()

    def define(self, configs: Mapping[str, ModelConfig], finishing: Collection[str] = ()) -> None:
        """Set the models that the worker serves, by name: at the start, and at any later time. Returns at once.

        New models are described on the pool's thread, and loaded when jobs need them. Removed ones take no new jobs,
        and are unloaded when their running jobs have ended. For changed ones, new jobs get the new configuration, and
        running jobs keep the old model. A model that differs only in its LoRAs stays loaded, unless it is offloaded.

        A configuration that cannot be used makes the model `failed`.

        Args:
            configs: all models, by name.
            finishing: names of models that only run the jobs that wait already, and are not announced.
        """
        with self._changed:
            self._finishing = frozenset(finishing)
            before, after = self._state.models, {}
            for name, config in configs.items():
                old = before.get(name)
                if old is not None and _is_kept(old, config):
                    old.next_config = config if config != old.config else None
                    after[name] = old
                else:
                    after[name] = PooledModel(config)
            self._state.models = after
            for name, old in before.items():
                if after.get(name) is not old:
                    self._retire(old, after.get(name))
            self._state.cancel_evictions()
            self._changed.notify_all()

    def _retire(self, old: PooledModel, successor: PooledModel | None) -> None:
        log.info("model %s was %s", old.name, "removed" if successor is None else "changed")
        old.is_retired = old.is_draining = True
        if old.model is not None:
            self._state.retired.append(old)
        if old in self._state.requested:
            self._state.requested.remove(old)
        # A model in use is loaded again with its new configuration, without waiting for a job.
        if successor is not None and old.state in (ModelState.LOADED, ModelState.LOADING):
            self._request(successor)

    def _request(self, pooled: PooledModel) -> None:
        pooled.begin()
        self._state.requested.append(pooled)
        self._changed.notify_all()

    @property
    def cards(self) -> list[ModelCard]:
        """The cards of the models whose card is known."""
        with self._changed:
            return [model.card for model in self._state.models.values() if model.card is not None]

    @property
    def announced_cards(self) -> list[ModelCard]:
        """The cards of the models that take further jobs."""
        return [card for card in self.cards if card.name not in self._finishing]

    def statuses(self) -> dict[str, ModelStatus]:
        """Return the states of all models, by name."""
        with self._changed:
            return {name: model.status() for name, model in self._state.models.items()}

    def percent(self) -> int | None:
        """Return which part of the weights of the model that is being loaded was read; None without one."""
        with self._changed:
            return next((m.files.percent for m in self._state.models.values() if m.files is not None), None)

    def lease(self, name: str) -> ModelLease | None:
        """Return a lease on a model for one job; None if it is not loaded or about to be unloaded."""
        with self._changed:
            pooled = self._state.models.get(name)
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
            pooled = self._state.models.get(name)
            return (0.0, 0.0) if pooled is None else (time.monotonic() - pooled.loaded_at, pooled.load_s)

    def needs_eviction(self, name: str) -> bool:
        """Return whether another model would have to be unloaded for this one."""
        with self._changed:
            pooled = self._state.models.get(name)
            return pooled is not None and not self._state.fits(pooled)

    def can_load(self, name: str, keep: Collection[str] = ()) -> bool:
        """Return whether `request` would accept a model now."""
        with self._changed:
            return self._victims(name, keep) is not None

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
            self._request(self._state.models[name])
            return True

    def _victims(self, name: str, keep: Collection[str]) -> list[PooledModel] | None:
        """Return the models to unload for another one; None if it cannot be loaded now."""
        pooled = self._state.models.get(name)
        retired = self._state.retired
        if pooled is None or not pooled.can_be_loaded or self._state.requested:
            return None
        if any(model.in_flight == 0 for model in retired):
            # They are about to be unloaded.
            return None
        victims = self._state.victims(pooled, keep)
        # A removed model with a long job blocks only loads that need its memory.
        return None if victims is not None and retired and not self._state.fits(pooled, victims) else victims

    def start(
        self,
        names: Iterable[str],
        check: Callable[[], None] = lambda: None,
        mend: Callable[[], bool] = lambda: False,
    ) -> None:
        """Start the pool's thread, and load models.

        Args:
            names: the models to load. If none of them can be loaded, the first other one that can be.
            check: called often; raises if the engine has died.
            mend: called when a model cannot be loaded; returns whether it has changed its definition.

        Raises:
            StartupError: no model can be served; HubUnavailable if the reason may pass.
        """
        self._thread.start()
        if not self._state.models:
            # Requests have removed all of them, and may add others.
            return
        names = list(names)
        loaded = [self._load_now(name, check, mend) for name in names]
        if names and not any(loaded):
            others = [name for name in self._state.models if name not in names]
            if not any(self._load_now(name, check, mend) for name in others):
                raise self._start_error()
        # Requests can then name all models when the worker takes its first job.
        self._wait(lambda: not any(m.needs_description for m in self._state.models.values()), check, DESCRIPTIONS_S)
        if not self.cards:
            raise self._start_error()
        for error in self._errors():
            log.error("%s", error)
        self._thread.logs_failures = True

    def _load_now(self, name: str, check: Callable[[], None], mend: Callable[[], bool]) -> bool:
        """Load a model, and return whether that was possible."""
        while (pooled := self._try_to_load(name, check)).state is not ModelState.LOADED:
            if pooled.may_pass or not mend():
                return False
        return True

    def _try_to_load(self, name: str, check: Callable[[], None]) -> PooledModel:
        pooled = self._state.models[name]
        # Its definition may have changed.
        self._wait(lambda: pooled.next_config is None, check)
        with self._changed:
            self._request(pooled)
        self._wait(lambda: pooled.state is not ModelState.LOADING, check)
        return pooled

    def _errors(self) -> list[str]:
        return [status.error for status in self.statuses().values() if status.error]

    def _start_error(self) -> StartupError:
        """Return why no model can be served."""
        failed = next((model for model in self._state.models.values() if model.error), None)
        if failed is None:
            return StartupError(f"no model was described within {DESCRIPTIONS_S:g} s")
        return (HubUnavailable if failed.may_pass else StartupError)(str(failed.error))

    def _wait(self, condition: Callable[[], bool], check: Callable[[], None], timeout_s: float | None = None) -> None:
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        with self._changed:
            while not self._changed.wait_for(condition, CHECK_S):
                self.check()
                check()
                if deadline is not None and time.monotonic() > deadline:
                    return

    def check(self) -> None:
        """Raise WorkerDied if the device has failed or the pool's thread has died."""
        self._thread.check()

    def unload(self) -> None:
        """Unload all models. The engine has ended."""
        with self._changed:
            models = [pooled.detach() for pooled in (*self._state.loaded(), *self._state.retired)]
        for model in models:
            dismantle(model)

    def close(self) -> None:
        """End the pool's thread after its present work."""
        with self._changed:
            self._state.is_closed = True
            self._changed.notify_all()
