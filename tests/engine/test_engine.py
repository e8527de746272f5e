"""Engine on small functions: merging, failures and stops."""

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

from img2img.worker.engine import batching, preemption
from img2img.worker.engine.batching import collate, make_call, split, tensor_bytes
from img2img.worker.engine.device_clock import DeviceClock
from img2img.worker.engine.engine import Engine
from img2img.worker.engine.gate import Gate
from img2img.worker.engine.merged_arguments import MergedArguments
from img2img.worker.engine.preemption import add_break_points
from img2img.worker.engine.priority_shares import HIGHEST
from img2img.worker.engine.row_probe import Independence
from img2img.worker.engine.task import EngineTask, TaskStopped, Urgency


def run_all(engine: Engine, functions: Sequence[Callable[[EngineTask], Any]]) -> list[EngineTask]:
    """Run the functions on the engine in this thread, and return their tasks in the same order."""
    tasks = [EngineTask(function, lambda _task: None) for function in functions]
    engine.submit(tasks)
    engine.shut_down()
    engine.run()
    return tasks


def results(tasks: Sequence[EngineTask]) -> list[Any]:
    """Return the results of the tasks. Raises the error of one that failed."""
    for task in tasks:
        if task.error is not None:
            raise task.error
    return [task.result for task in tasks]


class Doubler:
    """A module that doubles its input and records the rows of its calls."""

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
    """Runs out of memory with more than four rows."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) > 4:
            raise torch.OutOfMemoryError("too many rows")
        return super().__call__(x)


class DropsRows(Doubler):
    """Returns one tensor without a row dimension."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return super().__call__(x).sum(0)


