"""A module call as data: its signature, and how calls of one signature merge into one and split again.

Rows stand in the first dimension. The first tensor with a dimension says how many rows a call has; then every leaf of
its arguments is one of four:
- rows: a tensor with as many rows in front; concatenated;
- scalar: a tensor without dimensions (a timestep); becomes one value per row;
- shared: an argument that its gate names so (position ids), whatever its shape, and any other tensor; must be equal in
  value, and goes in once;
- constant: anything else; must be equal.
"""

from collections.abc import Callable, Hashable, Mapping, MutableMapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils import _pytree as pytree  # the public home of what torch.export and torch.func use themselves
from torch.utils.weak import WeakTensorKeyDictionary

# The contents of shared arguments, for as long as their tensors live: pipelines make position ids once a job and pass
# the same object at every step, and looking into it each time would make the host wait for the device.
_contents: MutableMapping[torch.Tensor, bytes] = WeakTensorKeyDictionary()


@dataclass(eq=False, slots=True)
class GateCall:
    """A parked call of one job."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    leaves: list[Any]
    structure: pytree.TreeSpec
    kinds: tuple[str, ...]
    signature: Hashable
    rows: int
    tick: int = field(default=0)


def make_call(
    target: Hashable, args: tuple[Any, ...], kwargs: Mapping[str, Any], shared: Set[str] = frozenset()
) -> GateCall:
    """Describes a call of `target`. Raises ValueError if no argument is a tensor with rows.

    shared: keyword arguments without rows of their own. Their tensors must never be written to.
    """
    leaves, structure = pytree.tree_flatten((args, dict(kwargs)))
    whole = {id(leaf) for name in shared if name in kwargs for leaf in pytree.tree_leaves(kwargs[name])}
    tensors = (leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and id(leaf) not in whole)
    rows = next((leaf.shape[0] for leaf in tensors if leaf.dim()), None)
    if rows is None:
        raise ValueError(f"a call of {target!r} has no tensor with rows")
    kinds, parts = [], []
    for leaf in leaves:
        is_shared = isinstance(leaf, torch.Tensor) and id(leaf) in whole
        kind, part = _describe_shared(leaf, _known_content(leaf)) if is_shared else _describe(leaf, rows)
        kinds.append(kind)
        parts.append(part)
    signature = (target, structure, tuple(kinds), tuple(parts))
    return GateCall(args, kwargs, leaves, structure, tuple(kinds), signature, rows)


def _describe(leaf: Any, rows: int) -> tuple[str, Hashable]:
    if not isinstance(leaf, torch.Tensor):
        return "constant", leaf if isinstance(leaf, Hashable) else id(leaf)
    if leaf.dim() == 0:
        return "scalar", leaf.device  # not the dtype: integer and float timesteps mean the same
    if leaf.shape[0] == rows:
        return "rows", (leaf.shape[1:], leaf.dtype, leaf.device)
    return _describe_shared(leaf, content(leaf))


def _describe_shared(tensor: torch.Tensor, of: bytes) -> tuple[str, Hashable]:
    return "shared", (tensor.shape, tensor.dtype, tensor.device, of)


def _known_content(tensor: torch.Tensor) -> bytes:
    known = _contents.get(tensor)
    if known is None:
        known = _contents[tensor] = content(tensor)
    return known


def content(tensor: torch.Tensor) -> bytes:
    """The bytes of a tensor, as something to compare and hash."""
    return bytes(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)


def collate(calls: Sequence[GateCall]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of the one call that stands for `calls`, which have equal signatures. A lone call stays as it is."""
    first = calls[0]
    if len(calls) == 1:
        return first.args, dict(first.kwargs)
    merged = []
    for i, kind in enumerate(first.kinds):
        if kind == "rows":
            merged.append(torch.cat([call.leaves[i] for call in calls]))
        elif kind == "scalar":
            merged.append(torch.cat([call.leaves[i].expand(call.rows) for call in calls]))
        else:
            merged.append(first.leaves[i])
    args, kwargs = pytree.tree_unflatten(merged, first.structure)
    return args, kwargs


def split(output: Any, rows: Sequence[int]) -> list[Any]:
    """The parts of a merged output, `rows[i]` rows each. A lone part is the output itself.

    Raises TypeError for a tensor that does not have all the rows in front, and for anything else that is not plainly
    equal for all: sharing it would hand one job's values to another.
    """
    if len(rows) == 1:
        return [output]
    total = sum(rows)
    leaves, structure = pytree.tree_flatten(output)
    parts: list[list[Any]] = [[] for _ in rows]
    for leaf in leaves:
        if isinstance(leaf, torch.Tensor) and leaf.dim() and leaf.shape[0] == total:
            pieces: Sequence[Any] = torch.split(leaf, list(rows))
        elif leaf is None or isinstance(leaf, bool | int | float | str):
            pieces = [leaf] * len(rows)
        else:
            shape = tuple(leaf.shape) if isinstance(leaf, torch.Tensor) else type(leaf).__name__
            raise TypeError(f"an output of a merged call cannot be split into {total} rows: {shape}")
        for part, piece in zip(parts, pieces, strict=True):
            part.append(piece)
    return [pytree.tree_unflatten(part, structure) for part in parts]


def splittable(
    kind: type, flatten: Callable[[Any], tuple[list[Any], Any]], unflatten: Callable[[Any, Any], Any]
) -> None:
    """Teaches `split` to look inside objects of a class: their tensors out of them, and a new object of tensors."""
    if kind not in pytree.SUPPORTED_NODES:
        pytree.register_pytree_node(kind, flatten, unflatten)
