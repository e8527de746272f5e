"""BatchWorker on runners that misbehave: what it makes of a claim that ends too early, too late, or not at all."""

import errno
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from rq.command import PUBSUB_CHANNEL_TEMPLATE, parse_payload
from rq.job import Job

from img2img.domain.job import JobStatus
from img2img.domain.spec import JobSpec, input_key, result_key
from img2img.errors import Cancelled, JobError
from img2img.redis.job_queue import MAX_ATTEMPTS
from img2img.worker.queue.batch_worker import BatchWorker
from img2img.worker.queue.execution import JobExecution
from tests.support.memory_store import MemoryStore
from tests.support.processes import MODEL, Service, wait_for

PNG = b"a picture"


class Running:
    """A job in an engine that does nothing by itself."""

    def __init__(self, indices: Sequence[int], on_done: Callable[[], None]) -> None:
        self.indices = indices
        self.done = on_done
        self.step = 0
        self.left = len(indices)
        self.error: JobError | None = None

    def stop(self) -> None:
        self.error = Cancelled()
        self.done()

    def seconds(self) -> dict[str, float]:
        return {}

    def render(self) -> list[Any]:
        if self.error is not None:
            raise self.error
        return [SimpleNamespace(index=index, png=PNG) for index in self.indices]


class EndsWhenTold:
    """A runner whose jobs run until the test ends them."""

    slots = 4
    cards = [SimpleNamespace(name=MODEL)]

    def start(
        self, spec: JobSpec, pngs: Mapping[str, bytes], indices: Sequence[int], on_done: Callable[[], None]
    ) -> Running:
        return Running(indices, on_done)


class EndsBeforeStartReturns(EndsWhenTold):
    """An engine so fast that a job has ended before the caller holds it."""

    error: JobError | None = None

    def start(
        self, spec: JobSpec, pngs: Mapping[str, bytes], indices: Sequence[int], on_done: Callable[[], None]
    ) -> Running:
        running = Running(indices, on_done)
        running.error = self.error
        on_done()
        time.sleep(0.2)
        return running


class FullStore(MemoryStore):
    """Takes no results, until there is room again."""

    def __init__(self) -> None:
        super().__init__()
        self.room = threading.Event()
        self.refused = 0

    def put(self, key: str, data: bytes) -> bool:
        if key.startswith("results/") and not self.room.is_set():
            self.refused += 1
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().put(key, data)


@pytest.fixture
def make_worker(front_end: Service) -> Iterator[Callable[[Any], BatchWorker]]:
    workers = []

    def make(runner: Any, store: MemoryStore | None = None) -> BatchWorker:
        store = store or MemoryStore()
        store.put(input_key(front_end.image), b"an input")
        worker = BatchWorker(front_end.redis, store, runner, lease_s=20)
        workers.append(worker)
        return worker

    yield make
    for worker in workers:
        worker._loaders.shutdown()


def claim(worker: BatchWorker) -> JobExecution:
    """Has the worker claim one job, and waits until it is in the engine."""
    before = set(worker._claims)
    assert worker._intake.claim_one()
    (key,) = set(worker._claims) - before
    found = worker._claims[key]
    wait_for(found.loaded.is_set)
    return found


def finish_one(worker: BatchWorker) -> None:
    ended = worker._ended.get(timeout=5)
    assert ended is not None
    worker._finish(ended)


@pytest.mark.parametrize("error", [None, JobError("broken")])
def test_a_job_that_ends_at_once_keeps_its_pictures_and_its_error(
    error: JobError | None, front_end: Service, make_worker: Callable[[Any], BatchWorker]
) -> None:
    runner = EndsBeforeStartReturns()
    runner.error = error
    worker = make_worker(runner)
    job_id = front_end.submit(num_images=2)
    assert worker._intake.claim_one()
    finish_one(worker)
    record = front_end.record(job_id)
    if error is None:
        assert record.status is JobStatus.SUCCEEDED
        assert [image.index for image in record.images] == [0, 1]
    else:
        assert record.error is not None
        assert record.error.message == "broken"
    assert front_end.is_idle()


