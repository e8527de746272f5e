"""Measures the memory of calls and the free memory: of a CUDA or XPU device, or of the machine."""

import ctypes
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from img2img.container_limits import free_memory_bytes

from ..engine.row_memory import MemoryMeter
from .allocator import trim_malloc

CLEAR_REFS = Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # of proc(5)
STATM, STATUS = Path("/proc/self/statm"), Path("/proc/self/status")


def memory_meter(device: str) -> MemoryMeter | None:
    """Return the meter of a device; None where memory cannot be measured."""
    if torch.device(device).type in ("cuda", "xpu"):
        return DeviceMeter(device)
    if torch.device(device).type == "cpu" and os.access(CLEAR_REFS, os.W_OK):
        return CpuMeter()
    return None


class DeviceMeter:
    """Reads the statistics of torch's allocator, which does not wait for the device."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._torch: Any = torch.get_device_module(device)

    def measure(self, run: Callable[[], Any]) -> tuple[Any, int]:
        """See MemoryMeter."""
        self._torch.reset_peak_memory_stats(self._device)
        before = self._torch.memory_allocated(self._device)
        output = run()
        return output, self._torch.max_memory_allocated(self._device) - before

    def free(self) -> int:
        """See MemoryMeter. Memory that torch keeps for later tensors is free."""
        free, _ = self._torch.mem_get_info(self._device)
        kept: int = self._torch.memory_reserved(self._device) - self._torch.memory_allocated(self._device)
        return int(free) + kept


class CpuMeter:
    """Reads the resident bytes of this process from the Linux kernel."""

    def measure(self, run: Callable[[], Any]) -> tuple[Any, int]:
        """See MemoryMeter."""
        # Otherwise the call would use memory that is resident but free, see `configure_malloc`.
        trim_malloc()
        before = int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        CLEAR_REFS.write_text(RESET_PEAK)
        output = run()
        fields = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
        return output, int(fields["VmHWM"].split()[0]) * 1024 - before

    def free(self) -> int:
        """See MemoryMeter. Memory that malloc keeps for later tensors is free."""
        return free_memory_bytes() + _malloc_free_bytes()


class _Mallinfo2(ctypes.Structure):
    """`struct mallinfo2` of glibc's malloc.h."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


def _malloc_free_bytes() -> int:
    """Return the bytes that malloc has free; 0 without glibc 2.33."""
    mallinfo2 = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if mallinfo2 is None:
        return 0
    mallinfo2.restype = _Mallinfo2
    return int(mallinfo2().fordblks)
