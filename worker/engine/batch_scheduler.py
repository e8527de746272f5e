"""Which parked calls run next. Plain Python, so that every decision can be tested in microseconds."""

from collections.abc import Callable, Hashable, Sequence
from typing import Protocol, TypeVar


class PendingCall(Protocol):
    """A parked call, as far as the policy looks at it."""

    signature: Hashable  # calls with equal signatures can run as one
    rows: int  # how many rows it brings to the batch
    tick: int  # the engine tick at which it was parked


C = TypeVar("C", bound=PendingCall)


def schedule(calls: Sequence[C], row_limit: Callable[[Hashable], int]) -> list[C]:
    """The calls to run as one: oldest first, no more rows than the limit of their signature, but at least one call.

    calls: all parked calls, oldest first. The group that holds the oldest call goes first, so no shape, no decode and
    no lone job can starve. Among groups of equal age the smallest goes first: it is the newcomer that then joins the
    crowd, or the finished job whose slot a newcomer takes.
    """
    groups: dict[Hashable, list[C]] = {}
    for call in calls:
        groups.setdefault(call.signature, []).append(call)
    group = min(groups.values(), key=lambda g: (g[0].tick, sum(call.rows for call in g)))
    limit = row_limit(group[0].signature)
    taken, rows = [group[0]], group[0].rows
    for call in group[1:]:
        if rows + call.rows > limit:
            break
        taken.append(call)
        rows += call.rows
    return taken
