"""Settings of malloc and of the garbage collector."""

import ctypes
import gc
import time

M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8  # of glibc's malloc.h
TRIM_INTERVAL_S = 60.0


def configure_malloc() -> None:
    """Let glibc keep freed memory for later tensors instead of returning it to the kernel.

    By default each tensor above 32 MB is a separate mapping, and the kernel clears its pages each time. On two CPU
    cores that took a sixth of the time of a UNet pass of 24 rows and two fifths of a VAE decode of 16 images. Memory
    that no later tensor fits into is returned by `run_malloc_trim`.

    Call it before threads start: it also lets them share one arena, because the arenas of threads are limited to 64 MB.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        # Not glibc.
        return
    for parameter, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1), (M_ARENA_MAX, 1)):
        mallopt(parameter, value)


def freeze_gc() -> None:
    """Exclude all present objects from garbage collection. Call it once the models are loaded.

    The models and their libraries are half a million objects. A full collection of them stops all threads for a quarter
    of a second. Python therefore delays it until there are a quarter as many new objects, perhaps thousands of jobs.
    """
    gc.collect()
    gc.freeze()


def collect(*, unfreeze: bool = False) -> None:
    """Collect garbage, and return the memory of unloaded models to the kernel.

    Args:
        unfreeze: also collect the objects that `freeze_gc` has excluded. That stops all threads for a quarter of a
            second.
    """
    if unfreeze:
        gc.unfreeze()
        freeze_gc()
    trim_malloc()


def trim_malloc() -> None:
    """Collect garbage and return all unused pages to the kernel. Takes about 15 ms for 400 MB."""
    gc.collect()
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    # Only glibc has it.
    if malloc_trim is not None:
        malloc_trim(0)


def run_malloc_trim() -> None:
    """Trim at intervals, forever. Runs on a daemon thread."""
    while True:
        time.sleep(TRIM_INTERVAL_S)
        trim_malloc()
