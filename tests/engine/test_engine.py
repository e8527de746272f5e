"""The engine on small functions of its own: merging, failing, stopping."""

import contextlib
import gc
import threading
import traceback
import weakref
from collections import namedtuple
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from img2img.worker.engine import Engine, EngineTask, Gate, TaskStopped
from img2img.worker.engine import batching as calls
from img2img.worker.engine.batching import collate, content, make_call, split


def run_all(engine: Engine, works: Sequence[Callable[[EngineTask], Any]]) -> list[EngineTask]:
    """Runs the works on the engine, here and now, and returns their tickets in order."""
    tickets = [EngineTask(work, lambda _ticket: None) for work in works]
    engine.submit(tickets)
    engine.shut_down()
    engine.run()
    return tickets


def values(tickets: Sequence[EngineTask]) -> list[Any]:
    for ticket in tickets:
        if ticket.error is not None:
            raise ticket.error
    return [ticket.result for ticket in tickets]


class Doubler:
    """A module that doubles its input, and remembers how many rows each of its calls had."""

    def __init__(self) -> None:
        self.rows: list[int] = []

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        self.rows.append(len(x))
        return 2 * x


class FailsOnNegative(Doubler):
    """Fails for the whole batch when any row is negative."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if (x < 0).any():
            raise ValueError("a negative row")
        return super().__call__(x)


class RunsOutOfMemory(Doubler):
    """Has no room for more than four rows."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) > 4:
            raise torch.OutOfMemoryError("too many rows")
        return super().__call__(x)


class SharesItsOutput(Doubler):
    """Answers every call with one tensor that has no rows."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return super().__call__(x).sum(0)


class DependsOnRows(Doubler):
    """Gives other last bits to a row that is not alone in its call, as matrix products do on many processors."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        output = super().__call__(x)
        return output if len(x) == 1 else torch.nextafter(output, torch.full_like(output, torch.inf))


def repeat(gate: Gate, x: float, times: int, shape: tuple[int, ...] = (1, 2)) -> Callable[[EngineTask], float]:
    def work(_ticket: EngineTask) -> float:
        tensor = torch.full(shape, x)
        for _ in range(times):
            tensor = gate(tensor)
        return float(tensor.flatten()[0])

    return work


def test_jobs_of_different_lengths_share_calls_and_keep_their_values():
    module = Doubler()
    gate = Gate("double", module)
    tickets = run_all(Engine(slots=8), [repeat(gate, float(i), times) for i, times in enumerate([1, 2, 3, 3])])
    assert values(tickets) == [0 * 2, 1 * 4, 2 * 8, 3 * 8]
    assert module.rows == [4, 3, 2]


def test_shapes_that_differ_do_not_merge_and_do_not_starve():
    module = Doubler()
    gate = Gate("double", module)
    works = [repeat(gate, 1.0, 3), repeat(gate, 1.0, 3, shape=(1, 5)), repeat(gate, 1.0, 3)]
    assert values(run_all(Engine(slots=8), works)) == [8, 8, 8]
    assert sorted(module.rows) == [1, 1, 1, 2, 2, 2]


def test_no_more_jobs_than_slots_are_in_flight():
    module = Doubler()
    gate = Gate("double", module)
    values(run_all(Engine(slots=2), [repeat(gate, 1.0, 2) for _ in range(5)]))
    assert max(module.rows) == 2


def test_a_newcomer_joins_at_the_next_tick():
    module = Doubler()
    gate = Gate("double", module)
    engine = Engine(slots=8)
    late = EngineTask(repeat(gate, 1.0, 2), lambda _ticket: None)

    def first(_ticket: EngineTask) -> None:
        x = torch.ones(1, 2)
        for i in range(5):
            if i == 2:
                engine.submit([late])
            x = gate(x)

    values(run_all(engine, [first]))
    assert module.rows == [1, 1, 2, 2, 1]
    assert late.result == 4


def test_a_poisonous_job_fails_alone():
    gate = Gate("double", FailsOnNegative())
    tickets = run_all(Engine(slots=8), [repeat(gate, x, 2) for x in (1.0, -1.0, 3.0)])
    assert [ticket.result for ticket in tickets] == [4, None, 12]
    assert isinstance(tickets[1].error, ValueError)


def test_out_of_memory_halves_the_rows_and_loses_no_job():
    module = RunsOutOfMemory()
    gate = Gate("double", module)
    assert values(run_all(Engine(slots=16), [repeat(gate, 1.0, 2) for _ in range(16)])) == [4] * 16
    assert max(module.rows) == 4


def test_a_job_that_does_not_fit_even_alone_fails_with_its_error():
    gate = Gate("double", RunsOutOfMemory())
    tickets = run_all(Engine(slots=4), [repeat(gate, 1.0, 1, shape=(5, 2)), repeat(gate, 1.0, 1)])
    assert isinstance(tickets[0].error, torch.OutOfMemoryError)
    assert tickets[1].result == 2


