"""What shows over time: leaks, running out of memory, and how soon a job begins and ends."""

import gc
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.budget import Budget
from benchmarks.gpu.report import Report
from benchmarks.gpu.shapes import Shape
from benchmarks.gpu.target import RunningEngine, Target
from benchmarks.limit import Run, wrapping_gates
from benchmarks.memory import resident_bytes
from benchmarks.pixels import largest_difference
from benchmarks.trend import slope_per_hour
from benchmarks.workload import Job
from img2img.worker.engine.engine import Engine
from img2img.worker.engine.gate import Gate, TaskGreenlet
from img2img.worker.engine.task import EngineTask
from img2img.worker.pipelines.model import Model
from img2img.worker.runtime.allocator import trim_malloc

LEAK_S = 60.0
MB = 1e6
# Growth that counts as a leak.
ALLOCATED_MB, RESIDENT_MB = 1.0, 5.0
LATENCIES = 30
# Seconds between two jobs whose latency is measured, at most.
GAP_S = 0.3


def run(target: Target, shape: Shape, budget: Budget, report: Report, in_flight: int) -> None:
    """Look for leaks, let memory run out, and measure latencies."""
    model = target.model(target.pipeline(shape, shape.dtype))
    target.warm(model, in_flight)
    parts = (("leaks", _leaks), ("running out of memory", _out_of_memory), ("latencies", _latencies))
    for (name, part), share in zip(parts, budget.shares([3, 1, 1]), strict=True):
        with report.part(f"{name} of {shape.name}"):
            part(target, shape, model, share, report, in_flight)
    model.dismantle()


def _leaks(target: Target, shape: Shape, model: Model, budget: Budget, report: Report, in_flight: int) -> None:
    """Run the same mixed jobs again and again. Everything that is kept for later jobs is then kept after the first."""
    seconds = min(LEAK_S, budget.left * 0.8)
    work = target.jobs(shape, model, "mixed", in_flight, 0)
    samples: list[tuple[float, float, float]] = []
    with RunningEngine(target.engine(in_flight)) as running:
        running.run(model, work)
        start = time.monotonic()
        while len(samples) < 4 or time.monotonic() - start < seconds:
            running.run(model, work)
            gc.collect()
            trim_malloc()
            target.wait()
            allocated = torch.cuda.memory_allocated(target.device) if target.is_cuda else 0
            samples.append((time.monotonic() - start, allocated / MB, resident_bytes() / MB))
    alive = sum(issubclass(type(found), TaskGreenlet) for found in gc.get_objects())
    settled = samples[len(samples) // 4 :]
    rows = []
    for name, at, limit in (("allocated on the device", 1, ALLOCATED_MB), ("resident", 2, RESIDENT_MB)):
        slope, error = slope_per_hour([sample[0] for sample in settled], [sample[at] for sample in settled])
        values = [sample[at] for sample in settled]
        row = {"memory": name, "first MB": values[0], "last MB": values[-1], "MB/min": slope / 60, "+-": error / 60}
        rows.append(row)
        # What is left of the slope after twice its standard error.
        report.goal(f"{shape.name}: {name}, MB/min", (slope - 2 * error) / 60, at_most=limit, decides=True)
    report.goal(f"{shape.name}: greenlets that are left", alive, at_most=0, decides=True)
    report.table(f"Leaks: {shape.name}, {len(samples)} rounds of {len(work)} mixed jobs", rows)


def _out_of_memory(target: Target, shape: Shape, model: Model, budget: Budget, report: Report, in_flight: int) -> None:
    """Let a call with the rows of all jobs fail. Each job has to end with its image all the same."""
    if budget.left <= 0:
        report.note(f"{shape.name}: running out of memory skipped, the time is used up")
        return
    work = target.jobs(shape, model, "uniform", in_flight, 5)
    with _peaks(target) as peaks, RunningEngine(target.engine(in_flight)) as running:
        expected = running.run(model, work)
    engine = target.engine(in_flight, meter=None)
    with _less_memory(target, peaks, report) as is_less, RunningEngine(engine) as running:
        if not is_less:
            return
        pngs = running.run(model, work)
    most = max(rows for name, rows in engine.batches_run if name == "denoise")
    rows = {
        "jobs": len(work),
        "rows at most, before": max(rows for name, rows in peaks if name == "denoise"),
        "with less memory": most,
        "largest difference": largest_difference(pngs, expected),
    }
    report.table(f"Running out of memory: {shape.name}", [rows])
    report.goal(
        f"{shape.name}: rows of a call after running out of memory", most, at_most=rows["rows at most, before"] - 1
    )


Peaks = dict[tuple[str, int], int]


@contextmanager
def _peaks(target: Target) -> Iterator[Peaks]:
    """Note the most memory of a call by its stage and rows, beyond what was in use before."""
    peaks: Peaks = {}

    def measured(gate: Gate, run: Run) -> Run:
        def call(*args: Any, **kwargs: Any) -> Any:
            target.reset_peak()
            before = torch.cuda.memory_allocated(target.device) if target.is_cuda else 0
            output = run(*args, **kwargs)
            used = torch.cuda.max_memory_allocated(target.device) - before if target.is_cuda else 0
            key = gate.name, _rows_of(args, kwargs)
            peaks[key] = max(used, peaks.get(key, 0))
            return output

        return call

    with wrapping_gates(measured):
        yield peaks


@contextmanager
def _less_memory(target: Target, peaks: Peaks, report: Report) -> Iterator[bool]:
    """Leave too little memory for the largest call of the denoiser. Yields whether that is possible.

    On the CPU, calls of more than half of its rows raise the error that a device would.
    """
    most, needed = max((rows, used) for (name, rows), used in peaks.items() if name == "denoise")
    if not target.is_cuda:

        def limited(gate: Gate, run: Run) -> Run:
            def call(*args: Any, **kwargs: Any) -> Any:
                if gate.name == "denoise" and _rows_of(args, kwargs) > most // 2:
                    raise torch.OutOfMemoryError("not enough memory for a rehearsal")
                return run(*args, **kwargs)

            return call

        with wrapping_gates(limited):
            yield True
        return
    others = max(used for (name, _), used in peaks.items() if name != "denoise")
    if others * 1.3 > needed * 0.7:
        report.note("running out of memory skipped: another call needs as much memory as the largest of the denoiser")
        yield False
        return
    target.release()
    limit = torch.cuda.memory_allocated(target.device) + needed * 0.7
    total = torch.cuda.get_device_properties(target.device).total_memory
    torch.cuda.set_per_process_memory_fraction(limit / total, target.device)
    try:
        yield True
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, target.device)


