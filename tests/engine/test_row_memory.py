"""Row limits from the measured memory of calls."""

import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
import torch

from img2img.container_limits import memory_bytes
from img2img.worker.engine.engine import Engine
from img2img.worker.engine.gate import Gate
from img2img.worker.engine.task import EngineTask
from img2img.worker.runtime.memory_meter import memory_meter
from tests.support.engines import one_thread, run_functions  # noqa: F401

SIDE = 256
# What `denoise` allocates for a row.
ROW_BYTES = 16 * SIDE * SIDE * 4


def denoise(sample: torch.Tensor) -> torch.Tensor:
    """Use `ROW_BYTES` for each row."""
    return sample.repeat(1, 16, 1, 1).sin_().sum(dim=1, keepdim=True)


class LimitedMeter:
    """A meter of a device with `free` bytes, on which `denoise` uses `ROW_BYTES` for each row."""

    def __init__(self, free: int) -> None:
        self._free = free

    def measure(self, run: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, int]:
        output = run()
        return output, 16 * output.nbytes

    def free(self) -> int:
        return self._free


@pytest.fixture
def gate() -> Gate:
    return Gate("denoise", denoise)


def warm_up(engine: Engine, gate: Gate, rows: int, side: int = SIDE) -> None:
    task = EngineTask(lambda _: gate(torch.zeros(rows, 1, side, side)), lambda _: None, measures_memory=True)
    engine.submit([task])
    while engine.is_busy:
        engine.step()
    assert task.error is None


def largest_batch(engine: Engine) -> int:
    return max(rows for _, rows in engine.batches_run)


@pytest.fixture(params=[2, 4])
def rows(request: pytest.FixtureRequest) -> Iterator[int]:
    return request.param  # type: ignore[no-any-return]


MEASURE = """
import sys
import torch
from img2img.worker.runtime.allocator import configure_malloc
from img2img.worker.runtime.memory_meter import CpuMeter
configure_malloc()
torch.set_num_threads(1)
def denoise(rows):
    torch.zeros(rows, 16, 256, 256).sin_().sum(dim=1)
denoise(2)
print(*(CpuMeter().measure(lambda rows=int(rows): denoise(rows))[1] for rows in sys.argv[1:]))
"""


def test_meter_measures_the_peak_of_a_call() -> None:
    """In a process with the allocator of a worker, where memory of earlier calls is free but resident."""
    counts = (2, 8, 4, 16, 2)
    command = [sys.executable, "-c", MEASURE, *map(str, counts)]
    used = map(int, subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())
    for count, found in zip(counts, used, strict=True):
        assert found == pytest.approx(count * ROW_BYTES, rel=0.3)


def test_batch_fits_into_the_free_memory(gate: Gate, rows: int) -> None:
    inputs = [torch.randn(1, 1, SIDE, SIDE) for _ in range(16)]
    functions = [lambda _, x=x: gate(gate(x)) for x in inputs]
    engine = Engine(slots=16, meter=LimitedMeter(6 * ROW_BYTES))
    warm_up(engine, gate, rows)
    engine.batches_run.clear()
    results = run_functions(functions, engine)
    assert 3 <= largest_batch(engine) <= 6
    for x, result in zip(inputs, results, strict=True):
        assert torch.equal(result, denoise(denoise(x)))


def test_limit_follows_the_size_of_a_row(gate: Gate) -> None:
    engine = Engine(slots=64, meter=LimitedMeter(6 * ROW_BYTES))
    warm_up(engine, gate, 4)
    engine.batches_run.clear()
    run_functions([lambda _: gate(torch.zeros(1, 1, SIDE // 2, SIDE // 2))] * 64, engine)
    assert 12 <= largest_batch(engine) <= 24


def test_one_job_runs_whatever_memory_is_free(gate: Gate) -> None:
    engine = Engine(slots=16, meter=LimitedMeter(0))
    warm_up(engine, gate, 2)
    [result] = run_functions([lambda _: gate(torch.ones(8, 1, SIDE, SIDE))], engine)
    assert len(result) == 8


def test_other_gates_of_the_same_name_have_the_same_limit(gate: Gate) -> None:
    engine = Engine(slots=16, meter=LimitedMeter(6 * ROW_BYTES))
    warm_up(engine, gate, 4)
    engine.batches_run.clear()
    other = Gate("denoise", denoise)
    run_functions([lambda _: other(torch.zeros(1, 1, SIDE, SIDE))] * 16, engine)
    assert largest_batch(engine) <= 6


def test_calls_that_were_not_measured_have_no_limit(gate: Gate) -> None:
    engine = Engine(slots=16, meter=LimitedMeter(0))
    run_functions([lambda _: gate(torch.zeros(1, 1, SIDE, SIDE))] * 16, engine)
    assert largest_batch(engine) == 16


def test_free_memory_of_this_machine() -> None:
    meter = memory_meter("cpu")
    assert meter is not None
    assert 0 < meter.free() <= memory_bytes()
    assert memory_meter("mps") is None