@pytest.mark.parametrize("retaken", [False, True], ids=["waiting again", "in other hands"])
@pytest.mark.parametrize("ending", ["success", "failure", "stop"])
def test_a_worker_that_lost_its_lease_changes_nothing_any_more(
    ending: str, retaken: bool, front_end: Service, make_worker: Callable[[Any], BatchWorker]
) -> None:
    zombie, heir = make_worker(EndsWhenTold()), make_worker(EndsWhenTold())
    job_id = front_end.submit()
    lost = claim(zombie)
    front_end.jobs.requeue(job_id, execution=lost.execution.id)
    if retaken:
        claim(heir)
    before, in_rq = front_end.record(job_id), front_end.redis.hgetall(Job.key_for(job_id))
    assert isinstance(lost.running, Running)
    if ending == "failure":
        lost.running.error = JobError("broken")
    lost.running.stop() if ending == "stop" else lost.running.done()
    finish_one(zombie)
    assert front_end.record(job_id) == before
    assert front_end.redis.hgetall(Job.key_for(job_id)) == in_rq
    leases = front_end.queue.started_job_registry.get_job_and_execution_ids(cleanup=False)
    assert leases == ([(job_id, before.execution)] if retaken else [])
    assert front_end.queue.get_job_ids() == ([] if retaken else [job_id])
    assert zombie.executions == {}
    if retaken:  # and the heir finishes, with the picture that was stored first
        (held,) = heir._claims.values()
        assert isinstance(held.running, Running)
        held.running.done()
        finish_one(heir)
        assert front_end.record(job_id).status is JobStatus.SUCCEEDED


def test_a_cancelled_job_stays_cancelled_when_its_worker_finishes_late(
    front_end: Service, make_worker: Callable[[Any], BatchWorker]
) -> None:
    worker = make_worker(EndsWhenTold())
    job_id = front_end.submit()
    late = claim(worker)
    assert front_end.jobs.cancel(job_id) is not None
    before = front_end.record(job_id)
    assert isinstance(late.running, Running)
    late.running.done()
    finish_one(worker)
    assert front_end.record(job_id) == before
    assert before.status is JobStatus.CANCELLED
    assert front_end.is_idle()
    assert front_end.redis.ttl(Job.key_for(job_id)) > 0


def test_a_worker_is_told_of_a_cancel_also_where_rq_forgot_the_execution(
    front_end: Service, make_worker: Callable[[Any], BatchWorker]
) -> None:
    """RQ's record of an execution ends with the lease; the beat after an outage makes half of one anew."""
    worker = make_worker(EndsWhenTold())
    job_id = front_end.submit()
    running = claim(worker)
    front_end.redis.delete(running.execution.key)
    worker.maintain_heartbeats(running.job, running.execution)
    with front_end.redis.pubsub() as commands:
        commands.subscribe(PUBSUB_CHANNEL_TEMPLATE % worker.name)
        front_end.jobs.cancel(job_id)
        messages = [commands.get_message(timeout=5) for _ in range(2)]  # that it has subscribed, and the command
    told = parse_payload(messages[-1] or {})
    assert (told["command"], told["execution_id"]) == ("stop-execution", running.execution.id)


def test_a_job_queued_twice_runs_once(front_end: Service, make_worker: Callable[[Any], BatchWorker]) -> None:
    first, second = make_worker(EndsWhenTold()), make_worker(EndsWhenTold())
    job_id = front_end.submit()
    front_end.queue.push_job_id(job_id)  # as when the answer to a submit is lost, and it is sent again
    running = claim(first)
    before = front_end.record(job_id)
    assert second._intake.claim_one()
    assert second._claims == {}
    assert front_end.record(job_id) == before
    assert front_end.queue.started_job_registry.get_job_and_execution_ids(cleanup=False) == [
        (job_id, running.execution.id)
    ]


def test_stopping_an_execution_by_rq_itself_cancels_the_job(
    front_end: Service, make_worker: Callable[[Any], BatchWorker]
) -> None:
    worker = make_worker(EndsWhenTold())
    job_id = front_end.submit()
    worker.request_stop_execution(claim(worker).execution.id)
    finish_one(worker)
    assert front_end.record(job_id).status is JobStatus.CANCELLED
    assert front_end.is_idle()


def test_a_job_handed_back_too_often_fails_at_once(
    front_end: Service, make_worker: Callable[[Any], BatchWorker]
) -> None:
    job_id = front_end.submit()
    for _ in range(MAX_ATTEMPTS):
        assert front_end.record(job_id).status is JobStatus.QUEUED
        worker = make_worker(EndsWhenTold())
        claim(worker)
        worker._hand_back_all()
    assert front_end.record(job_id).status is JobStatus.FAILED
    assert front_end.is_idle()


def test_a_job_on_its_last_attempt_runs_alone(front_end: Service, make_worker: Callable[[Any], BatchWorker]) -> None:
    suspect = front_end.submit()
    for _ in range(MAX_ATTEMPTS - 1):
        front_end.jobs.requeue(suspect, execution=claim(make_worker(EndsWhenTold())).execution.id)
    worker = make_worker(EndsWhenTold())
    front_end.queue.remove(suspect)
    front_end.submit()
    neighbour = claim(worker)
    front_end.jobs.requeue(suspect)
    behind = front_end.submit()

    assert worker._intake.room > 0
    assert worker._intake.claim_one()
    assert worker._intake.room == 0, "it waits until the worker is empty, in its queue, and nothing overtakes it"
    assert front_end.record(suspect).attempts == MAX_ATTEMPTS - 1
    assert front_end.queue.get_job_ids() == [suspect, behind]

    assert isinstance(neighbour.running, Running)
    neighbour.running.done()
    finish_one(worker)
    del worker._claims[neighbour.execution.id]
    assert worker._intake.room == EndsWhenTold.slots
    alone = claim(worker)
    assert alone.record.id == suspect
    assert worker._intake.room == 0


