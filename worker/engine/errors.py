"""Which failures of a module are not the job's: memory ran out, or the device is gone; and what is kept of the rest."""

import traceback
from typing import TypeVar

import torch

Error = TypeVar("Error", bound=BaseException)

# Of releases of torch that have the class: CUDA errors other than a lack of memory. After one, every call fails.
_DEVICE_ERRORS: tuple[type[Exception], ...] = tuple(
    kind for kind in (getattr(torch, "AcceleratorError", None),) if kind is not None
)
# What torch says where it has no class for it: its CPU allocator, and cuBLAS and cuDNN in want of their own workspace.
_NO_MEMORY = ("can't allocate memory", "ALLOC_FAILED", "out of memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether fewer rows may help."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)


def is_device_lost(error: BaseException) -> bool:
    """Whether nothing will work any more in this process: it has to be replaced."""
    return isinstance(error, _DEVICE_ERRORS) and not is_out_of_memory(error)


def without_tensors(error: Error) -> Error:
    """The error, caught by the caller, with the lines that it came through but none of their variables, nor the frame
    of the caller itself: who keeps an error would keep the activations of the call that failed, and other jobs."""
    if error.__traceback__ is not None:
        error.__traceback__ = error.__traceback__.tb_next
    traceback.clear_frames(error.__traceback__)
    return error
