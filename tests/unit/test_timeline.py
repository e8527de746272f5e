"""Wall-clock time of a job by stage."""

import time
from collections.abc import Callable

import pytest

from img2img.worker.engine.device_clock import DeviceClock
from img2img.worker.engine.timeline import Stage, Timeline


def test_add_sums_intervals_of_a_stage():
    timeline = Timeline()
    timeline.add("denoise", 1.0, 2.0)
    timeline.add("decode", 2.0, 2.5)
    timeline.add("denoise", 5.0, 7.0)
    assert timeline.stages == {"denoise": Stage(1.0, 7.0, 3.0), "decode": Stage(2.0, 2.5, 0.5)}
    assert timeline.seconds() == {"denoise": 3.0, "decode": 0.5}


def test_merge_takes_first_start_last_end_and_longest_seconds():
    first, second, job = Timeline(), Timeline(), Timeline()
    first.add("denoise", 1.0, 4.0)
    second.add("denoise", 3.0, 5.0)
    second.add("decode", 5.0, 6.0)
    job.add("load", 0.0, 1.0)
    job.merge([first, second])
    assert job.stages == {"load": Stage(0.0, 1.0, 1.0), "denoise": Stage(1.0, 5.0, 3.0), "decode": Stage(5.0, 6.0, 1.0)}


class Device:
    """A device whose work takes as long as the test says, and that ends it when the test, or someone, waits for it."""

    def __init__(self) -> None:
        self.began_at = time.perf_counter()
        self.queued_s = 0.0  # time that all queued work takes
        self.done_s = 0.0

    def event(self) -> "Event":
        return Event(self)


class Event:
    def __init__(self, device: Device) -> None:
        self.device = device

    def record(self) -> None:
        self.at_s = self.device.queued_s

    def query(self) -> bool:
        return self.at_s <= self.device.done_s

    def synchronize(self) -> None:
        self.device.done_s = max(self.device.done_s, self.at_s)

    def elapsed_time(self, later: "Event") -> float:
        assert later.at_s >= self.at_s
        assert later.query(), "the device has not reached the event"
        return 1000 * (later.at_s - self.at_s)


@pytest.mark.parametrize("wait", [lambda moment: None, lambda moment: moment.wait()], ids=["unseen", "seen"])
def test_moments_have_the_distances_of_the_device(wait: Callable[[object], None]) -> None:
    device = Device()
    clock = DeviceClock(device.event)
    moments = []
    for seconds in (0.5, 1.0, 2.0):
        device.queued_s += seconds
        moments.append(clock.now())
    assert device.done_s == 0, "nothing waits for the device"
    wait(moments[1])
    first, second, third = (moment.at() for moment in moments)
    assert (second - first, third - second) == (pytest.approx(1.0), pytest.approx(2.0))


def test_moment_of_a_lost_device_is_when_the_work_was_queued(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_event: Event) -> None:
        raise RuntimeError("CUDA error: the device was lost")

    device = Device()
    clock = DeviceClock(device.event)
    device.queued_s = 1000.0
    moment = clock.now()
    monkeypatch.setattr(Event, "synchronize", fail)
    assert moment.at() == pytest.approx(time.perf_counter(), abs=60)


def test_stages_end_with_the_device_and_do_not_overlap() -> None:
    """The engine has queued a decode before the device has ended the denoising."""
    device, timeline = Device(), Timeline()
    clock = DeviceClock(device.event)
    began_at = time.perf_counter()
    for name, seconds in (("denoise", 3.0), ("denoise", 3.0), ("decode", 1.0)):
        device.queued_s += seconds
        timeline.add(name, began_at, clock.now())
    job = Timeline()
    job.add("load", began_at - 1.0, began_at)
    job.merge([timeline])
    assert device.done_s == 0, "nothing waits for the device"
    assert job.seconds() == {
        "load": pytest.approx(1.0),
        "denoise": pytest.approx(6.0, abs=0.5),
        "decode": pytest.approx(1.0),
    }
    assert job.stages["decode"].start == job.stages["denoise"].end
