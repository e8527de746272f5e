"""The state machine of JobExecution: legal transitions, and the races between its threads."""

import errno
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from hashlib import sha256
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from obstore.exceptions import GenericError

from img2img.domain.blob_keys import input_key, result_key
from img2img.domain.job import JobRecord, JobStatus
from img2img.errors import Cancelled, Flagged, InputDamaged, JobError
from img2img.stored_images import DAMAGED_IMAGES
from img2img.worker.engine.task import Urgency
from img2img.worker.engine.timeline import Timeline
from img2img.worker.errors import DeviceLost
from img2img.worker.images.png import encode_png
from img2img.worker.queue.execution import (
    TRANSITIONS,
    ExecutionState,
    IllegalTransition,
    JobExecution,
    StorageUnavailable,
)
from tests.support.damage import DAMAGES, flip_bit
from tests.support.fixed_models import FixedModels
from tests.support.images import encoded, gradient
from tests.support.memory_store import MemoryStore
from tests.support.specs import make_spec

LOADING, RUNNING, RENDERED, PUBLISHED, ENDED = ExecutionState
INPUT = b"an input"
INPUT_SHA256 = sha256(INPUT).hexdigest()
PNG, EARLIER_PNG = (encoded(gradient(32, 32, blue)) for blue in (0, 200))


class FakeRendering:
    """A rendering that ends when the test ends it, or when it is stopped after its start."""

    waits = False
    digest = None

    def __init__(self, indices: list[int], on_start: Callable[["FakeRendering"], None] = lambda _r: None) -> None:
        self.indices = indices
        self.on_start = on_start
        self.remaining = len(indices)
        self.steps_done = 0
        self.error: Exception | None = None
        self.on_done: Callable[[], None] | None = None
        self.is_stopped = False
        self.is_ended = False
        self._lock = threading.Lock()

    def start(self, on_done: Callable[[], None]) -> None:
        self.on_done = on_done
        if self.is_stopped:
            self.end(Cancelled())
        self.on_start(self)

    def stop(self) -> None:
        self.is_stopped = True
        if self.on_done is not None:
            self.end(Cancelled())

    def end(self, error: Exception | None = None) -> None:
        """End the rendering once, however often it is called."""
        with self._lock:
            if self.is_ended:
                return
            self.is_ended = True
        self.error, self.remaining = error, 0
        assert self.on_done is not None
        self.on_done()

    def timeline(self) -> Timeline:
        timeline = Timeline()
        timeline.add("denoise", 1.0, 2.0)
        return timeline

    def preview(self) -> bytes:
        return b"a jpeg"

    def render(self) -> list[Any]:
        if self.error is not None:
            raise self.error
        return [SimpleNamespace(index=index, png=PNG) for index in self.indices]


class FakeRunner:
    """Prepares fake renderings. A test can block it, or let it fail."""

    def __init__(self, on_start: Callable[[FakeRendering], None] = lambda _r: None) -> None:
        self.on_start = on_start
        self.error: Exception | None = None
        self.is_preparing = threading.Event()
        self.may_return = threading.Event()
        self.may_return.set()
        self.rendering: FakeRendering | None = None

    def prepare(self, _spec: object, _pngs: object, indices: list[int], *_: object) -> FakeRendering:
        self.is_preparing.set()
        self.may_return.wait()
        if self.error is not None:
            raise self.error
        self.rendering = FakeRendering(indices, self.on_start)
        return self.rendering


class FullStore(MemoryStore):
    is_full = True

    def put(self, key: str, data: bytes) -> bool:
        if self.is_full:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().put(key, data)

    def replace(self, key: str, data: bytes) -> None:
        if self.is_full:
            raise OSError(errno.ENOSPC, "No space left on device")
        super().replace(key, data)


class HangingStore(MemoryStore):
    """Times out on the first reads."""

    timeouts = 3

    def get(self, key: str) -> bytes | None:
        if self.timeouts:
            self.timeouts -= 1
            raise GenericError("the request timed out")
        return super().get(key)


def make_execution(store: MemoryStore, *, attempts: int = 1, **changes: Any) -> tuple[JobExecution, list[JobExecution]]:
    """Return an execution, and the list to which it adds itself when it is rendered."""
    spec = make_spec(**{"image": INPUT_SHA256} | changes)
    for digest in spec.inputs:
        store.put(input_key(digest), INPUT)
    rendered: list[JobExecution] = []
    record = JobRecord(id="a", status=JobStatus.RUNNING, spec=spec, created_at=0.0, attempts=attempts)
    lease = FixedModels({spec.model: SimpleNamespace()}).lease(spec.model)
    execution = JobExecution(
        SimpleNamespace(), SimpleNamespace(), SimpleNamespace(id="e"), record, lease, Urgency(), rendered.append
    )
    return execution, rendered


