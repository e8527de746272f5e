"""A device that computes on the CPU: its tensors are on `pretend:0`, and cannot be mixed with those of the CPU.

It stands for a GPU in tests of where modules and tensors are, and counts the operations for which a program would wait
until the GPU has done all work before. Import it before models are loaded.
"""

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend


class _Backend:
    """The module `torch.pretend`."""

    def is_available(self) -> bool:
        return True

    def is_initialized(self) -> bool:
        return True

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        pass

    def current_device(self) -> int:
        return 0

    def device_count(self) -> int:
        return 1

    def empty_cache(self) -> None:
        pass


_setup_privateuseone_for_python_backend("pretend", _Backend())
DEVICE = torch.device("pretend", 0)


class PretendTensor(torch.Tensor):
    """A tensor on the pretend device, with a tensor of the CPU that has its values."""

    values: torch.Tensor

    @staticmethod
    def __new__(cls, values: torch.Tensor) -> "PretendTensor":
        wrapper = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            values.size(),
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            device=DEVICE,
        )
        wrapper.values = values
        return wrapper

    def __getitem__(self, index: Any) -> torch.Tensor:
        """Return a part. An index that is a list never reaches the dispatcher."""
        if not isinstance(index, list):
            return super().__getitem__(index)
        _count("index that is copied to the device")
        return PretendTensor(self.values[index])

    @classmethod
    def __torch_dispatch__(cls, function: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _call(function, args, kwargs or {})


class _PretendMode(TorchDispatchMode):
    def __torch_dispatch__(self, function: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _call(function, args, kwargs or {})


@contextmanager
def pretend_device() -> Iterator[torch.device]:
    """Let this thread use the device."""
    with _PretendMode():
        yield DEVICE


# By what waits, and the last lines of diffusers and of this project that led to it.
_syncs: Counter[tuple[str, str]] | None = None
# Operators whose result is in main memory, or whose shape depends on values.
_READS = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select", "_unique2", "unique_dim")


@contextmanager
def counting_syncs() -> Iterator[Counter[tuple[str, str]]]:
    """Count the operations for which a program waits for the device.

    Copies to the device with `non_blocking` do not count: `upload` makes them from pinned memory.
    """
    global _syncs
    _syncs = Counter()
    try:
        yield _syncs
    finally:
        _syncs = None


def _count(kind: str) -> None:
    if _syncs is None:
        return
    frame, lines = sys._getframe(1), []
    while frame is not None and len(lines) < 3:
        name = frame.f_code.co_filename
        if any(part in name for part in ("/diffusers/", "/transformers/", "/worker/")):
            lines.append(f"{'/'.join(name.split('/')[-2:])}:{frame.f_lineno}")
        frame = frame.f_back  # type: ignore[assignment]
    _syncs[kind, " < ".join(lines)] += 1


def _wait_of(name: str, args: Any, kwargs: Any) -> str | None:
    """Return why a program waits in this operator, or None."""
    is_pretend = [isinstance(arg, PretendTensor) for arg in args]
    if name in _READS:
        return f"{name} reads a value" if any(is_pretend) else None
    if name == "index" and is_pretend[0]:
        indices = [index for index in args[1] if index is not None]
        if any(index.dtype in (torch.bool, torch.uint8) for index in indices):
            return "index of booleans"
        return None if all(isinstance(index, PretendTensor) for index in indices) else "index that is copied"
    if name == "_to_copy" and kwargs.get("device") is not None:
        to_pretend = torch.device(kwargs["device"]).type == DEVICE.type
        if is_pretend[0] and not to_pretend:
            return "copy to main memory"
        return "copy to the device" if to_pretend and not is_pretend[0] and not kwargs.get("non_blocking") else None
    if name == "copy_" and is_pretend[0] != is_pretend[1]:
        return "copy between devices"
    return None


def _call(function: Any, args: Any, kwargs: Any) -> Any:
    """Run an operator on the values of its arguments. Raises RuntimeError if they are on different devices."""
    leaves = pytree.tree_leaves((args, kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    name = function._schema.name.partition("::")[2]
    pretend = any(isinstance(tensor, PretendTensor) for tensor in tensors)
    # Tensors without dimensions, copies and indices may be of the CPU, as for CUDA.
    mixed = any(tensor.dim() and not isinstance(tensor, PretendTensor) for tensor in tensors)
    if name == "_has_compatible_shallow_copy_type" and pretend and mixed:
        return False
    if pretend and mixed and name not in ("copy_", "_to_copy", "index", "index_put_", "index_put"):
        raise RuntimeError(f"{name}: expected all tensors to be on the same device")
    if _syncs is not None and (wait := _wait_of(name, args, kwargs)):
        _count(wait)
    target = kwargs.get("device")
    plain = pytree.tree_map_only(PretendTensor, lambda tensor: tensor.values, (args, kwargs))
    plain_args, plain_kwargs = pytree.tree_map_only(torch.device, lambda _device: torch.device("cpu"), plain)
    output = function(*plain_args, **plain_kwargs)
    if name.endswith("_") and not name.startswith("_"):
        return args[0]
    is_pretend = torch.device(target).type == DEVICE.type if target is not None else pretend
    return pytree.tree_map_only(torch.Tensor, PretendTensor, output) if is_pretend else output
