"""Models that are always loaded, for workers without a pool."""

from collections.abc import Collection, Mapping
from typing import Any

from img2img.domain.model_status import ModelState, ModelStatus


class FixedLease:
    """Counts the leases that are not released."""

    def __init__(self, models: "FixedModels", model: Any) -> None:
        self.model = model
        self._models: FixedModels | None = models
        models.leases += 1

    def release(self, *, used: bool = True) -> None:
        del used
        if self._models is not None:
            self._models.leases -= 1
            self._models = None


class FixedModels:
    """Serves some models by name, each an object with a `card`."""

    def __init__(self, models: Mapping[str, Any]) -> None:
        self._models = models
        self.leases = 0

    @property
    def cards(self) -> list[Any]:
        return [model.card for model in self._models.values()]

    @property
    def announced_cards(self) -> list[Any]:
        return self.cards

    def statuses(self) -> dict[str, ModelStatus]:
        return {name: ModelStatus(state=ModelState.LOADED) for name in self._models}

    def lease(self, name: str) -> FixedLease:
        return FixedLease(self, self._models[name])

    def turn_s(self, name: str) -> tuple[float, float]:
        return 0.0, 0.0

    def needs_eviction(self, name: str) -> bool:
        return False

    def can_load(self, name: str, keep: Collection[str] = ()) -> bool:
        return False

    def request(self, name: str, keep: Collection[str] = ()) -> bool:
        return False
