"""Devices of PyTorch: which one a worker uses, its memory, and limits of some of them."""

import os
from collections.abc import Mapping
from typing import Any

import torch

from .errors import StartupError

GB = 1e9
# Devices that the engine runs on.
TYPES = ("cuda", "xpu", "mps", "cpu")


def choose_device(setting: str) -> str:
    """Return the device that `IMG2IMG_DEVICE` names; for `auto`, the accelerator of PyTorch, or the CPU without one.

    Raises:
        StartupError: the name is invalid, or this machine or this build of PyTorch has no such device.
    """
    if setting == "auto":
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return found.type if found is not None and found.type in TYPES else "cpu"
    try:
        device = torch.device(setting)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in TYPES:
        raise StartupError(f"IMG2IMG_DEVICE: {setting!r} is not a device; choose cpu, cuda, cuda:1, xpu, mps or auto")
    if device.type == "cpu":
        return setting
    count = _module(device).device_count() if _module(device).is_available() else 0
    if not count:
        raise StartupError(
            f"IMG2IMG_DEVICE: PyTorch {torch.__version__} finds no {device.type} device; see `img2img doctor`, or set "
            "IMG2IMG_DEVICE=auto"
        )
    if (device.index or 0) >= count:
        raise StartupError(
            f"IMG2IMG_DEVICE: there is no {setting}; PyTorch finds {count} {device.type} device{'s' * (count > 1)}"
        )
    return setting


def describe_device(name: str) -> str:
    """Return a device in words, for the log: its name, and the platform behind `cuda`."""
    device = torch.device(name)
    if device.type == "cuda":
        platform = f"ROCm {torch.version.hip}" if torch.version.hip else f"CUDA {torch.version.cuda}"
        return f"{name} ({torch.cuda.get_device_name(device)}, {platform})"
    if device.type == "xpu":
        return f"{name} ({torch.xpu.get_device_name(device)})"
    if device.type == "mps":
        return f"{name} (Apple Metal)"
    return f"{name} ({torch.get_num_threads()} threads)"


def default_dtype(accelerated: str, device: str) -> str:
    """Return the dtype of a model that names none.

    Args:
        accelerated: dtype on accelerators.
        device: device of the model.
    """
    kind = torch.device(device).type
    return "float32" if kind == "cpu" or why_no_dtype(accelerated, device) else accelerated


def why_no_dtype(dtype: str, device: str) -> str | None:
    """Return why a device cannot compute in a dtype; None if it can."""
    is_old_mps = torch.device(device).type == "mps" and not torch.backends.mps.is_macos_or_newer(14, 0)
    return "bfloat16 on mps needs macOS 14" if dtype == "bfloat16" and is_old_mps else None


def with_index(device: str | torch.device) -> torch.device:
    """Return the device as tensors on it name it: `cuda` is the current CUDA device, such as `cuda:0`."""
    device = torch.device(device)
    if device.type in ("cpu", "mps") or device.index is not None:
        # Tensors are on mps:0.
        return torch.device("mps", 0) if device.type == "mps" else device
    return torch.device(device.type, _module(device).current_device())


def empty_cache(device: torch.device) -> None:
    """Return the free memory that PyTorch keeps for later tensors of a device."""
    if device.type != "cpu":
        _module(device).empty_cache()


def device_memory(name: str) -> Mapping[str, int]:
    """Return the memory of an accelerator in bytes, by kind. Empty for the CPU, and for a device not in use yet.

    Kinds are `allocated` (tensors), `reserved` (by torch), `peak` (most allocated so far; not on mps), `free` and
    `total`.
    """
    device = torch.device(name)
    module = _module(device)
    if device.type == "mps":
        total, reserved = module.recommended_max_memory(), module.driver_allocated_memory()
        return {
            "allocated": module.current_allocated_memory(),
            "reserved": reserved,
            "free": max(0, total - reserved),
            "total": total,
        }
    if device.type not in ("cuda", "xpu") or not module.is_initialized():
        return {}
    free, total = module.mem_get_info(device)
    return {
        "allocated": module.memory_allocated(device),
        "reserved": module.memory_reserved(device),
        "peak": module.max_memory_allocated(device),
        "free": free,
        "total": total,
    }


def memory_in_words(name: str) -> str:
    """Return how much memory a device has."""
    if memory := device_memory(name):
        return f"{name} has {memory['total'] / GB:.1f} GB, {memory['free'] / GB:.1f} GB of it free"
    return f"this machine has {os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / GB:.1f} GB"


def _module(device: torch.device) -> Any:
    return torch.get_device_module(device.type)
