"""Digests of tensors: what gates know equal arguments by."""

from hashlib import blake2b

import torch

from .batching import has_known_bytes, tensor_bytes


class DigestedImage(torch.Tensor):
    """A tensor on a device whose content is known by a digest of the one in main memory that it was copied from.

    Operations return plain tensors, except for those that pipelines apply to an image before they encode it.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl

    digest: bytes

    def float(self) -> torch.Tensor:  # type: ignore[override]
        """Return the image in float32."""
        return self.to(torch.float32)

    def to(self, *args: object, **kwargs: object) -> torch.Tensor:  # type: ignore[override]
        """Return the image in another dtype or on another device."""
        plain = self.as_subclass(torch.Tensor)
        changed = plain.to(*args, **kwargs)  # type: ignore[call-overload]
        if changed is plain:
            return self
        return with_digest(changed, derived_digest(self.digest, changed.dtype))

    def unsqueeze(self, dim: int) -> torch.Tensor:
        """Return the image with another dimension, as video autoencoders take it. Shapes are not in a digest."""
        return with_digest(self.as_subclass(torch.Tensor).unsqueeze(dim), self.digest)


def with_digest(tensor: torch.Tensor, digest: bytes) -> DigestedImage:
    """Return a tensor that is never written to, with the digest of its content."""
    image = tensor.as_subclass(DigestedImage)
    image.digest = digest
    return image


def derived_digest(digest: bytes, dtype: torch.dtype) -> bytes:
    """Return the digest of a tensor that was converted to a dtype."""
    return blake2b(digest + str(dtype).encode()).digest()


def digest_of(tensor: torch.Tensor) -> bytes:
    """Return a hash of a tensor's content. The content itself would make large keys."""
    return blake2b(tensor_bytes(tensor)).digest()


def content_digest(tensor: torch.Tensor, *, waits: bool) -> bytes | None:
    """Return a digest of a tensor's content.

    Args:
        waits: whether to read it from its device, which waits for the work that the device still has to do. If not,
            None is returned where the content is not known in main memory.
    """
    known = getattr(tensor, "digest", None)
    if isinstance(known, bytes):
        return known
    if tensor.device.type == "cpu" or waits or has_known_bytes(tensor):
        return digest_of(tensor)
    return None
