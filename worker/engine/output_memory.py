"""Outputs of gates that are remembered by the content of their arguments."""

import threading
from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

import torch
from cachetools import LRUCache
from torch.utils import _pytree as pytree


@dataclass(frozen=True)
class _Remembered:
    """An output, and the SHA-256 of the images that it was made of."""

    leaves: tuple[Any, ...]
    structure: pytree.TreeSpec
    images: frozenset[str]


class OutputMemory:
    """Remembers the last outputs of one gate, up to a size. Safe from any thread."""

    def __init__(self, max_bytes: int) -> None:
        self._outputs: LRUCache[Hashable, _Remembered] = LRUCache(max_bytes, getsizeof=_bytes_of)
        self._lock = threading.Lock()
        _memories.add(self)

    def get(self, key: Hashable, *, copies: bool = False) -> Any:
        """Return the output of a key; None if there is none.

        Args:
            copies: whether its tensors are copies, for callers that may write to them.
        """
        with self._lock:
            found = self._outputs.get(key)
        return None if found is None else _rebuild(found, torch.clone if copies else _itself)

    def put(self, key: Hashable, output: Any, images: frozenset[str] = frozenset()) -> None:
        """Remember an output, unless it is too large or has parts that are neither tensors nor plain values.

        Args:
            images: SHA-256 of the images that it was made of: it is forgotten with the first of them.
        """
        leaves, structure = pytree.tree_flatten(output)
        if not all(leaf is None or isinstance(leaf, torch.Tensor | bool | int | float | str) for leaf in leaves):
            return
        leaves = [_owned(leaf) if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
        remembered = _Remembered(tuple(leaves), structure, images)
        with self._lock:
            if _bytes_of(remembered) <= self._outputs.maxsize:
                self._outputs[key] = remembered

    @property
    def images(self) -> frozenset[str]:
        """SHA-256 of all images that outputs were made of."""
        with self._lock:
            return frozenset[str]().union(*(remembered.images for remembered in self._outputs.values()))

    def forget(self, images: Collection[str]) -> None:
        """Forget all outputs that were made of one of the images."""
        with self._lock:
            for key in [key for key, remembered in self._outputs.items() if not remembered.images.isdisjoint(images)]:
                del self._outputs[key]


_memories: "WeakSet[OutputMemory]" = WeakSet()


class AllMemories:
    """The memories of all gates."""

    @property
    def images(self) -> frozenset[str]:
        """SHA-256 of all images that remembered outputs were made of."""
        return frozenset[str]().union(*(memory.images for memory in list(_memories)))

    def forget(self, images: Collection[str]) -> None:
        """Forget all outputs that were made of one of the images."""
        for memory in list(_memories):
            memory.forget(images)


def _rebuild(remembered: _Remembered, take: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    leaves = [take(leaf) if isinstance(leaf, torch.Tensor) else leaf for leaf in remembered.leaves]
    return pytree.tree_unflatten(leaves, remembered.structure)


def _itself(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def _owned(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor that keeps no more memory than its own."""
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def _bytes_of(remembered: _Remembered) -> int:
    return sum(leaf.nbytes for leaf in remembered.leaves if isinstance(leaf, torch.Tensor))
