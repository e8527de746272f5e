"""Exact results of merged calls with 16-bit numbers on a CPU.

Two kinds of layers may add in another order in a merged call, which the last of so few bits show:

- A linear layer multiplies matrices of another size, for which there may be another kernel, or another division of the
  sums among the threads.
- Group normalization of tensors whose channels are adjacent (`channels_last`) divides the pixels of all rows among the
  threads, and adds up the part of each.

Whether a layer does so with tensors of these shapes is measured once. If it does, it runs again for each call. Whether
the other layers of a model round the same with any number of rows is found out by `probe_rows`.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from contextlib import contextmanager
from functools import lru_cache

import torch

# Larger products take as long in parts, and are not measured. Values of the input or the output.
LARGEST_MEASURED = 2**23


class _Merged(threading.local):
    """The merged call that the engine of this thread runs."""

    calls: list[int] = []  # rows of each call
    sizes: Set[int] = frozenset()  # the numbers in `calls`
    rows: int = 0  # of all


_merged = _Merged()


@contextmanager
def exact_rows(calls: Sequence[int]) -> Iterator[None]:
    """Run a merged call in which each call gets the result that it would get alone, by the layers of `keep_rows_exact`.

    Args:
        calls: rows of each call.
    """
    _merged.calls, _merged.sizes, _merged.rows = list(calls), set(calls), sum(calls)
    try:
        yield
    finally:
        _merged.calls, _merged.sizes, _merged.rows = [], frozenset(), 0


def keep_rows_exact(modules: Iterable[torch.nn.Module]) -> None:
    """Let the layers of modules heed `exact_rows`."""
    for module in modules:
        for layer in module.modules():
            if type(layer) is torch.nn.Linear:
                layer.__class__ = _Linear
            elif type(layer) is torch.nn.GroupNorm:
                layer.__class__ = _GroupNorm


class _Linear(torch.nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:  # as in torch
        return _run_exactly(super().forward, input, self._adds_alike)

    def _adds_alike(self, vectors: torch.Tensor, rows: int) -> bool:
        if type(self.weight.data) is not torch.Tensor:
            return False  # a quantised weight, whose kernel is not known
        if vectors.numel() // self.in_features * max(self.in_features, self.out_features) > LARGEST_MEASURED:
            return False
        size, has_bias = (self.out_features, self.in_features), self.bias is not None
        return _products_add_alike(
            size, has_bias, vectors.shape[1:-1], rows, len(vectors), vectors.dtype, torch.get_num_threads()
        )


class _GroupNorm(torch.nn.GroupNorm):
    def forward(self, input: torch.Tensor) -> torch.Tensor:  # as in torch
        return _run_exactly(super().forward, input, self._adds_alike)

    def _adds_alike(self, pixels: torch.Tensor, rows: int) -> bool:
        threads, is_contiguous = torch.get_num_threads(), pixels.is_contiguous()
        if pixels.dim() != 4 and not is_contiguous:
            return False
        return _norms_add_alike(self.num_groups, pixels.shape[1:], rows, is_contiguous, pixels.dtype, threads)


def _run_exactly(
    forward: Callable[[torch.Tensor], torch.Tensor],
    value: torch.Tensor,
    adds_alike: Callable[[torch.Tensor, int], bool],
) -> torch.Tensor:
    """Return the output of a layer, with the exact result for each call.

    Args:
        forward: the layer.
        value: its input.
        adds_alike: returns whether a call with so many rows of the input adds in the same order as a call with all.
    """
    if not _merged.calls or len(value) != _merged.rows:
        return forward(value)
    calls = _merged.calls
    apart = {rows for rows in _merged.sizes if not adds_alike(value, rows)}
    if apart == _merged.sizes:
        return torch.cat([forward(part) for part in torch.split(value, calls)])
    output = forward(value)
    if apart:
        for part, result in zip(torch.split(value, calls), torch.split(output, calls), strict=True):
            if len(part) in apart:
                result.copy_(forward(part))
    return output


@lru_cache(4096)
def _products_add_alike(
    size: tuple[int, int],
    has_bias: bool,
    shape: tuple[int, ...],
    rows: int,
    rows_of_all: int,
    dtype: torch.dtype,
    _threads: int,
) -> bool:
    """Multiply vectors whose sums are zero but for rounding, so that another order gives other numbers."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(size[0], size[1] // 2, generator=generator).to(dtype)
    weights = torch.cat([weights, -weights, weights[:, : size[1] % 2]], dim=-1)
    half = torch.randn(rows_of_all, *shape, size[1] // 2, generator=generator).to(dtype)
    vectors = torch.cat([half, half, 0 * half[..., : size[1] % 2]], dim=-1)
    bias = torch.zeros(size[0], dtype=dtype) if has_bias else None
    products = torch.nn.functional.linear(vectors, weights, bias)
    return all(
        torch.equal(products[part], torch.nn.functional.linear(vectors[part], weights, bias))
        for part in (slice(rows), slice(-rows, None))
    )


@lru_cache(4096)
def _norms_add_alike(
    groups: int,
    shape: tuple[int, ...],
    rows: int,
    is_contiguous: bool,
    dtype: torch.dtype,
    threads: int,
) -> bool:
    """Normalize values with a large mean, so that another order gives other numbers.

    There is one row more than the threads can divide, so that some rows are divided between two threads.
    """
    values = torch.randint(0, 4, (threads * rows + 1, *shape), generator=torch.Generator().manual_seed(0))
    pixels = (256 + 2 * values).to(dtype)
    if not is_contiguous:
        pixels = pixels.to(memory_format=torch.channels_last)
    normalized = torch.nn.functional.group_norm(pixels, groups)
    return all(
        torch.equal(whole, torch.nn.functional.group_norm(part, groups))
        for whole, part in zip(torch.split(normalized, rows), torch.split(pixels, rows), strict=True)
        if len(part) == rows
    )