def test_an_output_without_rows_is_never_shared_between_jobs():
    module = SharesItsOutput()
    tickets = run_all(Engine(slots=4), [repeat(Gate("share", module), 1.0, 1) for _ in range(1)])
    assert values(tickets) == [2]
    gate = Gate("share", module)
    assert values(run_all(Engine(slots=4), [repeat(gate, float(i), 1) for i in range(3)])) == [0, 2, 4]
    with pytest.raises(TypeError, match="cannot be split"):
        split(torch.zeros(5), [1, 2])


def test_an_exception_in_a_job_ends_that_job_only():
    gate = Gate("double", Doubler())

    def fails(_ticket: EngineTask) -> None:
        gate(torch.ones(1, 2))
        raise RuntimeError("mine alone")

    tickets = run_all(Engine(slots=4), [fails, repeat(gate, 1.0, 3)])
    assert str(tickets[0].error) == "mine alone"
    assert tickets[1].result == 8


def test_a_stopped_job_leaves_at_the_next_tick_and_cannot_swallow_its_end():
    module = Doubler()
    gate = Gate("double", module)

    def swallows_errors(ticket: EngineTask) -> None:
        x = torch.ones(1, 2)
        for i in range(100):
            if i == 2:
                ticket.stop()
            with contextlib.suppress(Exception):
                x = gate(x)

    tickets = run_all(Engine(slots=4), [swallows_errors, repeat(gate, 1.0, 4)])
    assert isinstance(tickets[0].error, TaskStopped)
    assert tickets[1].result == 16
    assert module.rows == [2, 2, 1, 1]


def test_a_job_stopped_before_its_admission_never_calls_a_module():
    module = Doubler()
    ticket = EngineTask(repeat(Gate("double", module), 1.0, 1), lambda _ticket: None)
    ticket.stop()
    engine = Engine(slots=1)
    engine.submit([ticket])
    engine.shut_down()
    engine.run()
    assert isinstance(ticket.error, TaskStopped)
    assert module.rows == []


def test_a_gate_with_memory_answers_equal_calls_without_running():
    module = Doubler()
    gate = Gate("double", module, remember_bytes=1024)
    assert values(run_all(Engine(slots=1), [repeat(gate, 3.0, 1) for _ in range(4)])) == [6] * 4
    assert module.rows == [1]


def test_a_gate_with_memory_gives_every_job_what_it_gives_a_job_alone():
    alone = values(run_all(Engine(slots=1), [repeat(Gate("double", DependsOnRows(), remember_bytes=1024), 3.0, 1)]))
    gate = Gate("double", DependsOnRows(), remember_bytes=1024)
    in_company = values(run_all(Engine(slots=4), [repeat(gate, x, 1) for x in (3.0, 1.0, 3.0, 2.0)]))
    afterwards = values(run_all(Engine(slots=1), [repeat(gate, 3.0, 1)]))
    assert [in_company[0], in_company[2], *afterwards] == alone * 3


def test_equal_calls_that_wait_at_a_gate_with_memory_run_once():
    module = Doubler()
    engine = Engine(slots=8)
    gate = Gate("double", module, remember_bytes=1024)
    assert values(run_all(engine, [repeat(gate, x, 1) for x in (3.0, 1.0, 3.0, 3.0)])) == [6, 2, 6, 6]
    assert module.rows == [1, 1]
    assert (engine.calls_run["double"], engine.rows_run["double"]) == (2, 2)


def test_equal_calls_whose_output_is_too_large_to_remember_run_once():
    module = Doubler()
    gate = Gate("double", module, remember_bytes=1)
    assert values(run_all(Engine(slots=4), [repeat(gate, 3.0, 1) for _ in range(3)])) == [6] * 3
    assert module.rows == [1]


@pytest.mark.parametrize("kind", [ValueError, torch.OutOfMemoryError])
def test_a_failed_call_of_a_gate_with_memory_is_not_remembered(kind: type[Exception]):
    tries = []

    def fails_at_first(x: torch.Tensor) -> torch.Tensor:
        tries.append(len(x))
        if len(tries) <= 2:
            raise kind("not yet")
        return 2 * x

    gate = Gate("double", fails_at_first, remember_bytes=1024)
    tickets = run_all(Engine(slots=4), [repeat(gate, 3.0, 1) for _ in range(3)])
    assert [type(ticket.error) for ticket in tickets] == [kind, type(None), type(None)]
    assert [ticket.result for ticket in tickets] == [None, 6, 6]
    assert set(tries) == {1}


def test_a_gate_outside_a_job_just_runs():
    assert Gate("double", Doubler())(torch.ones(1)).item() == 2


