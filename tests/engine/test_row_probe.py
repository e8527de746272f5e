"""Gates whose rows depend on each other are found, and their calls run one by one."""

import pytest
import torch

from img2img.worker.engine.batching import make_call
from img2img.worker.engine.engine import Engine
from img2img.worker.engine.gate import Gate
from img2img.worker.engine.row_probe import Independence, probe_rows
from tests.support.engines import run_functions


def independent(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return x * t.reshape(-1, 1)


def rounding(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return x * (1 + 1e-6 * len(x))


def of_neighbour(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return x + x.roll(1, 0)


def of_first_row(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return x * x[:1].mean()


def of_three_rows(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Like perturbed attention guidance, which splits the batch in three."""
    a, b, c = x.chunk(3)
    return torch.cat([a, b, c + b])


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (independent, Independence.EXACT),
        (rounding, Independence.ROUNDING),
        (of_neighbour, Independence.NONE),
        (of_first_row, Independence.NONE),
    ],
)
@pytest.mark.parametrize("scalar", [True, False])
def test_probe(function: object, expected: Independence, scalar: bool) -> None:
    t = torch.tensor(3.0) if scalar else torch.full((2,), 3.0)
    call = make_call("gate", (torch.randn(2, 8), t), {})
    assert probe_rows(function, call) is expected


@pytest.mark.parametrize("function", [of_neighbour, of_first_row, of_three_rows])
@pytest.mark.parametrize("rows", [1, 3])
def test_tasks_of_a_gate_with_dependent_rows_get_their_own_results(function: object, rows: int) -> None:
    if function is of_three_rows and rows < 3:
        pytest.skip("needs three rows")
    gate, t = Gate("denoise", function), torch.ones(rows)
    inputs = [torch.randn(rows, 8) for _ in range(6)]
    engine = Engine(slots=6)
    results = run_functions([lambda _, x=x: gate(gate(x, t), t) for x in inputs], engine)
    for x, result in zip(inputs, results, strict=True):
        assert torch.equal(result, function(function(x, t), t))
    assert max(count for _, count in engine.batches_run) == rows


def test_tasks_of_a_gate_with_independent_rows_are_merged() -> None:
    gate = Gate("denoise", independent)
    engine = Engine(slots=6)
    run_functions([lambda _: gate(torch.ones(1, 8), torch.ones(1))] * 6, engine)
    assert engine.batches_run["denoise", 6] == 1


def test_error_of_the_first_call_reaches_its_task_only() -> None:
    def fail(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        if x.shape[1] == 3:
            raise ValueError("three columns")
        return x

    gate = Gate("denoise", fail)
    engine = Engine(slots=2)
    with pytest.raises(ValueError, match="three columns"):
        run_functions([lambda _: gate(torch.ones(1, 3), torch.ones(1))], engine)
    [result] = run_functions([lambda _: gate(torch.ones(1, 8), torch.ones(1))], Engine(slots=1))
    assert len(result) == 1


def test_lack_of_memory_does_not_count_as_dependence() -> None:
    is_full = True

    def run(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        if is_full and len(x) > 1:
            raise torch.OutOfMemoryError("two rows")
        return independent(x, t)

    gate, engine = Gate("denoise", run), Engine(slots=4)
    tasks = [lambda _, i=i: gate(torch.full((1, 2), float(i)), torch.ones(1)) for i in range(4)]
    assert [result[0, 0].item() for result in run_functions(tasks, engine)] == [0, 1, 2, 3]
    assert max(rows for _, rows in engine.batches_run) == 1
    is_full, engine = False, Engine(slots=4)
    run_functions(tasks, engine)
    assert engine.batches_run["denoise", 4] == 1