class ServesTwoModels(EndsWhenTold):
    cards = [SimpleNamespace(name="other"), SimpleNamespace(name=MODEL)]


def test_the_models_of_a_worker_take_turns(front_end: Service, make_worker: Callable[[Any], BatchWorker]) -> None:
    worker = make_worker(ServesTwoModels())
    many = [front_end.submit(model="other") for _ in range(3)]
    single = front_end.submit()
    assert [claim(worker).record.id for _ in range(4)] == [many[0], single, *many[1:]]


def test_a_job_that_is_to_run_alone_comes_before_other_models(
    front_end: Service, make_worker: Callable[[Any], BatchWorker]
) -> None:
    suspect = front_end.submit()
    for _ in range(MAX_ATTEMPTS - 1):
        front_end.jobs.requeue(suspect, execution=claim(make_worker(EndsWhenTold())).execution.id)
    others = [front_end.submit(model="other") for _ in range(2)]
    worker = make_worker(ServesTwoModels())
    neighbour = claim(worker)
    assert neighbour.record.id == others[0]
    assert worker._intake.claim_one()
    assert worker._intake.room == 0
    assert isinstance(neighbour.running, Running)
    neighbour.running.done()
    finish_one(worker)
    del worker._claims[neighbour.execution.id]
    assert claim(worker).record.id == suspect


def test_pictures_that_an_earlier_run_stored_are_kept(
    front_end: Service, make_worker: Callable[[Any], BatchWorker]
) -> None:
    worker = make_worker(EndsWhenTold())
    job_id = front_end.submit(num_images=3)
    front_end.jobs.requeue(job_id, execution=claim(worker).execution.id)
    worker._store.put(result_key(job_id, 1), b"from the earlier run")
    again = claim(worker)
    assert isinstance(again.running, Running)
    assert again.running.indices == [0, 2]
    again.running.done()
    finish_one(worker)
    record = front_end.record(job_id)
    assert [image.bytes for image in record.images] == [len(PNG), len(b"from the earlier run"), len(PNG)]
    assert record.attempts == 2


def test_pictures_wait_for_a_store_that_is_full(
    front_end: Service, make_worker: Callable[..., BatchWorker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("img2img.worker.queue.batch_worker.OUTAGE_S", 0.01)
    store = FullStore()
    worker = make_worker(EndsWhenTold(), store)
    job_id = front_end.submit(num_images=2)
    running = claim(worker).running
    assert isinstance(running, Running)
    running.done()
    finisher = threading.Thread(target=finish_one, args=(worker,))
    finisher.start()
    wait_for(lambda: store.refused > 3)
    assert front_end.record(job_id).status is JobStatus.RUNNING
    store.room.set()
    finisher.join()
    record = front_end.record(job_id)
    assert (record.status, record.attempts, len(record.images)) == (JobStatus.SUCCEEDED, 1, 2)


def test_a_store_that_stays_away_fails_jobs_and_says_why(
    front_end: Service, make_worker: Callable[..., BatchWorker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("img2img.worker.queue.batch_worker.STORE_OUTAGE_S", 0.2)
    monkeypatch.setattr("img2img.worker.queue.batch_worker.OUTAGE_S", 0.01)
    store = FullStore()
    worker = make_worker(EndsWhenTold(), store)
    ids = [front_end.submit() for _ in range(3)]
    for _ in ids:
        running = claim(worker).running
        assert isinstance(running, Running)
        running.done()
    finish_one(worker)
    refused = store.refused
    assert refused > 3
    finish_one(worker)
    assert store.refused == refused + 1, "the time is counted for all jobs together"
    store.room.set()
    finish_one(worker)
    *failed, last = front_end.all(ids)
    assert [record.error and record.error.code for record in failed] == ["storage_unavailable"] * 2
    assert last.status is JobStatus.SUCCEEDED
    assert worker._store_away_since is None


def test_no_more_is_claimed_than_can_be_stored(front_end: Service, make_worker: Callable[..., BatchWorker]) -> None:
    worker = make_worker(EndsWhenTold())
    for _ in range(EndsWhenTold.slots):
        front_end.submit()
        rendered = claim(worker)
        assert isinstance(rendered.running, Running)
        assert worker._intake.room > 0
        rendered.running.left = 0
        rendered.running.done()
    assert worker._intake.room == 0
    ended = worker._ended.get()
    assert ended is not None
    worker._finish(ended)
    del worker._claims[ended.execution.id]
    assert worker._intake.room == EndsWhenTold.slots
