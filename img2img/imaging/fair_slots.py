"""Which request is decoded next: requests of the owner that has used the decoders least come first."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from img2img.errors import Unavailable


class DecodersBusy(Unavailable):
    """Too many images are waiting to be decoded; try again in a few seconds."""

    code = "decoders_busy"


@dataclass(eq=False)
class _Owner:
    """An owner with requests that wait or run.

    Attributes:
        used_s: Virtual time: seconds of decoding that it has used, from the time at which its requests began to wait.
        waiting: Its requests in order of arrival, and whether each is heavy.
        started: Start times of its running requests.
    """

    used_s: float
    waiting: deque[tuple["asyncio.Future[float]", bool]] = field(default_factory=deque)
    started: list[float] = field(default_factory=list)


class FairSlots:
    """A limited number of slots, shared by owners according to the seconds for which they hold them.

    Start-time fair queueing: the owner with the least used time is next, and one that begins to wait starts at the
    present minimum. So a request of an owner waits for about one request of each other owner, and not for their
    backlogs. Used on one event loop.

    Args:
        slots: Requests that run at once.
        heavy_slots: Those of them that may be heavy. With fewer than `slots`, a light request does not wait for a
            heavy one.
        max_waiting: Requests that may wait.
        max_waiting_per_owner: Requests of one owner that may wait.
    """

    def __init__(
        self,
        slots: int,
        heavy_slots: int,
        *,
        max_waiting: int,
        max_waiting_per_owner: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.slots = slots
        self.heavy_slots = heavy_slots
        self._free, self._free_heavy = slots, heavy_slots
        self._max_waiting, self._max_waiting_per_owner = max_waiting, max_waiting_per_owner
        self._clock = clock
        self._owners: dict[str, _Owner] = {}
        self._now_s = 0.0

    @property
    def waiting(self) -> int:
        """Number of requests that wait."""
        return sum(len(owner.waiting) for owner in self._owners.values())

    @asynccontextmanager
    async def hold(self, name: str, *, heavy: bool, may_refuse: bool = True) -> AsyncIterator[None]:
        """Hold a slot for an owner while the context lasts. Raises DecodersBusy if too many wait, unless it may not."""
        owner = self._owners.get(name)
        if may_refuse:
            self._check_waiting(owner)
        if owner is None:
            owner = self._owners[name] = _Owner(self._now_s)
        owner.used_s = max(owner.used_s, self._now_s)
        turn: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        owner.waiting.append((turn, heavy))
        self._grant()
        try:
            await turn
            yield
        finally:
            if turn.done() and not turn.cancelled():
                owner.started.remove(turn.result())
                owner.used_s += self._clock() - turn.result()
                self._free += 1
                self._free_heavy += heavy
                self._grant()
            else:
                owner.waiting.remove((turn, heavy))
            self._forget_idle()

    def _check_waiting(self, owner: _Owner | None) -> None:
        if owner is not None and len(owner.waiting) >= self._max_waiting_per_owner:
            raise DecodersBusy(f"{len(owner.waiting)} of your requests wait for a decoder; try again in a few seconds.")
        if self.waiting >= self._max_waiting:
            raise DecodersBusy

    def _grant(self) -> None:
        """Give free slots to waiting requests."""
        while self._free:
            # An owner's light requests do not wait for its heavy ones.
            ready = [
                (self._used(owner), owner, entry)
                for owner in self._owners.values()
                if (entry := next((e for e in owner.waiting if not e[1] or self._free_heavy), None))
            ]
            if not ready:
                return
            used_s, owner, entry = min(ready, key=lambda item: item[0])
            self._now_s = max(self._now_s, used_s)
            owner.waiting.remove(entry)
            turn, heavy = entry
            self._free -= 1
            self._free_heavy -= heavy
            owner.started.append(self._clock())
            turn.set_result(owner.started[-1])

    def _used(self, owner: _Owner) -> float:
        now = self._clock()
        return owner.used_s + sum(now - started_at for started_at in owner.started)

    def _forget_idle(self) -> None:
        """Forget owners without requests: all when nothing runs, otherwise those that have used no more than others."""
        is_idle = self._free == self.slots
        for name, owner in list(self._owners.items()):
            if not owner.waiting and not owner.started and (is_idle or owner.used_s <= self._now_s):
                del self._owners[name]
