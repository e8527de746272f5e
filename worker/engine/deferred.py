"""Tensors that are calculated when they are needed, so that the work of several jobs is done together.

They are no tensors to `isinstance`, because making one takes longer than a small calculation. Each operation that is
not known here calculates the tensor first, so that it gives the same result.
"""

import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

# Tensors with the factors by which they are added up.
Terms = list[tuple[torch.Tensor, float]]


def _calculated(function: Callable[..., Any]) -> Any:
    """Return the method that calls a function with the tensors."""

    def call(self: "Deferred", *others: Any) -> Any:
        return function(self.tensor(), *tensors_of(others))

    return call


def _reflected(function: Callable[..., Any]) -> Any:
    return _calculated(lambda self, other: function(other, self))


class Deferred:
    """A tensor that is not calculated yet. Subclasses have `shape`, `dtype`, `device` and `tensor`."""

    __slots__ = ()

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device

    __add__, __radd__ = _calculated(operator.add), _reflected(operator.add)
    __sub__, __rsub__ = _calculated(operator.sub), _reflected(operator.sub)
    __mul__, __rmul__ = _calculated(operator.mul), _reflected(operator.mul)
    __truediv__, __rtruediv__ = _calculated(operator.truediv), _reflected(operator.truediv)
    __pow__, __neg__, __abs__ = _calculated(operator.pow), _calculated(operator.neg), _calculated(abs)
    __lt__, __le__ = _calculated(operator.lt), _calculated(operator.le)
    __gt__, __ge__ = _calculated(operator.gt), _calculated(operator.ge)
    __getitem__, __len__, __iter__ = _calculated(operator.getitem), _calculated(len), _calculated(iter)

    def tensor(self) -> torch.Tensor:
        """Return the tensor."""
        raise NotImplementedError

    def dim(self) -> int:
        """Return the number of dimensions."""
        return len(self.shape)

    def numel(self) -> int:
        """Return the number of values."""
        return self.shape.numel()

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the tensor."""
        return getattr(self.tensor(), name)

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], _types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call a function of torch with the tensors."""
        if func is torch.cat and not kwargs and len(args) == 1 and isinstance(args[0][0], Sum):
            first = args[0][0]
            if all(other is first for other in args[0]):
                return Repeated(first, len(args[0]))
        args, kwargs = pytree.tree_map_only(Deferred, lambda deferred: deferred.tensor(), (args, kwargs or {}))
        return func(*args, **kwargs)


class Sum(Deferred):
    """A sum of tensors of one shape, each times a number.

    Args:
        terms: what to add up.
        like: has the shape and device of the result.
        dtype: of the result. Sums are calculated in float32.
    """

    __slots__ = ("_terms", "_value", "device", "dtype", "group", "shape")

    def __init__(self, terms: Terms, like: Any, dtype: torch.dtype) -> None:
        self._terms = terms
        self._value: torch.Tensor | None = None
        self.shape, self.device, self.dtype = like.shape, like.device, dtype
        # Sums that are needed later than this one, but best calculated with it.
        self.group: Sequence[Sum] = ()

    @classmethod
    def of(cls, tensor: torch.Tensor) -> "Sum":
        """Return a sum of one tensor, which is known."""
        known = cls([], tensor, tensor.dtype)
        known._value = tensor
        return known

    @property
    def terms(self) -> Terms:
        """The terms; the tensor itself once it is calculated."""
        # Read first: another thread may calculate the tensor.
        terms = self._terms
        return terms if self._value is None else [(self._value, 1.0)]

    @property
    def is_known(self) -> bool:
        """Whether the tensor is calculated."""
        return self._value is not None

    def set(self, value: torch.Tensor) -> None:
        """Set the tensor."""
        self._value = _converted(value, self.dtype)
        self._terms, self.group = [], ()

    def tensor(self) -> torch.Tensor:
        """Calculate the tensor, unless it is known."""
        if self._value is None:
            calculate([self])
        assert self._value is not None
        return self._value

    def chunk(self, chunks: int, dim: int = 0) -> Sequence[Any]:
        """Return parts of the tensor."""
        return [Sum.of(part) for part in self.tensor().chunk(chunks, dim)]

    def __mul__(self, factor: Any) -> Any:
        """Return a multiple."""
        if isinstance(factor, int | float):
            return Sum([(tensor, factor * known) for tensor, known in self.terms], self, self.dtype)
        return Deferred.__mul__(self, factor)

    __rmul__ = __mul__

    def __add__(self, other: Any) -> Any:
        """Return the sum of two tensors."""
        if isinstance(other, Sum) and other.shape == self.shape:
            return Sum(combined([(self.terms, 1.0), (other.terms, 1.0)]), self, self.dtype)
        return Deferred.__add__(self, other)

    def __sub__(self, other: Any) -> Any:
        """Return the difference of two tensors."""
        if isinstance(other, Sum) and other.shape == self.shape:
            return Sum(combined([(self.terms, 1.0), (other.terms, -1.0)]), self, self.dtype)
        return Deferred.__sub__(self, other)


