"""Time of single calls of a model's modules, by their number of rows."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks.gpu.shapes import Shape
from benchmarks.gpu.target import RunningEngine, Target
from benchmarks.limit import Run, wrapping_gates
from benchmarks.sides import forget_outputs
from img2img.worker.engine.batching import GateCall, collate, first_row, make_call, with_rows
from img2img.worker.engine.gate import Gate
from img2img.worker.pipelines.model import Model

REPEATS = 10


def example_calls(target: Target, shape: Shape, model: Model) -> dict[str, tuple[Gate, GateCall]]:
    """Run a job. Return the gate and the first row of a call of each stage, with timesteps as one value per row."""
    calls: dict[str, tuple[Gate, GateCall]] = {}

    def record(gate: Gate, run: Run) -> Run:
        def call(*args: Any, **kwargs: Any) -> Any:
            if gate.name not in calls:
                described = make_call(0, args, kwargs, gate._shared)
                calls[gate.name] = gate, first_row(make_call(0, *with_rows(described), gate._shared))
            return run(*args, **kwargs)

        return call

    # What is remembered is not called.
    forget_outputs()
    with wrapping_gates(record), RunningEngine(target.engine(1)) as engine:
        engine.run(model, target.jobs(shape, model, "uniform", 1, 60))
    return calls


def repeated(gate: Gate, example: GateCall, rows: int) -> Callable[[], Any]:
    """Return a call with the row of the example as often as given."""
    args, kwargs = collate([example], padding=rows - 1)
    return lambda: gate.run(*args, **kwargs)


def milliseconds(
    target: Target, shape: Shape, model: Model, name: str, rows: Sequence[int], enough: Callable[[], bool]
) -> dict[int, float]:
    """Return the time of calls of one stage by their number of rows.

    Args:
        name: of the stage.
        rows: in ascending order. Those that do not fit into memory are left out, as are those after `enough`.
        enough: whether no time is left.
    """
    found: dict[int, float] = {}
    gate, example = example_calls(target, shape, model)[name]
    with torch.inference_mode():
        for count in rows:
            if enough():
                break
            try:
                found[count] = 1e3 * target.seconds(repeated(gate, example, count), REPEATS)
            except torch.OutOfMemoryError:
                break
    target.release()
    return found
