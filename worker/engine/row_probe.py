"""Checks that the rows of a call do not depend on each other, so that calls of several tasks can run as one."""

from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any

import torch
from torch.utils import _pytree as pytree

from .batching import GateCall, split
from .errors import is_out_of_memory
from .exact_rows import exact_rows

# Largest difference by rounding, relative to the largest value of the output. Float32 rounds by 1e-7; the kernels that
# are chosen for another number of rows add in another order, in each of hundreds of layers.
TOLERANCES = {torch.float16: 0.02, torch.bfloat16: 0.15}
DEFAULT_TOLERANCE = 1e-3


class Independence(Enum):
    """How the output for a row changes if there are other rows."""

    EXACT = "exact"  # not at all
    ROUNDING = "rounding"  # by rounding
    NONE = "none"  # by more, or the call fails


def probe_rows(run: Callable[..., Any], call: GateCall) -> Independence:
    """Run the first row of a call and a changed copy of it alone, together, and in the other order.

    Args:
        run: the function of the gate.
        call: any call of it.

    Raises:
        Exception: the error of running the first row alone, such as an error of the device, or a lack of memory.
    """
    first = [_first_row(leaf, kind) for leaf, kind in zip(call.leaves, call.kinds, strict=True)]
    second = [_changed(leaf, kind) for leaf, kind in zip(first, call.kinds, strict=True)]
    rows = [_tensors(_run(run, call, leaves)) for leaves in (first, second)]
    independence = Independence.EXACT
    for order in ((0, 1), (1, 0)):
        pair = [(first, second)[i] for i in order]
        try:
            with exact_rows([1, 1]):
                outputs = split(_run(run, call, _merged(pair, call.kinds)), [1, 1])
        except (TypeError, ValueError, RuntimeError, IndexError) as error:
            if is_out_of_memory(error):
                raise
            # It needs a certain number of rows, or its output has none.
            return Independence.NONE
        for i, output in zip(order, outputs, strict=True):
            found = _compare(rows[i], _tensors(output))
            if found is Independence.NONE:
                return found
            if found is Independence.ROUNDING:
                independence = found
    return independence


def _run(run: Callable[..., Any], call: GateCall, leaves: Sequence[Any]) -> Any:
    args, kwargs = call.structure.unflatten(leaves)
    return run(*args, **kwargs)


def _first_row(leaf: Any, kind: str) -> Any:
    return leaf[:1] if kind == "rows" else leaf


def _changed(leaf: Any, kind: str) -> Any:
    """Return other values of the same magnitude, so that a row that reads its neighbour is noticed."""
    if kind != "rows" or leaf.dim() < 2:
        return leaf
    # Position ids of another image, or another mask.
    return leaf.flip(-1) * 0.75 if leaf.is_floating_point() else leaf.flip(-1)


def _merged(calls: Sequence[Sequence[Any]], kinds: Sequence[str]) -> list[Any]:
    merged = []
    for kind, *leaves in zip(kinds, *calls, strict=True):
        if kind == "rows":
            merged.append(torch.cat(leaves))
        else:
            merged.append(leaves[0].expand(len(leaves)) if kind == "scalar" else leaves[0])
    return merged


def _tensors(output: Any) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, torch.Tensor)]


def _compare(alone: Sequence[torch.Tensor], together: Sequence[torch.Tensor]) -> Independence:
    independence = Independence.EXACT
    for a, b in zip(alone, together, strict=True):
        if torch.equal(a, b):
            continue
        difference = (a.float() - b.float()).abs().max()
        if not difference <= TOLERANCES.get(a.dtype, DEFAULT_TOLERANCE) * a.float().abs().max():
            return Independence.NONE
        independence = Independence.ROUNDING
    return independence
