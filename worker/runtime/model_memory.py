"""The memory that models may take."""

from collections.abc import Callable

import torch

from img2img.container_limits import free_memory_bytes, memory_bytes

from ..devices import GB, device_memory
from ..engine.row_memory import MemoryMeter

# Part of a device's memory that stays free for the activations of forward passes.
RESERVE = 0.1


def total_memory(device: str) -> int:
    """Return the bytes of a device."""
    if torch.device(device).type in ("cuda", "xpu"):
        total: int = torch.get_device_module(device).mem_get_info(device)[1]
        return total
    return device_memory(device).get("total") or memory_bytes()


def reader_of(device: str, meter: MemoryMeter | None) -> Callable[[], int] | None:
    """Return a function that returns the free memory of a device; None if it cannot be known."""
    if meter is not None:
        return meter.free
    return free_memory_bytes if torch.device(device).type == "cpu" else None


class MemoryBudget:
    """Decides whether the weights of another model fit.

    Args:
        max_bytes: limit of the weights of all models. None: the free memory of the device, less a reserve.
        free: returns the free memory of the device. None: it is not known, and any model is tried.
        total_bytes: memory of the device.
    """

    def __init__(self, max_bytes: int | None, free: Callable[[], int] | None, total_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._free = free
        self._reserve = RESERVE * total_bytes

    def fits(self, needed: int, loaded: int, freed: int = 0) -> bool:
        """Return whether a model fits.

        Args:
            needed: bytes of its weights.
            loaded: bytes of the models in memory.
            freed: bytes of those that would be unloaded for it.
        """
        if self._max_bytes is not None:
            return needed + loaded - freed <= self._max_bytes
        return self._free is None or needed <= self._free() + freed - self._reserve

    def free_bytes(self) -> int | None:
        """Return the free memory of the device, at most the limit; None if it is not known."""
        free = None if self._free is None else self._free()
        known = [value for value in (free, self._max_bytes) if value is not None]
        return min(known, default=None)

    def why_too_large(self, needed: int) -> str | None:
        """Return why a model cannot fit, even alone; None if it may. Only a limit is certain: memory may be swapped."""
        if self._max_bytes is None or needed <= self._max_bytes:
            return None
        limit = f"IMG2IMG_MODEL_MEMORY allows {self._max_bytes / GB:.1f} GB"
        return f"it needs about {needed / GB:.1f} GB for weights, and {limit}"
