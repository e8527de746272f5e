"""Which failures of a module are not the job's: memory ran out, or the device is gone."""

import torch

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
