"""How busy the device is in ticks of the engine, and what its thread does between calls of the denoiser."""

import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.shapes import Shape
from benchmarks.gpu.target import Target
from benchmarks.limit import Run, wrapping_gates
from benchmarks.waits import Counting, Counts, Waits, count_waits, run
from benchmarks.workload import Job
from img2img.domain.parameters import Scheduler
from img2img.worker.engine.engine import Engine
from img2img.worker.engine.gate import Gate
from img2img.worker.engine.task import EngineTask
from img2img.worker.pipelines.model import Model

# Steps of jobs, so that all are in the middle of their work while ticks are measured.
STEPS = 60
TICKS = 20


@dataclass
class Ticks:
    """Ticks of the engine, each with one call of the denoiser.

    Attributes:
        host_ms: time of the engine's thread outside of modules, and not waiting for the device.
        wall_ms: all of a tick.
        busy: share of the time in which the device computed.
        launches: kernels and copies of a tick.
        rows: of a call.
    """

    host_ms: float
    wall_ms: float
    busy: float
    launches: float
    rows: float


def measure(target: Target, shape: Shape, model: Model, slots: int) -> Ticks:
    """Run jobs with many steps, as many as there are slots, and look at ticks in the middle."""
    work = [_long(job) for job in target.jobs(shape, model, "uniform", slots, 50)]
    engine, tasks = target.engine(slots), target.tasks(model, work)
    engine.submit(tasks)
    with torch.inference_mode():
        while min(task.step for task in tasks) < 2:
            engine.step()
            _raise_first(tasks)
        rows, calls = engine.rows_run["denoise"], engine.calls_run["denoise"]
        host = _host_times(target, engine)
        wall_s = _wall(target, engine)
        with profile(activities=[ProfilerActivity.CUDA if target.is_cuda else ProfilerActivity.CPU]) as profiler:
            _wall(target, engine)
        rows, calls = engine.rows_run["denoise"] - rows, engine.calls_run["denoise"] - calls
        for task in tasks:
            task.stop()
        while engine.is_busy:
            engine.step()
    kind = DeviceType.CUDA if target.is_cuda else DeviceType.CPU
    events: Any = profiler.profiler.kineto_results.events()  # type: ignore[union-attr]
    own = [event for event in events if event.device_type() == kind]
    spans = [(event.start_ns(), event.start_ns() + event.duration_ns()) for event in own]
    return Ticks(
        host_ms=1e3 * host / TICKS,
        wall_ms=1e3 * wall_s / TICKS,
        # Profiling takes time on the host, so the time of a tick is that without.
        busy=covered(spans) / 1e9 / wall_s,
        launches=len(spans) / TICKS,
        rows=rows / calls,
    )


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """Return the length of the union of spans, each from its start to its end."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def _host_times(target: Target, engine: Engine) -> float:
    """Run ticks. Return the seconds outside of modules in which the thread does not wait for the device."""
    elsewhere = 0.0

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal elsewhere
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                elsewhere += time.perf_counter() - start

        return call

    def timed_gate(_gate: Gate, run: Run) -> Run:
        return timed(run)

    wait = engine._wait_for_device
    engine._wait_for_device = timed(wait)  # type: ignore[method-assign]
    with wrapping_gates(timed_gate):
        start = time.perf_counter()
        for _ in range(TICKS):
            engine.step()
        seconds = time.perf_counter() - start
    engine._wait_for_device = wait  # type: ignore[method-assign]
    target.wait()
    return seconds - elsewhere


def _wall(target: Target, engine: Engine) -> float:
    target.wait()
    start = time.perf_counter()
    for _ in range(TICKS):
        engine.step()
    target.wait()
    return time.perf_counter() - start


def _long(job: Job) -> Job:
    changes = {"num_inference_steps": 3 * TICKS + STEPS, "strength": 1.0}
    return Job(job.spec.model_copy(update=changes), job.png)


def _raise_first(tasks: Sequence[EngineTask]) -> None:
    for task in tasks:
        if task.error is not None:
            raise task.error


def waits_by_scheduler(target: Target, shape: Shape) -> dict[Scheduler, Waits]:
    """Return how often the engine's thread waits for the device.

    On the CPU, the device is one that computes on it: see `tests.support.pretend_device`.
    """
    with _waiting_device(target) as (device, counting), torch.no_grad():
        model = target.model(target.pipeline(shape, shape.dtype if target.is_cuda else "float32"), device)
        side = target.side(shape)
        # The engine compares rows.
        run(model, shape.schedulers[0], 2, counting, side)
        return {scheduler: count_waits(model, scheduler, counting, side) for scheduler in shape.schedulers}


@contextmanager
def _waiting_device(target: Target) -> Iterator[tuple[str, Counting]]:
    if target.is_cuda:
        yield str(target.device), counting_cuda_syncs
        return
    from tests.support.pretend_device import counting_syncs, pretend_device

    with pretend_device() as device:
        yield str(device), counting_syncs


@contextmanager
def counting_cuda_syncs() -> Iterator[Counts]:
    """Count the operations that wait for the CUDA device, by the line of Python that called them."""
    counts: Counts = Counter()
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield counts
        finally:
            torch.cuda.set_sync_debug_mode(before)
            for warning in caught:
                if "called a synchronizing" in str(warning.message):
                    place = "/".join(warning.filename.split("/")[-2:])
                    counts["waits", f"{place}:{warning.lineno}"] += 1
