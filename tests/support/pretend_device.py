"""A device that computes on the CPU: its tensors are on `pretend:0`, and cannot be mixed with those of the CPU.

It stands for a GPU in tests of where modules and tensors are. Import it before models are loaded.
"""

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
        return PretendTensor(self.values[index]) if isinstance(index, list) else super().__getitem__(index)

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
    target = kwargs.get("device")
    plain = pytree.tree_map_only(PretendTensor, lambda tensor: tensor.values, (args, kwargs))
    plain_args, plain_kwargs = pytree.tree_map_only(torch.device, lambda _device: torch.device("cpu"), plain)
    output = function(*plain_args, **plain_kwargs)
    if name.endswith("_") and not name.startswith("_"):
        return args[0]
    is_pretend = torch.device(target).type == DEVICE.type if target is not None else pretend
    return pytree.tree_map_only(torch.Tensor, PretendTensor, output) if is_pretend else output