class Repeated(Deferred):
    """The rows of a tensor several times, times a number."""

    __slots__ = ("base", "device", "dtype", "factor", "shape", "times")

    def __init__(self, base: Sum, times: int, factor: float = 1.0) -> None:
        self.base, self.times, self.factor = base, times, factor
        self.shape = torch.Size((times * base.shape[0], *base.shape[1:]))
        self.device, self.dtype = base.device, base.dtype

    def tensor(self) -> torch.Tensor:
        """Calculate the tensor."""
        return torch.cat(rows_of([self]))

    def __mul__(self, factor: Any) -> Any:
        """Return a multiple."""
        if isinstance(factor, int | float):
            return Repeated(self.base, self.times, factor * self.factor)
        return Deferred.__mul__(self, factor)

    __rmul__ = __mul__


def terms_of(tensor: Any) -> Terms:
    """Return the terms of a tensor, which may be deferred."""
    if isinstance(tensor, Sum):
        return tensor.terms
    return [(tensor.tensor() if isinstance(tensor, Deferred) else tensor, 1.0)]


def combined(sums: Iterable[tuple[Terms, float]]) -> Terms:
    """Return the terms of a sum of sums, each times a number."""
    factors: dict[int, tuple[torch.Tensor, float]] = {}
    for terms, multiple in sums:
        for tensor, factor in terms:
            known = factors.get(id(tensor))
            factors[id(tensor)] = (tensor, factor * multiple + (0.0 if known is None else known[1]))
    return list(factors.values())


def tensors_of(leaves: Iterable[Any]) -> list[Any]:
    """Return the leaves, with tensors in place of those that are deferred."""
    return [leaf.tensor() if isinstance(leaf, Deferred) else leaf for leaf in leaves]


def rows_of(leaves: Sequence[Any]) -> list[torch.Tensor]:
    """Return tensors whose concatenation is that of the leaves, calculating deferred ones together."""
    if not any(isinstance(leaf, Deferred) for leaf in leaves):
        return list(leaves)
    bases = [leaf.base if isinstance(leaf, Repeated) else leaf for leaf in leaves]
    calculate([base for base in bases if isinstance(base, Sum)])
    scaled = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Repeated) and leaf.factor != 1]
    values = tensors_of(bases)
    multiples = _multiples([(values[i], leaves[i].factor) for i in scaled])
    for i, multiple in zip(scaled, multiples, strict=True):
        values[i] = multiple
    times = (leaf.times if isinstance(leaf, Repeated) else 1 for leaf in leaves)
    return [value for value, count in zip(values, times, strict=True) for _ in range(count)]


def calculate(sums: Iterable[Sum]) -> None:
    """Calculate sums and their groups that are not known yet."""
    members = {id(member): member for each in sums for member in (each, *each.group) if not member.is_known}
    groups: dict[torch.device, list[Sum]] = {}
    for member in members.values():
        groups.setdefault(member.device, []).append(member)
    for device, group in groups.items():
        add = add_up if device.type == "cpu" else add_up_together
        # Terms are read once: another thread may calculate the same sum, for a preview.
        values = add([_single_precision(member) for member in group])
        for member, value in zip(group, values, strict=True):
            member.set(value)


def _single_precision(member: Sum) -> Terms:
    terms = [(_converted(tensor, torch.float32), factor) for tensor, factor in member.terms]
    return terms or [(torch.zeros(member.shape, device=member.device), 1.0)]


def _converted(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    # Comparing first is faster.
    return tensor if tensor.dtype is dtype else tensor.to(dtype)


def add_up(sums: Sequence[Terms]) -> list[torch.Tensor]:
    """Return sums, one after another: the fastest way where a tensor is in the cache of a processor."""
    totals = []
    for (first, factor), *others in sums:
        total = first if factor == 1 and not others else first * factor
        for tensor, factor in others:
            total.add_(tensor, alpha=factor)
        totals.append(total)
    return totals


def add_up_together(sums: Sequence[Terms]) -> list[torch.Tensor]:
    """Return sums with two calls for each number of terms, which a GPU runs as one kernel each."""
    totals = _multiples([terms[0] for terms in sums])
    for number in range(1, max(map(len, sums))):
        indices = [i for i, terms in enumerate(sums) if number < len(terms)]
        torch._foreach_add_([totals[i] for i in indices], _multiples([sums[i][number] for i in indices]))
    return totals


def _multiples(terms: Terms) -> list[torch.Tensor]:
    if not terms:
        return []
    tensors, factors = zip(*terms, strict=True)
    return list(torch._foreach_mul(tensors, factors))
