"""How the process keeps its memory."""

import ctypes
import gc
import time
from collections.abc import Mapping

import torch

M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8  # glibc's malloc.h
TRIM_S = 60.0  # between two


def configure_malloc() -> None:
    """Makes glibc give the memory of a freed tensor to the next one, instead of to the kernel and back.

    By default every tensor above 32 MB is a mapping of its own, whose pages the kernel hands out and clears anew each
    time: on two CPU cores that was a sixth of a UNet pass of 24 rows and two fifths of a VAE decode of 16 pictures.
    Call it before threads start: it also makes them share one arena, as those of threads cannot hold more than 64 MB.
    What is freed in pieces that no later tensor fits into would add up for days: see `trim_for_ever`.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # not glibc
        return
    for parameter, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1), (M_ARENA_MAX, 1)):
        mallopt(parameter, value)


def freeze_gc() -> None:
    """Keeps Python's garbage collector from looking at what lives now: call it once models are loaded.

    They and their libraries are half a million objects. To look at all of them stops every thread for a quarter of
    a second, and so the collector waits until a quarter as many have come, which may be thousands of jobs.
    """
    gc.collect()
    gc.freeze()


def trim_malloc() -> None:
    """Collects garbage, such as what errors hold by their frames, and gives the kernel all pages that hold nothing,
    wherever they lie. For 400 MB of them that takes about 15 ms."""
    gc.collect()
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:  # glibc
        malloc_trim(0)


def run_malloc_trim() -> None:
    """For a thread of its own."""
    while True:
        time.sleep(TRIM_S)
        trim_malloc()


def gpu_memory(device: str) -> Mapping[str, int]:
    """Bytes of a CUDA device: of tensors, of what torch keeps, the most of tensors so far, free, in all. Empty where
    the device is none, or not in use yet."""
    if not device.startswith("cuda") or not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return {}
    free, total = torch.cuda.mem_get_info(device)
    return {
        "allocated": torch.cuda.memory_allocated(device),
        "reserved": torch.cuda.memory_reserved(device),
        "peak": torch.cuda.max_memory_allocated(device),
        "free": free,
        "total": total,
    }
