"""The clock of a CUDA device. Other devices have none: their calls count as ended when their functions return."""

from typing import Any

import torch

from ..engine.device_clock import DeviceClock


class _CudaEvent:
    """An event of the current stream of a device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        # A waiting thread sleeps instead of using a core.
        self._event: Any = torch.cuda.Event(enable_timing=True, blocking=True)  # type: ignore[no-untyped-call]

    def record(self) -> None:
        self._event.record(torch.cuda.current_stream(self._device))

    def query(self) -> bool:
        return bool(self._event.query())

    def synchronize(self) -> None:
        self._event.synchronize()

    def elapsed_time(self, later: "_CudaEvent") -> float:
        return float(self._event.elapsed_time(later._event))


def device_clock(name: str) -> DeviceClock | None:
    """Return the clock of a device; None unless it is a CUDA device."""
    device = torch.device(name)
    if device.type != "cuda":
        return None
    return DeviceClock(lambda: _CudaEvent(device))
