"""Chooses `offload`, `vae_tiling` and `vae_slicing` for a model by the free memory of its device: IMG2IMG_MODE."""

import logging
from typing import Literal

import torch

from img2img.domain.model_config import ModelConfig

from ..devices import GB
from ..errors import StartupError
from ..pipelines.loading.placement import check_offload

log = logging.getLogger(__name__)

MemoryMode = Literal["auto", "speed", "memory"]
# Part of the free memory that weights may take. The rest is for activations.
SHARE = 0.85


def configure_memory(
    config: ModelConfig, mode: MemoryMode, device: str, needed: int, largest: int, free: int | None
) -> ModelConfig:
    """Return the configuration with which a model fits. Keys that the model file sets are kept.

    Args:
        mode: `speed`: nothing is changed. `memory`: as little memory as possible. `auto`: that if the weights do not
            fit.
        device: where the model will be.
        needed: bytes of all weights.
        largest: bytes of the largest part that is used at once.
        free: free bytes of the device; None if they are not known.
    """
    can_offload = torch.device(device).type in ("cuda", "xpu")
    fits = free is None or not can_offload or needed <= SHARE * free
    if mode == "speed" or (mode == "auto" and fits):
        return config
    choice: dict[str, object] = {"vae_tiling": "auto", "vae_slicing": True}
    if can_offload:
        by_preference = ("model", "group") if free is None or largest <= SHARE * free else ("group", "model")
        choice["offload"] = next((one for one in by_preference if _is_possible(config, one, device)), "none")
    choice = {key: value for key, value in choice.items() if key not in config.model_fields_set}
    settings = ", ".join(f"{key} = {value}" for key, value in choice.items())
    why = f"{needed / GB:.1f} GB of weights" + (f", {free / GB:.1f} GB free" if free is not None else "")
    log.info("IMG2IMG_MODE=%s: model %s on %s (%s): %s", mode, config.name, device, why, settings or "no changes")
    return config.model_copy(update=choice)


def _is_possible(config: ModelConfig, offload: str, device: str) -> bool:
    try:
        check_offload(config.model_copy(update={"offload": offload}), torch.device(device))
    except StartupError:
        return False
    return True
