"""The speed that the modules of a model allow: its forward passes alone, with nothing between them."""

import gc
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from benchmarks.sides import in_engine
from benchmarks.workload import Job
from img2img.worker.engine.gate import Gate
from img2img.worker.pipelines.model import Model

SLOTS = 16
Run = Callable[..., Any]
# Calls of each kind that are timed.
REPEATS = 5


class Calls:
    """The calls of one gate: rows in all, and the call with the most rows."""

    def __init__(self) -> None:
        self.rows, self.largest = 0, 0
        self.call: Callable[[], Any] = lambda: None

    def note(self, run: Run, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor) and value.ndim]
        rows = len(tensors[0])
        self.rows += rows
        if rows > self.largest:
            self.largest, self.call = rows, lambda: run(*args, **kwargs)

    def seconds(self, wait: Callable[[], object]) -> float:
        """Return the time of all rows at the mean speed of the largest call.

        Args:
            wait: returns once the device has done its work.
        """
        self.call()
        wait()
        start = time.perf_counter()
        for _ in range(REPEATS):
            self.call()
        wait()
        return (time.perf_counter() - start) / REPEATS / self.largest * self.rows


def images_per_s(model: Model, jobs: Sequence[Job], slots: int = SLOTS) -> float:
    """Return the images per second if only the modules took time, each with as many rows as the engine gave it."""
    calls: defaultdict[str, Calls] = defaultdict(Calls)

    def record(gate: Gate, run: Run) -> Run:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls[gate.name].note(run, args, kwargs)
            return run(*args, **kwargs)

        return call

    with wrapping_gates(record):
        in_engine(model, slots, jobs)
    wait = waiting_for(model.device)
    with torch.inference_mode():
        return len(jobs) / sum(gate.seconds(wait) for gate in calls.values())


def waiting_for(device: torch.device) -> Callable[[], object]:
    """Return a function that waits until a device has done its work."""
    return torch.cuda.synchronize if device.type == "cuda" else lambda: None


@contextmanager
def wrapping_gates(wrap: Callable[[Gate, Run], Run]) -> Iterator[None]:
    """Replace the functions of all gates of this process.

    Args:
        wrap: gets a gate and its function, and returns another function.
    """
    gates = [found for found in gc.get_objects() if issubclass(type(found), Gate)]
    originals = [gate.run for gate in gates]
    for gate in gates:
        gate.run = wrap(gate, gate.run)
    try:
        yield
    finally:
        for gate, original in zip(gates, originals, strict=True):
            gate.run = original
