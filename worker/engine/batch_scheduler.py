"""Choice of the parked calls that run next. Plain Python, so that unit tests need no torch."""

from collections.abc import Callable, Hashable, Sequence
from typing import Protocol, TypeVar


class PendingCall(Protocol):
    """The properties of a parked call that scheduling depends on."""

    @property
    def signature(self) -> Hashable:
        """Calls of equal signature can run as one."""

    @property
    def rows(self) -> int:
        """Rows that the call adds to a batch."""

    @property
    def iteration(self) -> int:
        """The engine's iteration in which the call was parked."""


C = TypeVar("C", bound=PendingCall)


def schedule(calls: Sequence[C], row_limit: Callable[[C], int]) -> list[C]:
    """Return the calls to run as one batch: oldest first, up to their row limit, at least one call.

    The group that contains the oldest call goes first, so that no signature starves. Among groups of equal age the
    smallest goes first: a new task catches up with the larger batch, and a finishing task frees its slot.

    Args:
        calls: all parked calls, oldest first.
        row_limit: the largest number of rows of calls like this one.
    """
    groups: dict[Hashable, list[C]] = {}
    for call in calls:
        groups.setdefault(call.signature, []).append(call)
    group = min(groups.values(), key=lambda g: (g[0].iteration, sum(call.rows for call in g)))
    limit = row_limit(group[0])
    taken, rows = [group[0]], group[0].rows
    for call in group[1:]:
        if rows + call.rows > limit:
            break
        taken.append(call)
        rows += call.rows
    return taken