def test_time_is_kept_by_stage():
    gate = Gate("double", Doubler())
    (ticket,) = run_all(Engine(slots=1), [repeat(gate, 1.0, 3)])
    assert set(ticket.seconds) == {"wait", "double"}
    assert all(seconds >= 0 for seconds in ticket.seconds.values())


def test_submitting_from_other_threads_while_the_loop_runs():
    gate = Gate("double", Doubler())
    engine = Engine(slots=4)
    loop = threading.Thread(target=engine.run)
    loop.start()
    done: list[EngineTask] = []
    tickets = [EngineTask(repeat(gate, float(i), 5), done.append) for i in range(40)]
    threads = [threading.Thread(target=engine.submit, args=(tickets[i::4],)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    engine.shut_down()
    loop.join(30)
    assert values(tickets) == [i * 32 for i in range(40)]
    assert len(done) == 40


Named = namedtuple("Named", "x note")


def test_merged_arguments_are_the_rows_of_all_calls():
    one = make_call("f", (torch.zeros(1, 3), torch.tensor(7)), {"ids": torch.arange(4.0).reshape(2, 2), "flag": True})
    two = make_call("f", (torch.ones(2, 3), torch.tensor(0.5)), {"ids": torch.arange(4.0).reshape(2, 2), "flag": True})
    # ids has two rows like the second call: as an argument of the first it is shared, so these two must not merge.
    assert one.signature != two.signature
    three = make_call("f", (torch.ones(1, 3), torch.tensor(0.5)), {"ids": one.kwargs["ids"].clone(), "flag": True})
    assert one.signature == three.signature
    (x, t), kwargs = collate([one, three])
    assert x.tolist() == [[0, 0, 0], [1, 1, 1]]
    assert t.tolist() == [7, 0.5]
    assert torch.equal(kwargs["ids"], one.kwargs["ids"])
    other_ids = make_call("f", (torch.ones(1, 3), torch.tensor(0.5)), {"ids": torch.ones(2, 2), "flag": True})
    other_flag = make_call("f", one.args, {**one.kwargs, "flag": False})
    assert len({one.signature, other_ids.signature, other_flag.signature}) == 3


def test_arguments_named_as_shared_have_no_rows_and_go_in_once():
    ids = torch.arange(6.0).reshape(1, 2, 3)  # one row in front, as the rows themselves have
    one = make_call("f", (), {"ids": ids, "x": torch.zeros(1, 3)}, {"ids"})
    two = make_call("f", (), {"ids": ids.clone(), "x": torch.ones(2, 3)}, {"ids"})
    assert (one.rows, two.rows) == (1, 2)
    assert one.signature == two.signature
    _, kwargs = collate([one, two])
    assert kwargs["x"].tolist() == [[0] * 3, [1] * 3, [1] * 3]
    assert torch.equal(kwargs["ids"], ids)
    other = make_call("f", (), {"ids": ids + 1, "x": torch.zeros(1, 3)}, {"ids"})
    assert other.signature != one.signature


def test_a_shared_argument_is_looked_into_once_and_not_kept_alive(monkeypatch: pytest.MonkeyPatch):
    looks = []
    monkeypatch.setattr(calls, "content", lambda tensor: looks.append(tensor.shape) or content(tensor))
    ids = torch.arange(4.0)
    for _ in range(3):
        make_call("f", (), {"ids": ids, "x": torch.zeros(1, 3)}, {"ids"})
    assert len(looks) == 1
    make_call("f", (), {"ids": ids.clone(), "x": torch.zeros(1, 3)}, {"ids"})
    assert len(looks) == 2, "another tensor, though equal"
    alive = weakref.ref(ids)
    del ids
    gc.collect()
    assert alive() is None


@pytest.mark.parametrize("parked", [False, True])
def test_an_error_keeps_its_lines_and_not_the_tensors_of_its_frames(parked: bool, no_collector: None):
    """Activations of a call that failed are much memory, and above all where it failed for want of that."""
    made = []

    def run_out(x: torch.Tensor) -> None:
        activations = 2 * x
        made.append(weakref.ref(activations))
        raise torch.OutOfMemoryError("too many activations")

    gate = Gate("runs out", run_out)
    [ticket] = run_all(Engine(slots=1), [lambda _ticket: (gate if parked else run_out)(torch.ones(1, 2))])
    assert isinstance(ticket.error, torch.OutOfMemoryError)
    assert "run_out" in [frame.name for frame in traceback.extract_tb(ticket.error.__traceback__)]
    assert [ref() for ref in made] == [None]


def test_outputs_split_through_containers():
    parts = split(Named({"a": torch.arange(3)}, None), [1, 2])
    assert [part.x["a"].tolist() for part in parts] == [[0], [1, 2]]
    assert [part.note for part in parts] == [None, None]
