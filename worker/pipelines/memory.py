"""Measures the memory of modules."""

from collections.abc import Hashable, Iterable, Iterator

import torch

from .loading.weightless import META


def tensor_sizes(modules: Iterable[torch.nn.Module]) -> dict[Hashable, tuple[str, int]]:
    """Return (device, bytes) of the weights and buffers of modules. Tensors that share memory count once."""
    sizes: dict[Hashable, tuple[str, int]] = {}
    for module in modules:
        for weight in (*module.parameters(), *module.buffers()):
            for tensor in _plain(weight):
                device = tensor.device
                if device.type == META:
                    sizes[id(tensor)] = str(device), tensor.nbytes
                else:
                    storage = tensor.untyped_storage()
                    sizes[device, storage.data_ptr()] = str(device), storage.nbytes()
    return sizes


def _plain(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield the tensors that a quantised weight consists of: values, scales and the like."""
    if not hasattr(tensor, "__tensor_flatten__"):
        yield tensor
        return
    for name in tensor.__tensor_flatten__()[0]:
        yield from _plain(getattr(tensor, name))


def memory_by_device(modules: Iterable[torch.nn.Module]) -> dict[str, int]:
    """Return the bytes of the weights and buffers of modules by device. Weights that are on disk do not count."""
    totals: dict[str, int] = {}
    for device, size in tensor_sizes(modules).values():
        if device != META:
            totals[device] = totals.get(device, 0) + size
    return totals
