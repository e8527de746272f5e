"""The models of a worker and the requests to load them, shared by the threads of a worker."""

import threading
from collections.abc import Collection, Sequence

from ..devices import with_index
from .model_memory import MemoryBudget
from .pooled_model import PooledModel


class PoolState:
    """The models of a pool. Its condition guards all of them, and is notified of every change.

    Args:
        device: where the models are.
        budget: decides how many models fit.
        max_loaded: limit of the number of models in memory.
    """

    def __init__(self, device: str, budget: MemoryBudget, max_loaded: int | None) -> None:
        self.device = str(with_index(device))
        self.changed = threading.Condition()
        self.models: dict[str, PooledModel] = {}  # the defined ones, in their order
        self.retired: list[PooledModel] = []  # those in memory that are no longer defined
        self.requested: list[PooledModel] = []  # to be loaded
        self.is_closed = False
        self.budget = budget
        self._max_loaded = max_loaded

    def cancel_evictions(self) -> None:
        """Let models take jobs again that were to make room for another one, if that is not wanted any more."""
        if not self.requested:
            for model in self.models.values():
                model.is_draining = False

    def loaded(self) -> list[PooledModel]:
        """Return the defined models in memory, those first that should be unloaded first."""
        found = [model for model in self.models.values() if model.model is not None]
        return sorted(found, key=lambda model: (model.in_flight > 0, model.used_at))

    def fits(self, pooled: PooledModel, victims: Sequence[PooledModel] = ()) -> bool:
        """Return whether a model fits beside those in memory, once the victims are unloaded."""
        in_memory = [*self.loaded(), *self.retired]
        if self._max_loaded is not None and len(in_memory) - len(victims) >= self._max_loaded:
            return False
        loaded, freed = (sum(model.bytes_on(self.device) for model in models) for models in (in_memory, victims))
        return self.budget.fits(pooled.bytes_on(self.device), loaded, freed)

    def victims(self, pooled: PooledModel, keep: Collection[str]) -> list[PooledModel] | None:
        """Return the models to unload for another one; None if those outside of `keep` take too little memory."""
        loaded = self.loaded()
        candidates = [model for model in loaded if model.name not in keep]
        victims: list[PooledModel] = []
        while not self.fits(pooled, victims):
            if not candidates:
                # Alone it is tried in any case: it may fit, and if not, its error says so.
                return victims if len(victims) == len(loaded) else None
            victims.append(candidates.pop(0))
        return victims