def test_transition_table_has_one_start_and_one_end():
    targets = set().union(*TRANSITIONS.values())
    assert set(TRANSITIONS) == set(ExecutionState)
    assert set(ExecutionState) - targets == {LOADING}
    assert [state for state, following in TRANSITIONS.items() if not following] == [ENDED]


@pytest.mark.parametrize("source", ExecutionState)
@pytest.mark.parametrize("target", ExecutionState)
def test_transition_raises_unless_in_table(source: ExecutionState, target: ExecutionState):
    execution, _ = make_execution(MemoryStore())
    execution._state = source
    if target in TRANSITIONS[source]:
        execution._transition(target)
        assert execution.state is target
    else:
        with pytest.raises(IllegalTransition, match=f"{source.value} -> {target.value}"):
            execution._transition(target)
        assert execution.state is source


def test_execution_passes_through_all_states():
    store, runner = MemoryStore(), FakeRunner()
    execution, rendered = make_execution(store, num_images=2)
    assert (execution.state, execution.remaining, execution.occupies_slots) == (LOADING, 2, True)
    execution.load(store, runner)
    assert (execution.state, execution.remaining, execution.is_running) == (RUNNING, 2, True)
    assert execution.preview() == b"a jpeg"
    runner.rendering.end()
    assert (execution.state, execution.remaining, execution.occupies_slots) == (RENDERED, 0, False)
    assert rendered == [execution]
    assert [image.index for image in execution.publish(store)] == [0, 1]
    assert execution.state is PUBLISHED
    execution.end()
    assert execution.state is ENDED
    assert set(execution.timeline.stages) == {"load", "denoise"}
    with pytest.raises(IllegalTransition):
        execution.end()


def checked_execution(store: MemoryStore, withheld: Iterable[int], **changes: Any) -> JobExecution:
    """Return an execution whose images are checked, and of which some are withheld."""
    execution, _ = make_execution(store, **changes)
    execution.load(store, FakeRunner())
    rendering = execution._rendering
    rendering.waits = True
    rendering.end()
    rendering.render = lambda: [
        SimpleNamespace(index=i, png=None if i in withheld else PNG, categories=("violence",))
        for i in rendering.indices
    ]
    assert execution.waits_for_checks
    execution.check()
    return execution


def test_withheld_images_are_neither_stored_nor_described():
    store = MemoryStore()
    execution = checked_execution(store, {1}, num_images=3)
    assert [image.index for image in execution.publish(store)] == [0, 2]
    assert execution.withheld == (1,)
    assert store.get(result_key("a", 1)) is None


def test_job_fails_if_all_its_images_are_withheld():
    store = MemoryStore()
    execution = checked_execution(store, {0, 1}, num_images=2)
    with pytest.raises(Flagged, match=r"was flagged \(violence\), so none"):
        execution.publish(store)
    assert all(store.get(result_key("a", index)) is None for index in range(2))


def test_images_that_an_earlier_execution_stored_are_delivered_without_the_withheld_ones():
    store = MemoryStore()
    flagged = encode_png(np.zeros((32, 32, 3), np.uint8), {"flagged": True})
    store.put(result_key("a", 0), flagged)
    execution = checked_execution(store, {1}, num_images=2, attempts=2)
    [image] = execution.publish(store)
    assert (image.index, image.flagged, execution.withheld) == (0, True, (1,))


def test_error_of_a_check_is_raised_by_publish():
    store, runner = MemoryStore(), FakeRunner()
    execution, _ = make_execution(store)
    execution.load(store, runner)
    runner.rendering.end(DeviceLost("gone"))
    execution.check()
    with pytest.raises(DeviceLost):
        execution.publish(store)


def test_missing_input_of_a_job_that_was_deleted_is_no_damage(caplog: pytest.LogCaptureFixture):
    store = MemoryStore()
    execution, rendered = make_execution(store)
    before = DAMAGED_IMAGES.labels("input")._value.get()
    store.delete(input_key(INPUT_SHA256))
    execution.stop()
    execution.load(store, FakeRunner())
    assert (execution.state, rendered) == (RENDERED, [execution])
    with pytest.raises(Cancelled):
        execution.publish(store)
    assert DAMAGED_IMAGES.labels("input")._value.get() == before
    assert not caplog.records


def test_rendering_that_ends_during_start_is_published():
    """The engine can be done with a job before the loader thread returns from `start`."""
    store = MemoryStore()
    execution, rendered = make_execution(store)
    execution.load(store, FakeRunner(on_start=FakeRendering.end))
    assert execution.state is RENDERED
    assert rendered == [execution]
    assert len(execution.publish(store)) == 1


