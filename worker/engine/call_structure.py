"""The arguments of a call as a flat list, and back. Faster than pytree for calls whose arguments are mostly tensors."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch.utils import _pytree as pytree

_PLAIN = (torch.Tensor, type(None), bool, int, float, str)


class Structure(NamedTuple):
    """What is left of the arguments of a call without their leaves.

    Attributes:
        positional: number of positional arguments.
        names: of the keyword arguments.
        nested: of each argument, its structure if it is a container; None for a single leaf.
    """

    positional: int
    names: tuple[str, ...]
    nested: tuple[pytree.TreeSpec | None, ...]

    def unflatten(self, leaves: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return positional and keyword arguments with these leaves."""
        values, start = [], 0
        for spec in self.nested:
            if spec is None:
                values.append(leaves[start])
                start += 1
            else:
                end = start + spec.num_leaves
                values.append(pytree.tree_unflatten(list(leaves[start:end]), spec))
                start = end
        return tuple(values[: self.positional]), dict(zip(self.names, values[self.positional :], strict=True))

    def owners(self) -> list[str | None]:
        """Return for each leaf the name of its keyword argument; None for positional ones."""
        names = [*[None] * self.positional, *self.names]
        counts = [1 if spec is None else spec.num_leaves for spec in self.nested]
        return [name for name, count in zip(names, counts, strict=True) for _ in range(count)]


def flatten(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[list[Any], Structure]:
    """Return the leaves of arguments, in order, and their structure."""
    leaves: list[Any] = []
    nested: list[pytree.TreeSpec | None] = []
    for value in (*args, *kwargs.values()):
        if isinstance(value, _PLAIN):
            leaves.append(value)
            nested.append(None)
        else:
            inner, spec = pytree.tree_flatten(value)
            leaves += inner
            nested.append(spec)
    return leaves, Structure(len(args), tuple(kwargs), tuple(nested))
