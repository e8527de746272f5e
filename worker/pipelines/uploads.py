"""Copies from main memory to the device that do not wait for the work that the device still has to do."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch.utils import _pytree as pytree

from ..engine.batching import remember_bytes, tensor_bytes
from ..engine.content import Digest, derived_digest, with_digest

# Devices whose copies from memory that is not pinned have to be waited for.
_WITHOUT_PINNING = ("mps", "xpu")
# Larger tensors are not compared by their content: images.
_MAX_COMPARED_BYTES = 2**16


def upload(tensor: torch.Tensor, device: torch.device, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Return a tensor of main memory on a device. Only copies from pinned memory do not wait.

    Args:
        dtype: dtype of the result; None for that of `tensor`.
    """
    dtype = dtype or tensor.dtype
    if device.type == "cpu":
        return tensor.to(dtype)
    pinned = tensor.pin_memory() if device.type == "cuda" else tensor
    copy = pinned.to(device, non_blocking=device.type not in _WITHOUT_PINNING).to(dtype)
    if not copy.is_floating_point() and copy.nbytes <= _MAX_COMPARED_BYTES:
        # Token ids, by which gates know prompts: reading them back would wait for the device.
        remember_bytes(copy, tensor_bytes(tensor.to(dtype)))
    return copy


class HostTensor(torch.Tensor):
    """A tensor in main memory that stock code can copy to the device without waiting. So can results of it.

    Attributes:
        digest: of its content, if it is an image.
    """

    digest: Digest | None = None

    def to(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return a copy of another dtype or on another device."""
        device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
        plain, digest = self.as_subclass(torch.Tensor), self.digest
        if digest is not None and dtype not in (None, plain.dtype):
            digest = derived_digest(digest, dtype)
        if device is None:
            converted = plain.to(*args, **kwargs).as_subclass(HostTensor)
            converted.digest = digest
            return converted
        if device.type == "cpu" or plain.device.type != "cpu":
            return plain.to(*args, **kwargs)
        uploaded = upload(plain, device, dtype)
        return uploaded if digest is None else with_digest(uploaded, digest)


def on_host(value: Any) -> Any:
    """Return a value whose tensors in main memory are of the class HostTensor."""
    return pytree.tree_map_only(torch.Tensor, _on_host, value)


def _on_host(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.as_subclass(HostTensor) if tensor.device.type == "cpu" else tensor


def from_host(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a function so that it returns tensors of the class HostTensor."""

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return on_host(function(*args, **kwargs))

    return call


def upload_arguments(run: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap the forward of a denoiser: timesteps, which are in main memory, follow the latents to their device."""

    @wraps(run)
    def call(*args: Any, **kwargs: Any) -> Any:
        tensors = (value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor))
        device = next((tensor.device for tensor in tensors if tensor.device.type != "cpu"), None)
        if device is None:
            return run(*args, **kwargs)

        def follow(tensor: torch.Tensor) -> torch.Tensor:
            return upload(tensor, device) if tensor.device.type == "cpu" else tensor

        args, kwargs = pytree.tree_map_only(torch.Tensor, follow, (args, kwargs))
        return run(*args, **kwargs)

    call.uploads_for = run  # type: ignore[attr-defined]
    return call
