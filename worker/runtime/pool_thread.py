"""The thread of a model pool: describes, loads and unloads models, one after another."""

import logging
import threading
import time
from collections.abc import Callable

import torch

from img2img.domain.model_status import ModelState

from ..devices import GB, empty_cache, memory_in_words, with_index
from ..engine.errors import is_device_lost, is_out_of_memory
from ..errors import StartupError, WorkerDied, may_pass
from ..pipelines.memory import memory_by_device
from ..pipelines.model import Model
from .allocator import collect, freeze_gc
from .model_loader import ModelLoader
from .pool_metrics import PoolMetrics
from .pool_state import PoolState
from .pooled_model import RETRY_S, PooledModel

log = logging.getLogger(__name__)

SMALLER = "raise the limit, set a `dtype` of 2 bytes, or choose a smaller model"


class PoolThread:
    """Does the work that the state of a pool requires.

    Args:
        state: the models.
        loader: describes and loads one model.
        metrics: counts loads and evictions.
    """

    def __init__(self, state: PoolState, loader: ModelLoader, metrics: PoolMetrics) -> None:
        self._state = state
        self._changed = state.changed
        self._loader = loader
        self._metrics = metrics
        # At the start they are logged at its end, unless they are the reason why it fails.
        self.logs_failures = False
        self._lost: str | None = None  # why the device cannot be used any more
        self._thread = threading.Thread(target=self._run, name="models", daemon=True)

    def start(self) -> None:
        """Start the thread. It ends when the state is closed."""
        self._thread.start()

    def check(self) -> None:
        """Raise WorkerDied if the device has failed or the thread has died."""
        if self._lost is not None:
            raise WorkerDied(self._lost)
        if not self._thread.is_alive() and not self._state.is_closed:
            raise WorkerDied("the thread that loads models has died")

    def _run(self) -> None:
        # More OpenMP threads would compete with those of the engine.
        torch.set_num_threads(1)
        while (work := self._next()) is not None:
            work()

    def _next(self) -> Callable[[], object] | None:
        """Wait for work and return it; None if closed."""
        state = self._state
        with self._changed:
            while not state.is_closed:
                models = state.models.values()
                unused = next((model for model in state.retired if model.in_flight == 0), None)
                if unused is not None:
                    return lambda: self._unload(unused)
                changed = next((m for m in models if m.next_config and m.state is not ModelState.LOADING), None)
                if changed is not None:
                    return lambda: self._change_loras(changed)
                if state.requested:
                    requested = state.requested[0]
                    return lambda: self._load(requested)
                unknown = next((model for model in models if model.needs_description), None)
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
            self._fail(pooled, str(error), may_pass=may_pass(error))
            return False
        with self._changed:
            pooled.describe(description)
            self._changed.notify_all()
        return True

    def _load(self, pooled: PooledModel) -> None:
        """Load a requested model, once the models that make room for it have no jobs any more."""
        self._loader.report(f"loading {pooled.name} on {self._loader.device}")
        try:
            if pooled.card is not None or self._describe(pooled):
                with self._changed:
                    pooled.begin()
                self._make_room(pooled)
                self._load_weights(pooled)
        finally:
            with self._changed:
                if pooled in self._state.requested:
                    self._state.requested.remove(pooled)
                self._state.cancel_evictions()
                if pooled.is_retired and pooled.model is not None and pooled not in self._state.retired:
                    self._state.retired.append(pooled)
                self._changed.notify_all()

    def _make_room(self, pooled: PooledModel) -> None:
        with self._changed:
            draining = [model for model in self._state.loaded() if model.is_draining]
        for victim in draining:
            self._evict(victim)
        # At the start, and after a change of the configuration, no victims were chosen.
        while not pooled.is_retired and not self._has_room(pooled) and self._evict_one():
            pass

    def _has_room(self, pooled: PooledModel) -> bool:
        with self._changed:
            return self._state.fits(pooled)

    def _load_weights(self, pooled: PooledModel) -> None:
        config = self._loader.with_mode(pooled.config, pooled.expected_bytes, pooled.largest_bytes, self._state.budget)
        needed = pooled.bytes_on(self._state.device) if config.offload == "none" else 0
        if reason := self._state.budget.why_too_large(needed):
            self._fail(pooled, f"cannot load model {pooled.name!r}: {reason}; {SMALLER}")
            return
        while not pooled.is_retired:
            started = time.monotonic()
            try:
                assert pooled.files is not None
                model = self._loader.load(config, pooled.files)
            except StartupError as error:
                message, is_lost, lacks_memory = str(error), *_causes(error)
            else:
                freeze_gc()
                self._succeed(pooled, model, time.monotonic() - started)
                return
            # Outside of the handler, where the error no longer keeps the frames with the weights.
            self._free()
            if is_lost:
                self._lost = message
            if is_lost or not lacks_memory or not self._evict_one():
                self._fail(pooled, message)
                return
            log.warning("model %s did not fit; trying again", pooled.name)
            with self._changed:
                pooled.begin()

    def _succeed(self, pooled: PooledModel, model: Model, seconds: float) -> None:
        memory = memory_by_device(model.modules())
        with self._changed:
            pooled.succeed(model, memory, seconds)
            self._changed.notify_all()
        self._metrics.record_load(pooled.name, seconds)
        self._record_memory()
        log.info("loaded %s in %.1f s; its weights take %.2f GB", pooled.name, seconds, sum(memory.values()) / GB)

    def _fail(self, pooled: PooledModel, message: str, *, may_pass: bool = False) -> None:
        with self._changed:
            pooled.fail(message, may_pass=may_pass)
            self._changed.notify_all()
        self._metrics.record_failure(pooled.name)
        if self.logs_failures:
            log.error("%s", message)

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
            pooled.has_replaced_modules = pooled.is_changing = True
        try:
            self._loader.set_loras(model, config)
        except StartupError as error:
            log.error("%s; it keeps the LoRAs that it had", error)
            with self._changed:
                pooled.error, pooled.is_changing = str(error), False
            return
        with self._changed:
            pooled.card, pooled.is_changing = model.card, False
            pooled.memory = memory_by_device(model.modules())
            self._changed.notify_all()
        self._record_memory()

    def _evict_one(self) -> bool:
        """Unload the least recently used model, if there is one. Waits for its jobs."""
        with self._changed:
            victim = next(iter([*self._state.retired, *self._state.loaded()]), None)
            if victim is None:
                return False
            victim.is_draining = True
        self._evict(victim)
        return True

    def _evict(self, victim: PooledModel) -> None:
        with self._changed:
            # It is kept if the model that needs its memory is removed meanwhile.
            self._changed.wait_for(lambda: victim.in_flight == 0 or not victim.is_draining or self._state.is_closed)
            if not victim.is_draining:
                return
        self._unload(victim)

    def _unload(self, pooled: PooledModel) -> None:
        with self._changed:
            if pooled.in_flight or pooled.model is None:
                return
            model = pooled.detach()
            if pooled in self._state.retired:
                self._state.retired.remove(pooled)
            self._changed.notify_all()
        # Without the lock, because it takes some time.
        dismantle(model)
        del model
        self._free(unfreeze=pooled.has_replaced_modules)
        self._metrics.record_eviction(pooled.name)
        self._record_memory()
        memory = memory_in_words(self._loader.device)
        log.info("unloaded %s, which took %.2f GB; %s", pooled.name, pooled.memory_bytes / GB, memory)

    def _free(self, *, unfreeze: bool = False) -> None:
        """Return the memory of unloaded models to the system. See `collect`."""
        collect(unfreeze=unfreeze)
        empty_cache(with_index(self._loader.device))

    def _record_memory(self) -> None:
        with self._changed:
            in_memory = [(m.name, dict(m.memory)) for m in (*self._state.loaded(), *self._state.retired)]
        self._metrics.record_memory(in_memory)


def dismantle(model: Model | None) -> None:
    """End what a model has running, and drop the references within it that keep its weights in memory."""
    if model is not None:
        model.close()
        model.dismantle()


def _causes(error: BaseException) -> tuple[bool, bool]:
    """Return whether an error was caused by a lost device, and whether by a lack of memory."""
    chain = []
    cause: BaseException | None = error
    while cause is not None:
        chain.append(cause)
        cause = cause.__cause__
    return any(map(is_device_lost, chain)), any(map(is_out_of_memory, chain))
