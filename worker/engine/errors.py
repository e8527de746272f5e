"""Classification of errors: out of memory, device lost, or a fault of the task itself."""

import traceback
from typing import TypeVar

import torch

Error = TypeVar("Error", bound=BaseException)

# CUDA errors other than a lack of memory, in releases of torch that have the class. Every later call fails too.
_DEVICE_ERRORS: tuple[type[Exception], ...] = tuple(
    kind for kind in (getattr(torch, "AcceleratorError", None),) if kind is not None
)
# Messages of memory errors for which torch has no class: its CPU allocator, cuBLAS and cuDNN.
_OUT_OF_MEMORY = ("can't allocate memory", "ALLOC_FAILED", "out of memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether the call may succeed with fewer rows."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(message in str(error) for message in _OUT_OF_MEMORY)


def is_device_lost(error: BaseException) -> bool:
    """Return whether the device is unusable from now on, so that the process must be replaced."""
    return isinstance(error, _DEVICE_ERRORS) and not is_out_of_memory(error)


def without_tensors(error: Error) -> Error:
    """Return the caught error with its traceback, but without the frame of the caller and without local variables.

    An error that is kept would otherwise keep the activations of the failed call, and other tasks, in memory.
    """
    if error.__traceback__ is not None:
        error.__traceback__ = error.__traceback__.tb_next
    traceback.clear_frames(error.__traceback__)
    return error
