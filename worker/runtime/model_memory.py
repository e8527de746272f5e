"""The memory that models may take."""

from typing import Protocol

import torch

from img2img.container_limits import available_memory_bytes

from ..pipelines.loading.failures import GB

# Part of a device's memory that stays free for the activations of forward passes.
RESERVE = 0.1


class MemoryReader(Protocol):
    """Returns the bytes of a device that are free, and all of them."""

    def __call__(self, device: str) -> tuple[int, int]: ...


def free_memory(device: str) -> tuple[int, int]:
    """Return the bytes of a device that tensors could take now, and all of its bytes.

    On the CPU these are the machine's, or those that the limit of the container leaves.
    """
    if torch.device(device).type != "cuda":
        return available_memory_bytes()
    free, total = torch.cuda.mem_get_info(device)
    # Memory that torch has reserved and that no tensor uses.
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device), total


class MemoryBudget:
    """Decides whether the weights of another model fit.

    Args:
        device: where the models are.
        max_bytes: limit of the weights of all models. None: the free memory of the device, less a reserve.
        read: returns the free and the total memory of the device.
    """

    def __init__(self, device: str, max_bytes: int | None, read: MemoryReader = free_memory) -> None:
        self._device = device
        self._max_bytes = max_bytes
        self._read = read

    def fits(self, needed: int, loaded: int, freed: int = 0) -> bool:
        """Return whether a model fits.

        Args:
            needed: bytes of its weights.
            loaded: bytes of the models in memory.
            freed: bytes of those that would be unloaded for it.
        """
        if self._max_bytes is not None:
            return needed + loaded - freed <= self._max_bytes
        free, total = self._read(self._device)
        return needed <= free + freed - RESERVE * total

    def why_too_large(self, needed: int) -> str | None:
        """Return why a model cannot fit, even alone; None if it may. Only a limit is certain: memory may be swapped."""
        if self._max_bytes is None or needed <= self._max_bytes:
            return None
        limit = f"IMG2IMG_MODEL_MEMORY allows {self._max_bytes / GB:.1f} GB"
        return f"it needs about {needed / GB:.1f} GB for weights, and {limit}"
