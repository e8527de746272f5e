"""How many rows of a call fit into the free memory, from measured calls."""

import logging
import time
from collections.abc import Callable
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from .batching import GateCall
from .gate import Gate

log = logging.getLogger(__name__)

# Part of the free memory that one call may use. The rest is for its output, for fragmentation and for other programs.
SHARE = 0.85
# How long a reading of the free memory is used, because reading it for each call would take longer than the scheduling.
READING_S = 0.5
MB = 1e6


class MemoryMeter(Protocol):
    """Measures the memory of a device."""

    def measure(self, run: Callable[[], Any]) -> tuple[Any, int]:
        """Call `run`. Return its output, and the most bytes in use during the call beyond those before it."""

    def free(self) -> int:
        """Return the free bytes."""


class RowMemory:
    """Row limits by gate, so that a full batch fits into memory.

    The memory of a row is proportional to the size of its first tensor: latents for a denoiser and a decoder, pixels
    for an encoder. Attention without a quadratic buffer needs no more. A call that still runs out of memory is repeated
    with fewer rows, see `BatchLimits`.

    Args:
        meter: measures the memory of the device on which the calls run.
    """

    def __init__(self, meter: MemoryMeter) -> None:
        self._meter = meter
        self._bytes_per_value: WeakKeyDictionary[Gate, float] = WeakKeyDictionary()
        self._free = 0
        self._read_at = 0.0

    def measure(self, gate: Gate, call: GateCall, run: Callable[[], Any]) -> Any:
        """Run a call and learn from it."""
        output, used = self._meter.measure(run)
        if used > 0:
            per_value = used / call.rows / call.row_size
            self._bytes_per_value[gate] = max(per_value, self._bytes_per_value.get(gate, 0.0))
            self._read_at = 0.0
            limit = self.limit_of(gate, call)
            log.info("%s: %.1f MB per row; %d rows fit into memory", gate.name, used / call.rows / MB, limit)
        return output

    def limit_of(self, gate: Gate, call: GateCall) -> int | None:
        """Return the most rows of calls like this one; None if no call of a gate of that name was measured."""
        per_value = self._bytes_per_value.get(gate) or self._largest(gate.name)
        if per_value is None:
            return None
        now = time.monotonic()
        if now - self._read_at >= READING_S:
            self._free, self._read_at = self._meter.free(), now
        return int(SHARE * self._free / (per_value * call.row_size))

    def _largest(self, name: str) -> float | None:
        """Return the largest value of the gates of a name, such as those of all denoisers."""
        return max((value for gate, value in self._bytes_per_value.items() if gate.name == name), default=None)
