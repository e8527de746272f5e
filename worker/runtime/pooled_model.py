"""One model of the pool, with its state."""

import time
from dataclasses import dataclass, field

from img2img.domain.model_card import ModelCard
from img2img.domain.model_config import ModelConfig
from img2img.domain.model_status import ModelState, ModelStatus

from ..pipelines.loading.weightless import WeightFiles
from ..pipelines.model import Model, ModelDescription

# Pause before a model that could not be loaded is tried again: the first one, and the longest. It doubles each time.
RETRY_S, MAX_RETRY_S = 30.0, 600.0


@dataclass(eq=False)
class PooledModel:
    """A model with one configuration. The pool's lock guards all fields."""

    config: ModelConfig
    card: ModelCard | None = None
    state: ModelState = ModelState.UNLOADED
    error: str | None = None
    disk_bytes: int | None = None
    # By device: measured while it is loaded, and the last measurement afterwards.
    memory: dict[str, int] = field(default_factory=dict)
    # Size of the weights without having loaded them.
    expected_bytes: int = 0
    # Size of the largest part of the weights that is used at once.
    largest_bytes: int = 0
    files: WeightFiles | None = None
    model: Model | None = None
    in_flight: int = 0
    # Takes no new jobs, because it is to be unloaded.
    is_draining: bool = False
    # No longer defined: it was removed, or has another configuration now.
    is_retired: bool = False
    # By the monotonic clock.
    used_at: float = 0.0
    loaded_at: float = 0.0
    retry_at: float = 0.0
    load_s: float = 0.0
    failures: int = 0
    # Whether the reason of the failure may pass without a change of the settings.
    may_pass: bool = False
    # The same with other LoRAs, which are still to be loaded.
    next_config: ModelConfig | None = None
    # Whether LoRAs are being replaced.
    is_changing: bool = False
    # Whether its card is that of the LoRAs before.
    is_stale: bool = False
    # Whether LoRAs were replaced: the modules that carried them refer to the weights.
    has_replaced_modules: bool = False

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def memory_bytes(self) -> int:
        """Memory of the weights: measured, or before the first load as they will be."""
        return sum(self.memory.values()) or self.expected_bytes

    def bytes_on(self, device: str) -> int:
        """Return the part of the memory that is on a device. Offloaded weights are there only while they are used."""
        if self.memory:
            return self.memory.get(device, 0)
        return self.expected_bytes if self.config.offload == "none" else 0

    @property
    def wanted_config(self) -> ModelConfig:
        """The configuration that was defined last."""
        return self.next_config or self.config

    @property
    def can_change_loras(self) -> bool:
        """Whether LoRAs can be replaced in the loaded model. Hooks of offloaded weights are made when it is loaded."""
        return self.model is None or not self.model.is_offloaded

    @property
    def needs_description(self) -> bool:
        """Whether the card is unknown, and was not tried a short time ago without success."""
        if self.card is not None and not self.is_stale:
            return False
        return self.state is not ModelState.FAILED or time.monotonic() >= self.retry_at

    @property
    def can_be_loaded(self) -> bool:
        """Whether the model is not in memory, and was not tried a short time ago without success."""
        is_absent = self.state in (ModelState.UNLOADED, ModelState.FAILED)
        return self.card is not None and is_absent and time.monotonic() >= self.retry_at

    def describe(self, description: ModelDescription) -> None:
        """Set card and size."""
        self.card, self.is_stale = description.card, False
        self.disk_bytes, self.expected_bytes = description.disk_bytes, description.memory_bytes
        self.largest_bytes = description.largest_bytes
        if self.state is ModelState.FAILED:
            self.state, self.error = ModelState.UNLOADED, None

    def begin(self) -> None:
        """Set the state to loading."""
        self.state, self.error = ModelState.LOADING, None
        self.files = WeightFiles(self.disk_bytes)

    def succeed(self, model: Model, memory: dict[str, int], load_s: float) -> None:
        """Set the state to loaded."""
        self.model, self.card, self.memory, self.load_s = model, model.card, memory, load_s
        if self.files is not None:
            self.disk_bytes = self.files.size
        self.state, self.files, self.failures = ModelState.LOADED, None, 0
        self.loaded_at = self.used_at = time.monotonic()
        self.is_draining = self.is_retired

    def fail(self, error: str, *, may_pass: bool = False) -> None:
        """Set the state to failed."""
        self.state, self.error, self.files = ModelState.FAILED, error, None
        self.may_pass = may_pass
        self.retry_at = time.monotonic() + min(RETRY_S * 2**self.failures, MAX_RETRY_S)
        self.failures += 1

    def detach(self) -> Model | None:
        """Return the weights, if they are in memory, and set the state to unloaded. No job may be using them."""
        model, self.model = self.model, None
        self.is_draining = False
        if self.state is ModelState.LOADED:
            self.state = ModelState.UNLOADED
        return model

    def status(self) -> ModelStatus:
        """Return the state for clients."""
        return ModelStatus(
            state=self.state,
            percent=self.files.percent if self.files is not None else None,
            disk_bytes=self.disk_bytes,
            memory_bytes=self.memory_bytes or None,
            batching=self.model.batching if self.model is not None else {},
            error=self.error,
            changing=self.next_config is not None
            or self.is_changing
            or (self.is_stale and self.state is not ModelState.FAILED),
        )
