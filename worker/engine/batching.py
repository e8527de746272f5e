"""Module calls as data: the signature of a call, merging calls of equal signature, and splitting the merged output.

Rows are the first dimension of a tensor. The first tensor that has a dimension determines the number of rows of a
call. Each leaf of the arguments is then one of four kinds:
- rows: a tensor with that many rows; concatenated;
- scalar: a tensor without dimensions (a timestep); expanded to one value per row;
- shared: an argument that its gate declares as shared (position ids), and any other tensor; must be equal in value, and
  is passed once;
- constant: anything else; must be equal.
"""

from collections.abc import Callable, Hashable, Mapping, MutableMapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils.weak import WeakTensorKeyDictionary

from .call_structure import Structure, flatten
from .deferred import Deferred, rows_of, tensors_of
from .merged_arguments import MergedArguments, condition_leaves

# Bytes of shared arguments, for the lifetime of their tensors. Pipelines make position ids once a job and pass the same
# tensor at every step; reading it each time would make the host wait for the device.
_bytes_of_shared: MutableMapping[torch.Tensor, bytes] = WeakTensorKeyDictionary()

_TENSORS = (torch.Tensor, Deferred)
_HALF = (torch.float16, torch.bfloat16)


@dataclass(eq=False, slots=True)
class GateCall:
    """A call of a gate by one task."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    leaves: list[Any]
    structure: Structure
    kinds: tuple[str, ...]
    signature: Hashable
    rows: int
    row_size: int  # values in a row of the first tensor
    is_half_on_cpu: bool  # whether the first tensor has 16-bit numbers and is in the memory of the CPU


def make_call(
    target: Hashable, args: tuple[Any, ...], kwargs: Mapping[str, Any], shared: Set[str] = frozenset()
) -> GateCall:
    """Return a description of a call of `target`.

    Args:
        target: identifies the function.
        args: positional arguments of the call.
        kwargs: keyword arguments of the call.
        shared: names of keyword arguments without a row dimension. Their tensors must never be written to.

    Raises:
        ValueError: no argument is a tensor with rows.
    """
    leaves, structure = flatten(args, kwargs)
    whole = {id(leaf) for name in shared if name in kwargs for leaf in pytree.tree_leaves(kwargs[name])}
    tensors = (leaf for leaf in leaves if _is_tensor(leaf) and id(leaf) not in whole)
    first = next((leaf for leaf in tensors if leaf.dim()), None)
    if first is None:
        raise ValueError(f"a call of {target!r} has no tensor with rows")
    rows = first.shape[0]
    kinds, parts = [], []
    for leaf in leaves:
        is_shared = isinstance(leaf, torch.Tensor) and id(leaf) in whole
        kind, part = _describe_shared(leaf, _cached_bytes(leaf)) if is_shared else _describe(leaf, rows)
        kinds.append(kind)
        parts.append(part)
    signature = (target, structure, tuple(kinds), tuple(parts))
    return GateCall(
        args, kwargs, leaves, structure, tuple(kinds), signature, rows, first.numel() // rows, is_half_on_cpu(first)
    )


def _is_tensor(leaf: Any) -> bool:
    return isinstance(leaf, _TENSORS)


def _describe(leaf: Any, rows: int) -> tuple[str, Hashable]:
    if not _is_tensor(leaf):
        return "constant", leaf if isinstance(leaf, Hashable) else id(leaf)
    if leaf.dim() == 0:
        # The dtype is not compared: integer and float timesteps are equivalent.
        return "scalar", leaf.device
    if leaf.shape[0] == rows:
        return "rows", (leaf.shape[1:], leaf.dtype, leaf.device, _layout(leaf))
    return _describe_shared(leaf, tensor_bytes(leaf))


def _layout(tensor: torch.Tensor) -> bool:
    """Return what has to be equal of the order of two tensors in memory, so that merging them is exact.

    A convolution of 16-bit numbers on a CPU rounds differently if the channels of a pixel are adjacent, and merged
    tensors have one order. Elsewhere merging rounds anyway.
    """
    return is_half_on_cpu(tensor) and tensor.dim() == 4 and not tensor.is_contiguous()


def is_half_on_cpu(tensor: torch.Tensor) -> bool:
    """Return whether a tensor has 16-bit numbers and is in the memory of the CPU."""
    return tensor.dtype in _HALF and tensor.device.type == "cpu"


def _describe_shared(tensor: torch.Tensor, content: bytes) -> tuple[str, Hashable]:
    return "shared", (tensor.shape, tensor.dtype, tensor.device, content)


def _cached_bytes(tensor: torch.Tensor) -> bytes:
    known = _bytes_of_shared.get(tensor)
    if known is None:
        known = _bytes_of_shared[tensor] = tensor_bytes(tensor)
    return known


def remember_bytes(tensor: torch.Tensor, content: bytes) -> None:
    """Remember the content of a tensor that is never written to, so that comparing it does not wait for its device."""
    _bytes_of_shared[tensor] = content


def has_known_bytes(tensor: torch.Tensor) -> bool:
    """Return whether the content of a tensor is remembered."""
    return tensor in _bytes_of_shared


def tensor_bytes(tensor: torch.Tensor) -> bytes:
    """Return the content of a tensor as bytes, to compare and to hash."""
    known = _bytes_of_shared.get(tensor) if tensor.device.type != "cpu" else None
    if known is not None:
        return known
    return bytes(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)


def half_of(call: GateCall, half: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a call with the `first` or `last` half of its rows."""
    middle = call.rows // 2
    rows = slice(0, middle) if half == "first" else slice(middle, None)
    leaves = [leaf[rows] if kind == "rows" else leaf for leaf, kind in zip(call.leaves, call.kinds, strict=True)]
    return call.structure.unflatten(leaves)