class DependsOnRows(Doubler):
    """Returns different last bits for merged rows, as matrix products do on many processors."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        output = super().__call__(x)
        return output if len(x) == 1 else torch.nextafter(output, torch.full_like(output, torch.inf))


def probed_gate(run: Callable[..., Any]) -> Gate:
    """A gate that the engine does not probe, so that tests see the calls of tasks only."""
    gate = Gate("double", run)
    gate.independence = Independence.EXACT
    return gate


def repeat(gate: Gate, x: float, times: int, shape: tuple[int, ...] = (1, 2)) -> Callable[[EngineTask], float]:
    def function(_task: EngineTask) -> float:
        tensor = torch.full(shape, x)
        for _ in range(times):
            tensor = gate(tensor)
        return float(tensor.flatten()[0])

    return function


def test_engine_merges_tasks_of_different_lengths():
    module = Doubler()
    gate = probed_gate(module)
    tasks = run_all(Engine(slots=8), [repeat(gate, float(i), times) for i, times in enumerate([1, 2, 3, 3])])
    assert results(tasks) == [0 * 2, 1 * 4, 2 * 8, 3 * 8]
    assert module.rows == [4, 3, 2]


def test_engine_runs_different_shapes_separately_without_starvation():
    module = Doubler()
    gate = probed_gate(module)
    functions = [repeat(gate, 1.0, 3), repeat(gate, 1.0, 3, shape=(1, 5)), repeat(gate, 1.0, 3)]
    assert results(run_all(Engine(slots=8), functions)) == [8, 8, 8]
    assert sorted(module.rows) == [1, 1, 1, 2, 2, 2]


def test_engine_limits_tasks_in_flight_to_slots():
    module = Doubler()
    gate = probed_gate(module)
    results(run_all(Engine(slots=2), [repeat(gate, 1.0, 2) for _ in range(5)]))
    assert max(module.rows) == 2


def test_new_task_joins_batch_at_next_iteration():
    module = Doubler()
    gate = probed_gate(module)
    engine = Engine(slots=8)
    late = EngineTask(repeat(gate, 1.0, 2), lambda _task: None)

    def first(_task: EngineTask) -> None:
        x = torch.ones(1, 2)
        for i in range(5):
            if i == 2:
                engine.submit([late])
            x = gate(x)

    results(run_all(engine, [first]))
    assert module.rows == [1, 1, 2, 2, 1]
    assert late.result == 4


@pytest.mark.parametrize("encoded", [[1, 1, 1], [1, 2, 1]])
def test_calls_that_run_alone_do_not_separate_the_steps_of_their_tasks(encoded: list[int]):
    module = Doubler()
    alone, step = Gate("encode", Doubler(), merges=False), probed_gate(module)

    def function(times: int) -> Callable[[EngineTask], float]:
        return lambda task: repeat(step, repeat(alone, 1.0, times)(task), 3)(task)

    tasks = run_all(Engine(slots=8), [function(times) for times in encoded])
    assert results(tasks) == [2.0 ** (times + 3) for times in encoded]
    assert module.rows == [3, 3, 3]


def test_failing_rows_fail_only_their_task():
    gate = probed_gate(FailsOnNegative())
    tasks = run_all(Engine(slots=8), [repeat(gate, x, 2) for x in (1.0, -1.0, 3.0)])
    assert [task.result for task in tasks] == [4, None, 12]
    assert isinstance(tasks[1].error, ValueError)


def test_out_of_memory_halves_rows_and_fails_no_task():
    module = RunsOutOfMemory()
    gate = probed_gate(module)
    assert results(run_all(Engine(slots=16), [repeat(gate, 1.0, 2) for _ in range(16)])) == [4] * 16
    assert max(module.rows) == 4


def test_task_too_large_for_memory_alone_fails():
    gate = probed_gate(RunsOutOfMemory())
    tasks = run_all(Engine(slots=4), [repeat(gate, 1.0, 1, shape=(5, 2)), repeat(gate, 1.0, 1)])
    assert isinstance(tasks[0].error, torch.OutOfMemoryError)
    assert tasks[1].result == 2


def test_output_without_rows_is_not_shared_between_tasks():
    module = DropsRows()
    tasks = run_all(Engine(slots=4), [repeat(probed_gate(module), 1.0, 1) for _ in range(1)])
    assert results(tasks) == [2]
    gate = probed_gate(module)
    assert results(run_all(Engine(slots=4), [repeat(gate, float(i), 1) for i in range(3)])) == [0, 2, 4]
    with pytest.raises(TypeError, match="cannot be split"):
        split(torch.zeros(5), [1, 2])


def test_exception_in_task_ends_only_that_task():
    gate = probed_gate(Doubler())

    def fails(_task: EngineTask) -> None:
        gate(torch.ones(1, 2))
        raise RuntimeError("only this task")

    tasks = run_all(Engine(slots=4), [fails, repeat(gate, 1.0, 3)])
    assert str(tasks[0].error) == "only this task"
    assert tasks[1].result == 8


def test_stopped_task_ends_at_next_iteration_and_cannot_swallow_stop():
    module = Doubler()
    gate = probed_gate(module)

    def swallows_errors(task: EngineTask) -> None:
        x = torch.ones(1, 2)
        for i in range(100):
            if i == 2:
                task.stop()
            with contextlib.suppress(Exception):
                x = gate(x)

    tasks = run_all(Engine(slots=4), [swallows_errors, repeat(gate, 1.0, 4)])
    assert isinstance(tasks[0].error, TaskStopped)
    assert tasks[1].result == 16
    assert module.rows == [2, 2, 1, 1]


def test_task_stopped_before_admission_calls_no_module():
    module = Doubler()
    task = EngineTask(repeat(probed_gate(module), 1.0, 1), lambda _task: None)
    task.stop()
    engine = Engine(slots=1)
    engine.submit([task])
    engine.shut_down()
    engine.run()
    assert isinstance(task.error, TaskStopped)
    assert module.rows == []


def test_gate_with_memory_runs_equal_calls_once():
    module = Doubler()
    gate = Gate("double", module, remember_bytes=1024)
    assert results(run_all(Engine(slots=1), [repeat(gate, 3.0, 1) for _ in range(4)])) == [6] * 4
    assert module.rows == [1]


def test_gate_with_memory_returns_output_of_single_call():
    alone = results(run_all(Engine(slots=1), [repeat(Gate("double", DependsOnRows(), remember_bytes=1024), 3.0, 1)]))
    gate = Gate("double", DependsOnRows(), remember_bytes=1024)
    merged = results(run_all(Engine(slots=4), [repeat(gate, x, 1) for x in (3.0, 1.0, 3.0, 2.0)]))
    later = results(run_all(Engine(slots=1), [repeat(gate, 3.0, 1)]))
    assert [merged[0], merged[2], *later] == alone * 3


def test_gate_with_memory_runs_equal_waiting_calls_once():
    module = Doubler()
    engine = Engine(slots=8)
    gate = Gate("double", module, remember_bytes=1024)
    assert results(run_all(engine, [repeat(gate, x, 1) for x in (3.0, 1.0, 3.0, 3.0)])) == [6, 2, 6, 6]
    assert module.rows == [1, 1]
    assert (engine.calls_run["double"], engine.rows_run["double"]) == (2, 2)


def test_gate_with_memory_runs_equal_calls_with_large_output_once():
    module = Doubler()
    gate = Gate("double", module, remember_bytes=1)
    assert results(run_all(Engine(slots=4), [repeat(gate, 3.0, 1) for _ in range(3)])) == [6] * 3
    assert module.rows == [1]


@pytest.mark.parametrize("kind", [ValueError, torch.OutOfMemoryError])
def test_gate_with_memory_does_not_cache_failed_call(kind: type[Exception]):
    calls = []

    def fails_twice(x: torch.Tensor) -> torch.Tensor:
        calls.append(len(x))
        if len(calls) <= 2:
            raise kind("not yet")
        return 2 * x

    gate = Gate("double", fails_twice, remember_bytes=1024)
    tasks = run_all(Engine(slots=4), [repeat(gate, 3.0, 1) for _ in range(3)])
    assert [type(task.error) for task in tasks] == [kind, type(None), type(None)]
    assert [task.result for task in tasks] == [None, 6, 6]
    assert set(calls) == {1}


def test_gate_outside_task_runs_directly():
    assert probed_gate(Doubler())(torch.ones(1)).item() == 2


def test_task_records_time_by_stage():
    gate = probed_gate(Doubler())
    (task,) = run_all(Engine(slots=1), [repeat(gate, 1.0, 3)])
    assert set(task.timeline.stages) == {"wait", "double"}
    assert all(seconds >= 0 for seconds in task.timeline.seconds().values())


def test_submit_from_other_threads_while_engine_runs():
    gate = probed_gate(Doubler())
    engine = Engine(slots=4)
    loop = threading.Thread(target=engine.run)
    loop.start()
    done: list[EngineTask] = []
    tasks = [EngineTask(repeat(gate, float(i), 5), done.append) for i in range(40)]
    threads = [threading.Thread(target=engine.submit, args=(tasks[i::4],)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    engine.shut_down()
    loop.join(30)
    assert results(tasks) == [i * 32 for i in range(40)]
    assert len(done) == 40


Named = namedtuple("Named", "x note")


def test_collate_concatenates_rows_of_all_calls():
    one = make_call("f", (torch.zeros(1, 3), torch.tensor(7)), {"ids": torch.arange(4.0).reshape(2, 2), "flag": True})
    two = make_call("f", (torch.ones(2, 3), torch.tensor(0.5)), {"ids": torch.arange(4.0).reshape(2, 2), "flag": True})
    # `ids` has two rows: an argument with rows of the second call, a shared one of the first. They must not merge.
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


def test_merged_conditions_are_not_copied_again_as_long_as_they_are_the_same() -> None:
    known = MergedArguments()
    rows = [torch.rand(2, 3), torch.rand(1, 3)]
    first, second, third = (known.cat(rows) for _ in range(3))
    assert first is not second
    assert second is third
    assert torch.equal(third, torch.cat(rows))
    others = [rows[0], rows[1].clone() + 1]
    assert torch.equal(known.cat(others), torch.cat(others))
    calls = [make_call("f", (torch.rand(1, 3),), {"encoder_hidden_states": row[:1]}) for row in rows]
    (merged, states) = [collate(calls, merged_before=known) for _ in range(3)][1:]
    assert merged[1]["encoder_hidden_states"] is states[1]["encoder_hidden_states"]
    assert merged[0][0] is not states[0][0]


def test_shared_arguments_are_passed_once():
    ids = torch.arange(6.0).reshape(1, 2, 3)  # the first dimension equals the number of rows
    one = make_call("f", (), {"ids": ids, "x": torch.zeros(1, 3)}, {"ids"})
    two = make_call("f", (), {"ids": ids.clone(), "x": torch.ones(2, 3)}, {"ids"})
    assert (one.rows, two.rows) == (1, 2)
    assert one.signature == two.signature
    _, kwargs = collate([one, two])
    assert kwargs["x"].tolist() == [[0] * 3, [1] * 3, [1] * 3]
    assert torch.equal(kwargs["ids"], ids)
    other = make_call("f", (), {"ids": ids + 1, "x": torch.zeros(1, 3)}, {"ids"})
    assert other.signature != one.signature


def test_shared_argument_is_read_once_and_not_kept_alive(monkeypatch: pytest.MonkeyPatch):
    reads = []
    monkeypatch.setattr(batching, "tensor_bytes", lambda tensor: reads.append(tensor.shape) or tensor_bytes(tensor))
    ids = torch.arange(4.0)
    for _ in range(3):
        make_call("f", (), {"ids": ids, "x": torch.zeros(1, 3)}, {"ids"})
    assert len(reads) == 1
    make_call("f", (), {"ids": ids.clone(), "x": torch.zeros(1, 3)}, {"ids"})
    assert len(reads) == 2, "an equal but different tensor"
    alive = weakref.ref(ids)
    del ids
    gc.collect()
    assert alive() is None


@pytest.mark.parametrize("parked", [False, True])
def test_error_keeps_traceback_without_tensors(parked: bool, no_collector: None):
    """The activations of a failed call use much memory, which matters most after an out-of-memory error."""
    created = []

    def run_out(x: torch.Tensor) -> None:
        activations = 2 * x
        created.append(weakref.ref(activations))
        raise torch.OutOfMemoryError("too many activations")

    gate = probed_gate(run_out)
    [task] = run_all(Engine(slots=1), [lambda _task: (gate if parked else run_out)(torch.ones(1, 2))])
    assert isinstance(task.error, torch.OutOfMemoryError)
    assert "run_out" in [frame.name for frame in traceback.extract_tb(task.error.__traceback__)]
    assert [ref() for ref in created] == [None]


def test_split_looks_into_containers():
    parts = split(Named({"a": torch.arange(3)}, None), [1, 2])
    assert [part.x["a"].tolist() for part in parts] == [[0], [1, 2]]
    assert [part.note for part in parts] == [None, None]


def test_task_of_highest_priority_pauses_those_that_have_all_slots():
    """It runs at the next iteration, and the others go on when it has ended, with the same results."""
    order: list[str] = []
    gate, engine = Gate("denoise", Doubler()), Engine(slots=2)

    def slow(task: EngineTask) -> float:
        if not order:
            engine.submit([urgent])
        order.append("slow")
        return repeat(gate, 1.0, 4)(task)

    def fast(task: EngineTask) -> float:
        result = repeat(gate, 1.0, 3)(task)
        order.append("fast")
        return result

    urgent = EngineTask(fast, lambda _task: None, urgency=Urgency(HIGHEST))
    tasks = [EngineTask(slow, lambda _task: order.append("done")) for _ in range(3)]
    engine.submit(tasks)
    engine.shut_down()
    engine.run()
    assert results([urgent, *tasks]) == [8, 16, 16, 16]
    assert order[:3] == ["slow", "slow", "fast"]
    assert sorted(order[3:]) == ["done", "done", "done", "slow"]


class Layers(torch.nn.Module):
    """Doubles its input in the second of two layers. The first one calls `arrive` after each of its calls."""

    def __init__(self, arrive: Callable[[torch.Tensor], None]) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList([torch.nn.Identity(), torch.nn.Identity()])
        self.layers[0].register_forward_hook(lambda _layer, _args, x: arrive(x))
        add_break_points([self])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return 2 * x


@pytest.mark.parametrize("credit_s", [10.0, 0.0])
def test_call_is_broken_off_for_a_task_of_highest_priority(monkeypatch: pytest.MonkeyPatch, credit_s: float):
    """It runs again after that task. Calls that take too much time so run to their end."""
    monkeypatch.setattr(preemption, "MAX_CREDIT_S", credit_s)
    monkeypatch.setattr(preemption, "NEARLY_ENDED", 1000)
    engine, begun = Engine(slots=2), []
    urgent = EngineTask(lambda task: repeat(gate, 8.0, 1)(task), lambda _task: None, urgency=Urgency(HIGHEST))

    def arrive(x: torch.Tensor) -> None:
        begun.append(float(x[0, 0]))
        if begun == [1.0, 2.0]:
            engine.submit([urgent])

    gate = probed_gate(Layers(arrive))
    slow = EngineTask(repeat(gate, 1.0, 3), lambda _task: None)
    engine.submit([slow])
    engine.shut_down()
    engine.run()
    assert results([urgent, slow]) == [16, 8]
    assert begun == ([1, 2, 8, 2, 4] if credit_s else [1, 2, 8, 4])
    assert engine.calls_run["double"] == 4


def test_calls_of_highest_priority_are_not_broken_off():
    engine, begun = Engine(slots=2), []

    def arrive(x: torch.Tensor) -> None:
        begun.append(float(x[0, 0]))
        if len(begun) < 4:
            engine.submit([EngineTask(repeat(gate, 8.0, 1), lambda _task: None, urgency=Urgency(HIGHEST))])

    gate = probed_gate(Layers(arrive))
    engine.submit([EngineTask(repeat(gate, 8.0, 2), lambda _task: None, urgency=Urgency(HIGHEST))])
    engine.shut_down()
    engine.run()
    assert begun == [8, 16, 8, 8]
    assert engine.calls_run["double"] == len(begun)


def test_pending_tasks_are_admitted_by_priority_and_deadline():
    engine, order = Engine(slots=1), []
    urgencies = {"low": Urgency(2), "normal": Urgency(), "late": Urgency(deadline=2.0), "soon": Urgency(deadline=1.0)}
    urgencies["high"] = Urgency(HIGHEST)
    engine.submit(
        [
            EngineTask(lambda _task, name=name: order.append(name), lambda _task: None, urgency=urgency)
            for name, urgency in urgencies.items()
        ]
    )
    engine.shut_down()
    engine.run()
    assert order == ["high", "soon", "late", "normal", "low"]


def test_there_are_at_most_as_many_paused_tasks_as_slots():
    engine, most = Engine(slots=2), []

    def call(x: torch.Tensor) -> torch.Tensor:
        most.append(len(engine._parked))
        return 2 * x

    gate = Gate("denoise", call)
    tasks = [
        EngineTask(repeat(gate, 1.0, 3), lambda _task: None, urgency=Urgency(priority))
        for priority in (1, 1, 1, 0, 0, 0, 0, 0)
    ]
    engine.submit(tasks)
    engine.shut_down()
    engine.run()
    assert results(tasks) == [8] * 8
    assert max(most) == 4


class QueuedEvent:
    """An event of a device that ends its work when someone waits for it."""

    unfinished = 0

    def record(self) -> None:
        self.is_past = False
        QueuedEvent.unfinished += 1

    def query(self) -> bool:
        return self.is_past

    def synchronize(self) -> None:
        QueuedEvent.unfinished -= not self.is_past
        self.is_past = True

    def elapsed_time(self, _later: "QueuedEvent") -> float:
        return 1.0


def test_engine_is_at_most_two_calls_ahead_of_the_device():
    ahead = []

    def call(x: torch.Tensor) -> torch.Tensor:
        ahead.append(QueuedEvent.unfinished)
        return 2 * x

    engine = Engine(slots=4, clock=DeviceClock(QueuedEvent))
    tasks = run_all(engine, [repeat(probed_gate(call), 1.0, 6)])
    assert results(tasks) == [64]
    assert ahead == [0, *[1] * 5], "one call is on the device while the next one is queued"
    assert tasks[0].timeline.seconds()["double"] >= 0
    assert QueuedEvent.unfinished == 0
