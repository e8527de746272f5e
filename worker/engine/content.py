"""Digests of tensors, by which gates know equal arguments."""

from collections.abc import Callable
from functools import cache
from hashlib import blake2b
from typing import Any
from weakref import ref

import torch

from .batching import has_known_bytes, tensor_bytes

# Makes a digest when it is first called: a hash of 512 x 512 pixels takes 4 ms, and not every image meets a gate that
# remembers outputs.
Digest = Callable[[], bytes]


def with_digest(tensor: torch.Tensor, digest: Digest) -> torch.Tensor:
    """Give a tensor that is never written to the digest of its content, by which gates know it without reading it.

    Its conversion to another dtype, and another dimension, which pipelines give an image before they encode it, have a
    digest, too. Other results have none.
    """
    # A reference to the tensor itself would be a cycle, which only the garbage collector frees. A weak one alone is not
    # enough: in `preprocess(image).to(dtype)` nothing else refers to the tensor when `to` is called.
    kind: Any = type(tensor)
    known, alias = ref(tensor), tensor.detach()

    def to(*args: Any, **kwargs: Any) -> torch.Tensor:
        changed: torch.Tensor = kind.to(alias, *args, **kwargs)
        if changed is not alias:
            return with_digest(changed, derived_digest(digest, changed.dtype))
        image = known()
        return with_digest(alias.detach(), digest) if image is None else image

    attributes: dict[str, Any] = {
        "digest": digest,
        "to": to,
        "float": lambda: to(torch.float32),
        # Of autoencoders for videos. The shape is not in a digest.
        "unsqueeze": lambda dim: with_digest(kind.unsqueeze(alias, dim), digest),
    }
    vars(tensor).update(attributes)
    return tensor


def lazy_digest(tensor: torch.Tensor) -> Digest:
    """Return the digest of a tensor that is never written to."""
    # Without the attributes of the tensor, such as its digest: that would be a cycle.
    alias = tensor.detach()
    return cache(lambda: digest_of(alias))


def derived_digest(digest: Digest, dtype: torch.dtype) -> Digest:
    """Return the digest of a tensor that was converted to a dtype."""
    return cache(lambda: blake2b(digest() + str(dtype).encode()).digest())


def digest_of(tensor: torch.Tensor) -> bytes:
    """Return a hash of a tensor's content. The content itself would make large keys."""
    return blake2b(tensor_bytes(tensor)).digest()


def content_digest(tensor: torch.Tensor, *, waits: bool) -> bytes | None:
    """Return a digest of a tensor's content.

    Args:
        waits: whether to read it from its device, which waits for the work that the device still has to do. If not,
            None is returned where the content is not known in main memory.
    """
    known: Digest | None = vars(tensor).get("digest")
    if known is not None:
        return known()
    if tensor.device.type == "cpu" or waits or has_known_bytes(tensor):
        return digest_of(tensor)
    return None