def first_row(call: GateCall) -> GateCall:
    """Return a call with the first row of another one. Its tensors are copies."""
    leaves = [leaf[:1].clone() if kind == "rows" else leaf for leaf, kind in zip(call.leaves, call.kinds, strict=True)]
    args, kwargs = call.structure.unflatten(leaves)
    return replace(call, args=args, kwargs=kwargs, leaves=leaves, rows=1)


def with_rows(call: GateCall) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a call with its scalars as one value per row, in float32: the form of merged calls."""
    leaves = [
        leaf.to(torch.float32).expand(call.rows).contiguous() if kind == "scalar" else leaf
        for leaf, kind in zip(call.leaves, call.kinds, strict=True)
    ]
    return call.structure.unflatten(leaves)


def collate(
    calls: Sequence[GateCall], padding: int = 0, merged_before: MergedArguments | None = None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of one call that replaces `calls`, which have equal signatures.

    A single call is returned unchanged, but for deferred tensors, which are calculated.

    Args:
        padding: rows to add: copies of the last one. For calls without scalars.
        merged_before: remembers merged conditions.
    """
    first = calls[0]
    if len(calls) == 1 and not padding:
        is_deferred = any(isinstance(leaf, Deferred) for leaf in first.leaves)
        return first.structure.unflatten(tensors_of(first.leaves)) if is_deferred else (first.args, dict(first.kwargs))
    conditions = condition_leaves(first.structure) if merged_before and not padding else frozenset()
    merged = []
    for i, kind in enumerate(first.kinds):
        if kind == "rows":
            rows = rows_of([call.leaves[i] for call in calls])
            if padding:
                rows.append(rows[-1][-1:].expand(padding, *rows[-1].shape[1:]))
            merged.append(merged_before.cat(rows) if merged_before and i in conditions else torch.cat(rows))
        elif kind == "scalar":
            merged.append(torch.cat([call.leaves[i].expand(call.rows) for call in calls]))
        else:
            merged.append(first.leaves[i])
    return first.structure.unflatten(merged)


def split(output: Any, rows: Sequence[int]) -> list[Any]:
    """Split a merged output into parts of `rows[i]` rows. A single part is the output itself.

    Raises:
        TypeError: a leaf is neither a tensor with all the rows nor a plain value. Sharing it would leak the values of
            one job into another.
    """
    if len(rows) == 1:
        return [output]
    total = sum(rows)
    if type(output) is tuple and len(output) == 1 and _has_rows(output[0], total):
        return [(part,) for part in torch.split(output[0], list(rows))]
    leaves, structure = pytree.tree_flatten(output)
    parts: list[list[Any]] = [[] for _ in rows]
    for leaf in leaves:
        if _has_rows(leaf, total):
            pieces: Sequence[Any] = torch.split(leaf, list(rows))
        elif leaf is None or isinstance(leaf, bool | int | float | str):
            pieces = [leaf] * len(rows)
        else:
            shape = tuple(leaf.shape) if isinstance(leaf, torch.Tensor) else type(leaf).__name__
            raise TypeError(f"the output of a merged call cannot be split into {total} rows: {shape}")
        for part, piece in zip(parts, pieces, strict=True):
            part.append(piece)
    return [pytree.tree_unflatten(part, structure) for part in parts]


def _has_rows(leaf: Any, rows: int) -> bool:
    return isinstance(leaf, torch.Tensor) and leaf.dim() > 0 and leaf.shape[0] == rows


def register_container(
    kind: type, flatten: Callable[[Any], tuple[list[Any], Any]], unflatten: Callable[[Any, Any], Any]
) -> None:
    """Let `split` look inside objects of a class.

    Args:
        kind: the class.
        flatten: returns the tensors of an object, and anything else needed to rebuild it.
        unflatten: rebuilds an object from both.
    """
    if kind not in pytree.SUPPORTED_NODES:
        pytree.register_pytree_node(kind, flatten, unflatten)