def test_rendering_that_ends_on_engine_thread_during_start_is_published():
    store, threads = MemoryStore(), []

    def end_on_other_thread(rendering: FakeRendering) -> None:
        threads.append(threading.Thread(target=rendering.end))
        threads[0].start()
        threads[0].join()

    execution, rendered = make_execution(store)
    execution.load(store, FakeRunner(on_start=end_on_other_thread))
    assert rendered == [execution]
    assert len(execution.publish(store)) == 1


def test_stop_while_loading_stops_rendering_before_its_start():
    store, runner = MemoryStore(), FakeRunner()
    runner.may_return.clear()
    execution, rendered = make_execution(store)
    loader = threading.Thread(target=execution.load, args=(store, runner))
    loader.start()
    assert runner.is_preparing.wait(10)
    execution.stop()
    assert (execution.state, execution.is_stopping) == (LOADING, True)
    runner.may_return.set()
    loader.join(10)
    assert runner.rendering.is_stopped
    assert rendered == [execution]
    with pytest.raises(Cancelled):
        execution.publish(store)


@pytest.mark.parametrize("repetition", range(50))
def test_stop_at_any_time_during_load_is_not_lost(repetition: int):
    store, runner = MemoryStore(), FakeRunner()
    execution, rendered = make_execution(store)
    barrier = threading.Barrier(2)

    def stop() -> None:
        barrier.wait()
        time.sleep(repetition * 2e-6)
        execution.stop()

    stopper = threading.Thread(target=stop)
    stopper.start()
    barrier.wait()
    execution.load(store, runner)
    stopper.join(10)
    assert rendered == [execution]
    with pytest.raises(Cancelled):
        execution.publish(store)


def test_stop_after_rendering_keeps_images():
    store, runner = MemoryStore(), FakeRunner()
    execution, rendered = make_execution(store)
    execution.load(store, runner)
    runner.rendering.end()
    execution.stop()
    assert rendered == [execution]
    assert len(execution.publish(store)) == 1


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (JobError("does not fit"), JobError, "does not fit"),
        (DeviceLost("gone"), DeviceLost, "gone"),
        (ValueError("odd"), JobError, "the job could not be started: odd"),
    ],
)
def test_error_while_loading_is_raised_by_publish(error: Exception, kind: type[Exception], message: str):
    store, runner = MemoryStore(), FakeRunner()
    runner.error = error
    execution, rendered = make_execution(store)
    execution.load(store, runner)
    assert (execution.state, execution.remaining) == (RENDERED, 0)
    assert rendered == [execution]
    with pytest.raises(kind, match=message):
        execution.publish(store)
    execution.end()
    assert execution.state is ENDED


@pytest.mark.parametrize("stored", [None, b"", INPUT[:-1], flip_bit(INPUT, 3), INPUT + b"\0"])
def test_damaged_or_missing_input_fails_job(stored: bytes | None):
    execution, rendered = make_execution(MemoryStore())
    store, runner = MemoryStore(), FakeRunner()
    if stored is not None:
        store.put(input_key(INPUT_SHA256), stored)
    execution.load(store, runner)
    assert runner.rendering is None
    assert rendered == [execution]
    with pytest.raises(InputDamaged, match="An input image is damaged or missing in the blob store; submit the job"):
        execution.publish(store)