def _rows_of(args: Sequence[Any], kwargs: dict[str, Any]) -> int:
    tensors = (value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor) and value.dim())
    return next((len(tensor) for tensor in tensors), 0)


def _latencies(target: Target, shape: Shape, model: Model, budget: Budget, report: Report, in_flight: int) -> None:
    """Send jobs of one step, and jobs that are stopped, while all but one of the slots are in use."""
    choose = random.Random(0)
    engine = target.engine(in_flight + 1)
    short = target.jobs(shape, model, "uniform", 1, 70)[0]
    with RunningEngine(engine):
        alone = [_one_step(target, model, engine, short) for _ in range(5)]
        others = target.tasks(model, [_endless(job) for job in target.jobs(shape, model, "uniform", in_flight, 71)])
        engine.submit(others)
        while min(task.step for task in others) < 1 and not any(task.error for task in others):
            time.sleep(0.01)
        beside, stopped = [], []
        while len(beside) < 3 or (len(beside) < LATENCIES and budget.left > 0):
            time.sleep(choose.uniform(0, GAP_S))
            beside.append(_one_step(target, model, engine, short))
            time.sleep(choose.uniform(0, GAP_S))
            stopped.append(_stop(target, model, engine, _endless(short)))
        for task in others:
            task.stop()
    rows = [
        {"latency": "admission, alone", **_quantiles(alone, 0)},
        {"latency": "admission", **_quantiles(beside, 0)},
        {"latency": "job of one step, alone", **_quantiles(alone, 1)},
        {"latency": "job of one step", **_quantiles(beside, 1)},
        {"latency": "stop", **_quantiles(stopped, 0)},
    ]
    report.table(f"Latencies: {shape.name}, {in_flight} other jobs", rows)
    for row, name in ((rows[1], "admission"), (rows[4], "stop")):
        report.goal(f"{shape.name}: {name}, ticks, p99", row["ticks p99"], at_most=2)


def _endless(job: Job) -> Job:
    changes = {"num_inference_steps": 150, "strength": 1.0}
    return Job(job.spec.model_copy(update=changes), job.png)


Latency = tuple[float, int]  # ms, and iterations of the engine


def _one_step(target: Target, model: Model, engine: Engine, job: Job) -> list[Latency]:
    """Return how long it takes until a job of one step is admitted, and until it has ended on the device."""
    spec = job.spec.model_copy(update={"num_inference_steps": 1, "strength": 1.0})
    [task] = target.tasks(model, [Job(spec, job.png)])
    begun: list[Latency] = []
    start, before = time.perf_counter(), engine.iteration
    function = task.function

    def noted(task: EngineTask) -> Any:
        begun.append((1e3 * (time.perf_counter() - start), engine.iteration - before))
        return function(task)

    ended = engine.run_task(noted)
    if ended.error is not None:
        raise ended.error
    # Waits until the device has done the last stage.
    last = max(stage.end for stage in ended.timeline.stages.values())
    return [begun[0], (1e3 * (last - start), engine.iteration - before)]


def _stop(target: Target, model: Model, engine: Engine, job: Job) -> list[Latency]:
    """Return how long it takes until a job has ended after it was stopped."""
    [task] = target.tasks(model, [job])
    ends: list[Latency] = []
    task.on_done = lambda _task: ends.append((time.perf_counter(), engine.iteration))
    engine.submit([task])
    while task.step < 2:
        time.sleep(0.001)
    start, before = time.perf_counter(), engine.iteration
    task.stop()
    while not ends:
        time.sleep(0.0005)
    return [(1e3 * (ends[0][0] - start), ends[0][1] - before)]


def _quantiles(samples: Sequence[Sequence[Latency]], index: int) -> dict[str, float]:
    ms, ticks = np.array([sample[index] for sample in samples], float).T
    return {
        "ms p50": float(np.percentile(ms, 50)),
        "ms p99": float(np.percentile(ms, 99)),
        "ticks p50": float(np.percentile(ticks, 50)),
        "ticks p99": float(np.percentile(ticks, 99)),
        "samples": len(samples),
    }
