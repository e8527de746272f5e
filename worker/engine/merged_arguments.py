"""Remembers merged arguments that are the same in each step, so that embeddings are not copied in each one."""

import weakref
from collections.abc import Sequence
from functools import lru_cache

import torch
from cachetools import LRUCache

from .call_structure import Structure

# Starts of the names of keyword arguments that hold conditions. No pipeline writes to them between its steps.
_CONDITIONS = ("encoder_", "pooled_", "added_cond", "prompt_")
_ENTRIES = 8

# The tensors that were merged, and the result.
_Merged = tuple[tuple["weakref.ref[torch.Tensor]", ...], torch.Tensor]


@lru_cache(256)
def condition_leaves(structure: Structure) -> frozenset[int]:
    """Return the positions of the leaves that are conditions."""
    owners = enumerate(structure.owners())
    return frozenset(index for index, name in owners if name is not None and name.startswith(_CONDITIONS))


class MergedArguments:
    """Merged tensors of the latest batches."""

    def __init__(self) -> None:
        # None for tensors that were merged only once, whose copy is not kept.
        self._known: LRUCache[tuple[int, ...], _Merged | None] = LRUCache(_ENTRIES)

    def cat(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the concatenation of tensors that are never written to. From the third time on, it is not copied."""
        key = tuple(map(id, tensors))
        known = self._known.get(key)
        if known is not None and all(source() is tensor for source, tensor in zip(known[0], tensors, strict=True)):
            return known[1]
        merged = torch.cat(list(tensors))
        self._drop_dead()
        is_repeated = key in self._known
        self._known[key] = (tuple(map(weakref.ref, tensors)), merged) if is_repeated else None
        return merged

    def _drop_dead(self) -> None:
        for key, known in list(self._known.items()):
            if known is not None and any(source() is None for source in known[0]):
                del self._known[key]

    def clear(self) -> None:
        """Free the memory."""
        self._known.clear()
