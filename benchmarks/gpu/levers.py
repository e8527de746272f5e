"""Options of a model that make it faster, each added to those before it, in one run."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import torch

from benchmarks.gpu import forward
from benchmarks.gpu.budget import Budget
from benchmarks.gpu.report import Report
from benchmarks.gpu.shapes import Shape
from benchmarks.gpu.target import RunningEngine, Target
from benchmarks.pixels import largest_difference
from img2img.worker.engine.engine import Engine
from img2img.worker.engine.row_buckets import bucket_of, buckets_up_to
from img2img.worker.pipelines.model import Model
from img2img.worker.runtime.model_loader import warm_up

# Jobs in flight for the images per second: with fewer, fewer numbers of rows have to be compiled.
IN_FLIGHT = 4


@dataclass(frozen=True)
class Lever:
    """One line of the table.

    Attributes:
        name: of the line.
        keys: of the model file.
        change: changes the pipeline before it is served.
        seconds: that it may take on an H100, of which most are for the compiler.
        missing: why it cannot be measured here.
    """

    name: str
    keys: Mapping[str, Any] = field(default_factory=dict)
    change: Callable[[Any], object] = lambda _pipeline: None
    seconds: float = 15.0
    missing: str | None = None


def levers_of(target: Target) -> list[Lever]:
    """Return the levers in order."""
    tables = {"step_tables": True}
    channels = {**tables, "channels_last": True}
    regional = {**channels, "compile": "regional"}
    # On a CPU it takes the compiler minutes.
    full = {**channels, "compile": "full"} if target.is_cuda else channels
    no_torchao = None if find_spec("torchao") else "the package torchao is not installed"
    found = [
        Lever("eager"),
        Lever("+ `step_tables`", tables),
        Lever("+ `channels_last`", channels),
        Lever('+ `compile = "regional"`, rows in buckets', regional, seconds=45),
        Lever('`compile = "full"` instead', full, seconds=80),
        Lever('+ `quantize = "fp8"`', full, quantize_fp8, seconds=100, missing=no_torchao),
    ]
    return found if target.is_cuda else [lever for lever in found if "full" not in lever.name]


def quantize_fp8(pipeline: Any) -> None:
    """Quantise the denoiser as `quantize = "fp8"` does while it is loaded."""
    from torchao.quantization import Float8WeightOnlyConfig, quantize_

    quantize_(pipeline.components.get("unet") or pipeline.transformer, Float8WeightOnlyConfig())


def run(target: Target, shape: Shape, budget: Budget, report: Report, in_flight: int) -> None:
    """Measure the forward pass with the rows of the most jobs in flight, and images per second with fewer."""
    rows: list[dict[str, Any]] = []
    for lever in levers_of(target):
        needed = lever.seconds if target.is_cuda else 0.0
        if lever.missing or needed > budget.left:
            why = lever.missing or f"needs about {needed:.0f} s of {max(0.0, budget.left):.0f} s"
            report.note(f"{shape.name}: {lever.name} skipped, {why}")
            continue
        with report.part(f"{lever.name} of {shape.name}"):
            row = _measure(target, shape, lever, in_flight, budget)
            for column in ("forward ms", "images/s"):
                _compare(row, rows, column)
            rows.append(row)
        torch.compiler.reset()
        target.release()
    for row in rows:
        row.pop("pngs")
    report.table(f"Levers: {shape.name}, {shape.dtype}, {target.side(shape)} x {target.side(shape)}", rows)
    report.note(f"{shape.name}: CUDA graphs skipped, the engine does not use them")
    eager = next((row for row in rows if row["lever"] == "eager"), None)
    compiled = [row for row in rows if "compile" in row["lever"] or "quantize" in row["lever"]]
    goal = {"sdxl": 1.3, "flux": 1.5}.get(shape.name)
    if goal and eager and compiled and target.is_cuda:
        best = max(eager["forward ms"] / row["forward ms"] for row in compiled)
        report.goal(f"{shape.name}: forward pass, compiled, to eager", best, at_least=goal)


def _compare(row: dict[str, Any], rows: list[dict[str, Any]], column: str) -> None:
    """Add how much faster a line is than the one before, and the difference of its images to the first one."""
    if column in row and rows and column in rows[-1]:
        ratio = row[column] / rows[-1][column]
        row[f"{column}, to the one before"] = 1 / ratio if column.endswith("ms") else ratio
    if rows and column == "images/s":
        row["largest difference to eager"] = largest_difference(row["pngs"], rows[0]["pngs"])


def _measure(target: Target, shape: Shape, lever: Lever, in_flight: int, budget: Budget) -> dict[str, Any]:
    pipeline = target.pipeline(shape, shape.dtype)
    lever.change(pipeline)
    model = target.model(pipeline, **lever.keys)
    slots = min(IN_FLIGHT, in_flight)
    per_job = 2 if shape.uniform["guidance_scale"] > 1 else 1
    rows = bucket_of(per_job * in_flight)
    start = time.perf_counter()
    with RunningEngine(target.engine(slots)) as running:
        compiled = model.compiled
        # The shape of the forward pass that is measured comes first, and the rest if there is time.
        model.compiled = []
        warm_up(model, running.engine)
        model.compiled = compiled
        _compile(model, running.engine, rows)
        row: dict[str, Any] = {"lever": lever.name, "rows": rows, "ready after s": time.perf_counter() - start}
        row["forward ms"] = _forward(target, shape, model, rows)
        for count in buckets_up_to(per_job * slots) if model.compiled else ():
            if budget.left > lever.seconds / 4 or not target.is_cuda:
                _compile(model, running.engine, count)
        row["pngs"] = running.run(model, target.jobs(shape, model, "uniform", slots, 0))
        work = target.jobs(shape, model, "uniform", 2 * slots, 1)
        start = time.perf_counter()
        running.run(model, work)
        row["images/s"] = len(work) / (time.perf_counter() - start)
    memory = target.memory()
    row |= {"allocated GB": memory["allocated"]} if memory else {}
    model.dismantle()
    return row


def _compile(model: Model, engine: Engine, rows: int) -> None:
    """Compile for calls of a number of rows at the side of the jobs, as a worker does for each of them."""
    for compiled in model.compiled:

        def warm(_task: Any, compiled: Any = compiled) -> None:
            compiled.warm_up(rows)

        task = engine.run_task(warm)
        if task.error is not None:
            raise task.error


def _forward(target: Target, shape: Shape, model: Model, rows: int) -> float:
    found = forward.milliseconds(target, shape, model, "denoise", (rows,), lambda: False)
    return found[rows]