def test_inputs_are_read_again_after_outage_of_store(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("img2img.worker.queue.execution.RETRY_INTERVAL_S", 0.001)
    store, runner = HangingStore(), FakeRunner()
    execution, _ = make_execution(store, attempts=2)
    execution.load(store, runner)
    assert execution.state is RUNNING
    assert store.timeouts == 0


def test_long_outage_of_store_while_loading_fails_job(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("img2img.worker.queue.execution.STORE_TIMEOUT_S", 0.05)
    monkeypatch.setattr("img2img.worker.queue.execution.RETRY_INTERVAL_S", 0.001)
    store = HangingStore()
    store.timeouts = 1_000_000
    execution, _ = make_execution(store)
    execution.load(store, FakeRunner())
    with pytest.raises(StorageUnavailable, match="the request timed out"):
        execution.publish(store)


@pytest.mark.parametrize("change", DAMAGES.values(), ids=DAMAGES)
def test_damaged_image_of_earlier_execution_is_rendered_again(change: Callable[[bytes], bytes]):
    store, runner = MemoryStore(), FakeRunner()
    execution, _ = make_execution(store, attempts=2, num_images=2)
    store.put(result_key("a", 0), EARLIER_PNG)
    store.put(result_key("a", 1), change(EARLIER_PNG))
    execution.load(store, runner)
    assert runner.rendering.indices == [1]
    runner.rendering.end()
    images = execution.publish(store)
    stored = [store.get(result_key("a", index)) for index in range(2)]
    assert stored == [EARLIER_PNG, PNG]
    assert [image.sha256 for image in images] == [sha256(png).hexdigest() for png in stored]


@pytest.mark.parametrize("change", [*DAMAGES.values(), None], ids=[*DAMAGES, "none"])
def test_image_that_is_stored_meanwhile_is_kept_unless_damaged(change: Callable[[bytes], bytes] | None):
    store, runner = MemoryStore(), FakeRunner()
    execution, _ = make_execution(store)
    execution.load(store, runner)
    runner.rendering.end()
    store.put(result_key("a", 0), change(EARLIER_PNG) if change else EARLIER_PNG)
    [image] = execution.publish(store)
    expected = PNG if change else EARLIER_PNG
    assert store.get(result_key("a", 0)) == expected
    assert (image.sha256, image.bytes) == (sha256(expected).hexdigest(), len(expected))


def test_execution_without_missing_images_does_not_run():
    store, runner = MemoryStore(), FakeRunner()
    execution, rendered = make_execution(store, attempts=2, num_images=2)
    for index in range(2):
        store.put(result_key("a", index), EARLIER_PNG)
    execution.load(store, runner)
    assert runner.rendering is None
    assert rendered == [execution]
    assert execution.step == execution.record.spec.total_steps
    assert [image.bytes for image in execution.publish(store)] == [len(EARLIER_PNG)] * 2


def test_publish_can_be_repeated_after_outage_of_store():
    store, runner = FullStore(), FakeRunner()
    store.is_full = False
    execution, _ = make_execution(store)
    store.is_full = True
    execution.load(store, runner)
    runner.rendering.end()
    for _ in range(2):
        with pytest.raises(StorageUnavailable):
            execution.publish(store)
        assert execution.state is RENDERED
    store.is_full = False
    assert len(execution.publish(store)) == 1
    assert execution.state is PUBLISHED


class ExecutionMachine(RuleBasedStateMachine):
    """Calls the methods of an execution in any order that the worker's threads can produce."""

    @initialize(fails=st.booleans(), attempts=st.integers(1, 3), stored=st.integers(0, 2))
    def create(self, fails: bool, attempts: int, stored: int) -> None:
        self.store, self.runner = FullStore(), FakeRunner()
        self.store.is_full = False
        self.execution, self.rendered = make_execution(self.store, attempts=attempts, num_images=2)
        for index in range(stored):
            self.store.put(result_key("a", index), EARLIER_PNG)
        if fails:
            self.runner.error = JobError("broken")
        self.path = [LOADING]

    @precondition(lambda self: self.execution.state is LOADING)
    @rule()
    def load(self) -> None:
        self.execution.load(self.store, self.runner)

    @rule()
    def stop(self) -> None:
        self.execution.stop()

    @precondition(lambda self: self.execution.state is RUNNING)
    @rule(fails=st.booleans())
    def end_rendering(self, fails: bool) -> None:
        self.runner.rendering.end(JobError("broken") if fails else None)

    @rule()
    def toggle_store(self) -> None:
        self.store.is_full = not self.store.is_full

    @precondition(lambda self: self.execution.state is RENDERED)
    @rule()
    def publish(self) -> None:
        try:
            images = self.execution.publish(self.store)
        except JobError:
            assert self.execution.state is RENDERED
        else:
            assert [image.index for image in images] == [0, 1]
            assert self.execution.state is PUBLISHED

    @precondition(lambda self: self.execution.state in (RENDERED, PUBLISHED))
    @rule()
    def end(self) -> None:
        self.execution.end()

    @precondition(lambda self: self.execution.state not in (RENDERED, PUBLISHED))
    @rule()
    def end_too_early_or_twice(self) -> None:
        with pytest.raises(IllegalTransition):
            self.execution.end()

    @invariant()
    def is_consistent(self) -> None:
        if not hasattr(self, "execution"):
            return
        state = self.execution.state
        if state is not self.path[-1]:
            self.path.append(state)
        assert len(self.rendered) == (state not in (LOADING, RUNNING)), "reported once, when rendered"
        assert self.execution.occupies_slots == (state in (LOADING, RUNNING))
        assert (self.execution.remaining > 0) == self.execution.occupies_slots
        assert len(self.path) == len(set(self.path)), "no state is entered twice"


ExecutionMachine.TestCase.settings = settings(
    max_examples=60, stateful_step_count=12, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestExecutionMachine = ExecutionMachine.TestCase


@pytest.fixture(autouse=True)
def fail_on_thread_errors() -> Iterator[None]:
    errors: list[Any] = []
    previous, threading.excepthook = threading.excepthook, errors.append
    yield
    threading.excepthook = previous
    assert errors == []
