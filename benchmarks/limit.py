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
# Calls of each kind that are timed; the fastest counts.
REPEATS = 5


class Calls:
    """The calls of one gate: rows in all, and the call with the most rows."""

    def __init__(self) -> None:
        self.rows, self.largest = 0, 0
        self.call: Callable[[], Any] = lambda: None

    def note(self, run: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor) and value.ndim]
        rows = len(tensors[0])
        self.rows += rows
        if rows > self.largest:
            self.largest, self.call = rows, lambda: run(*args, **kwargs)

    def seconds(self) -> float:
        """Return the time of all rows at the speed of the largest call."""
        self.call()
        times = []
        for _ in range(REPEATS):
            start = time.perf_counter()
            self.call()
            times.append(time.perf_counter() - start)
        return min(times) / self.largest * self.rows


def images_per_s(model: Model, jobs: Sequence[Job]) -> float:
    """Return the images per second if only the modules took time, each with as many rows as the engine gave it."""
    calls: defaultdict[str, Calls] = defaultdict(Calls)
    with _recorded(calls):
        in_engine(model, SLOTS, jobs)
    with torch.inference_mode():
        return len(jobs) / sum(gate.seconds() for gate in calls.values())


@contextmanager
def _recorded(calls: defaultdict[str, Calls]) -> Iterator[None]:
    """Note the calls of all gates of this process."""
    gates = [found for found in gc.get_objects() if isinstance(found, Gate)]
    originals = [gate.run for gate in gates]

    def recording(name: str, run: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls[name].note(run, args, kwargs)
            return run(*args, **kwargs)

        return call

    for gate in gates:
        gate.run = recording(gate.name, gate.run)
    try:
        yield
    finally:
        for gate, original in zip(gates, originals, strict=True):
            gate.run = original
