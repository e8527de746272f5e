"""Measures the memory of modules."""

from collections.abc import Hashable, Iterable

import torch

from .loading.weightless import META


def tensor_sizes(modules: Iterable[torch.nn.Module]) -> dict[Hashable, tuple[str, int]]:
    """Return (device, bytes) of the weights and buffers of modules. Tensors that share memory count once."""
    sizes: dict[Hashable, tuple[str, int]] = {}
    for module in modules:
        for tensor in (*module.parameters(), *module.buffers()):
            device = tensor.device
            if device.type == META:
                sizes[id(tensor)] = str(device), tensor.nbytes
            else:
                storage = tensor.untyped_storage()
                sizes[device, storage.data_ptr()] = str(device), storage.nbytes()
    return sizes


def memory_by_device(modules: Iterable[torch.nn.Module]) -> dict[str, int]:
    """Return the bytes of the weights and buffers of modules by device."""
    totals: dict[str, int] = {}
    for device, size in tensor_sizes(modules).values():
        totals[device] = totals.get(device, 0) + size
    return totals
