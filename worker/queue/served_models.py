"""The interface of the models of a worker."""

from collections.abc import Collection, Mapping
from typing import Any, Protocol

from img2img.domain.model_card import ModelCard
from img2img.domain.model_status import ModelStatus


class ModelLease(Protocol):
    """A use of a loaded model by one job. The model stays in memory until it is released."""

    model: Any

    def release(self, *, used: bool = True) -> None:
        """End the use.

        Args:
            used: whether there was a job.
        """


class ServedModels(Protocol):
    """The models that a worker serves, by name. Methods return at once."""

    @property
    def cards(self) -> list[ModelCard]:
        """The cards of the models whose card is known."""

    @property
    def announced_cards(self) -> list[ModelCard]:
        """The cards of the models that take further jobs."""

    def statuses(self) -> Mapping[str, ModelStatus]:
        """Return the states of all models."""

    def lease(self, name: str) -> ModelLease | None:
        """Return a lease on a model for one job; None if it is not loaded or about to be unloaded."""

    def turn_s(self, name: str) -> tuple[float, float]:
        """Return for how many seconds a model has been loaded, and how long it took to load."""

    def needs_eviction(self, name: str) -> bool:
        """Return whether another model would have to be unloaded for this one."""

    def can_load(self, name: str, keep: Collection[str] = ()) -> bool:
        """Return whether `request` would accept a model now."""

    def request(self, name: str, keep: Collection[str] = ()) -> bool:
        """Load a model in the background, in place of others that are not in `keep`. Return whether it begins."""
