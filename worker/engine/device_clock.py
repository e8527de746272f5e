"""Times of work on a device that computes while the engine goes on: by events, without waiting for it."""

import time
from collections.abc import Callable
from typing import Any, Protocol


class DeviceEvent(Protocol):
    """An event of a device, such as `torch.cuda.Event` with `enable_timing`."""

    def record(self) -> Any:
        """Queue the event behind the work that is queued."""

    def query(self) -> bool:
        """Return whether the device has reached the event."""

    def synchronize(self) -> Any:
        """Wait until it has."""

    def elapsed_time(self, later: Any) -> float:
        """Return the milliseconds from this event to a later one. The device has reached both."""


class DeviceMoment:
    """The end of the work that was queued on a device when the moment was made."""

    def __init__(self, clock: "DeviceClock", event: DeviceEvent, number: int) -> None:
        self._clock = clock
        self._event = event
        self._number = number
        self._queued_at = time.perf_counter()
        self._at: float | None = None

    def wait(self) -> None:
        """Wait until the device has done the work."""
        if not self._event.query():
            self._event.synchronize()
            self._clock.base = self._event, self._number, time.perf_counter()

    def at(self) -> float:
        """Wait until the device has done the work. Return when that was, by `time.perf_counter`.

        If the device was lost, it is the time at which the work was queued.
        """
        if self._at is None:
            try:
                self._at = self._measure()
            except RuntimeError:
                self._at = self._queued_at
        return self._at

    def _measure(self) -> float:
        self._event.synchronize()
        event, number, at = self._clock.base
        if number == self._number:
            return at
        if number < self._number:
            return at + event.elapsed_time(self._event) / 1000
        return at - self._event.elapsed_time(event) / 1000


class DeviceClock:
    """Makes moments of one device. Waits for the device once, when it is made.

    Args:
        make_event: returns a new event of the device.
    """

    def __init__(self, make_event: Callable[[], DeviceEvent]) -> None:
        self._make_event = make_event
        self._count = 0
        event = make_event()
        event.record()
        event.synchronize()
        # An event, its number, and the time at which the device reached it.
        self.base = event, 0, time.perf_counter()

    def now(self) -> DeviceMoment:
        """Return the end of the work that is queued now."""
        event = self._make_event()
        event.record()
        self._count += 1
        return DeviceMoment(self, event, self._count)
