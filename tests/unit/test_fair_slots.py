"""Turns of owners at the decoders."""

import asyncio
from collections.abc import Callable, Coroutine

import pytest

from img2img.imaging.fair_slots import DecodersBusy, FairSlots


class Decoders:
    """Slots whose requests take virtual time: each runs until the test has advanced the clock past its end."""

    def __init__(self, slots: int, heavy_slots: int = 1, *, max_waiting: int = 100, per_owner: int = 100) -> None:
        self.now = 0.0
        self.done: list[str] = []
        self.ends: dict[str, float] = {}
        self.slots = FairSlots(
            slots, heavy_slots, max_waiting=max_waiting, max_waiting_per_owner=per_owner, clock=lambda: self.now
        )
        self._tasks: list[asyncio.Task[None]] = []
        self._advanced = asyncio.Condition()

    async def request(
        self, owner: str, name: str, seconds: float, *, heavy: bool = False, may_refuse: bool = True
    ) -> None:
        async with self.slots.hold(owner, heavy=heavy, may_refuse=may_refuse):
            end = self.now + seconds
            async with self._advanced:
                await self._advanced.wait_for(lambda: self.now >= end)
            self.done.append(name)
            self.ends[name] = self.now

    def start(
        self, owner: str, name: str, seconds: float, *, heavy: bool = False, may_refuse: bool = True
    ) -> "asyncio.Task[None]":
        task = asyncio.create_task(self.request(owner, name, seconds, heavy=heavy, may_refuse=may_refuse))
        self._tasks.append(task)
        return task

    async def settle(self) -> None:
        for _ in range(20):
            await asyncio.sleep(0)

    async def advance(self, seconds: float, step: float = 0.5) -> None:
        await self.settle()
        for _ in range(round(seconds / step)):
            self.now += step
            async with self._advanced:
                self._advanced.notify_all()
            await self.settle()


def runs(scenario: Callable[[], Coroutine[None, None, None]]) -> None:
    asyncio.run(scenario())


def test_requests_of_one_owner_are_served_in_order() -> None:
    async def scenario() -> None:
        decoders = Decoders(1)
        for index in range(5):
            decoders.start("a", str(index), 1)
        await decoders.advance(5)
        assert decoders.done == list("01234")

    runs(scenario)


def test_backlog_of_one_owner_delays_others_by_one_request() -> None:
    async def scenario() -> None:
        decoders = Decoders(1)
        for index in range(30):
            decoders.start("greedy", f"greedy {index}", 2)
        await decoders.advance(3)
        decoders.start("modest", "modest", 0.5)
        await decoders.advance(3)
        assert decoders.ends["modest"] <= 4.5, "after the one that was running"

    runs(scenario)


def test_owners_get_equal_time_and_not_equal_numbers() -> None:
    async def scenario() -> None:
        decoders = Decoders(1)
        for index in range(40):
            decoders.start("slow", f"slow {index}", 4)
            decoders.start("quick", f"quick {index}", 1)
        await decoders.advance(60)
        slow = 4 * sum(name.startswith("slow") for name in decoders.done)
        quick = sum(name.startswith("quick") for name in decoders.done)
        assert abs(slow - quick) <= 6, decoders.done

    runs(scenario)


def test_light_request_does_not_wait_for_heavy_ones() -> None:
    async def scenario() -> None:
        decoders = Decoders(2, heavy_slots=1)
        for index in range(5):
            decoders.start(f"greedy {index}", f"heavy {index}", 30, heavy=True)
        await decoders.advance(1)
        decoders.start("modest", "light", 1)
        await decoders.advance(2)
        assert decoders.done == ["light"]
        await decoders.advance(60, step=5)
        assert decoders.done[1:] == ["heavy 0", "heavy 1"], "one after the other"

    runs(scenario)


def test_numbers_of_waiting_requests_are_bounded() -> None:
    async def scenario() -> None:
        decoders = Decoders(1, max_waiting=3, per_owner=2)
        waiting = [decoders.start("a", str(index), 1) for index in range(3)]
        await decoders.settle()
        with pytest.raises(DecodersBusy, match="2 of your requests"):
            await decoders.request("a", "too many of one owner", 1)
        waiting.append(decoders.start("b", "b", 1))
        await decoders.settle()
        assert decoders.slots.waiting == 3
        with pytest.raises(DecodersBusy, match="Too many images"):
            await decoders.request("c", "too many in all", 1)
        await decoders.advance(4)
        assert len(decoders.done) == 4
        assert decoders.slots.waiting == 0
        decoders.start("c", "c", 1)
        await decoders.advance(1)
        assert decoders.done[-1] == "c"

    runs(scenario)


def test_cancelled_request_frees_its_place() -> None:
    async def scenario() -> None:
        decoders = Decoders(1)
        running, waiting = (decoders.start("a", name, 100) for name in ("running", "waiting"))
        decoders.start("b", "other", 1)
        await decoders.settle()
        waiting.cancel()
        await decoders.settle()
        assert decoders.slots.waiting == 1
        running.cancel()
        await decoders.advance(1)
        assert decoders.done == ["other"]

    runs(scenario)


def test_cancellation_at_the_moment_of_the_turn_loses_no_slot() -> None:
    async def scenario() -> None:
        decoders = Decoders(1)
        task = decoders.start("a", "cancelled", 1)
        await asyncio.sleep(0)
        # The slot is granted, and the task has not run since.
        task.cancel()
        await decoders.settle()
        decoders.start("a", "next", 1)
        await decoders.advance(1)
        assert decoders.done == ["next"]

    runs(scenario)


def test_idle_owners_are_forgotten() -> None:
    async def scenario() -> None:
        decoders = Decoders(2)
        for index in range(50):
            decoders.start(str(index), str(index), 1)
        await decoders.advance(30)
        assert len(decoders.done) == 50
        assert not decoders.slots._owners

    runs(scenario)


def test_conversion_of_a_result_waits_also_when_too_many_wait() -> None:
    async def scenario() -> None:
        decoders = Decoders(1, max_waiting=1, per_owner=1)
        decoders.start("a", "0", 1)
        await decoders.settle()
        decoders.start("a", "1", 1)
        await decoders.settle()
        with pytest.raises(DecodersBusy):
            await decoders.request("a", "2", 1)
        conversion = decoders.start("a", "3", 1, may_refuse=False)
        await decoders.advance(3)
        assert conversion.done()
        assert decoders.done == ["0", "1", "3"]

    runs(scenario)
