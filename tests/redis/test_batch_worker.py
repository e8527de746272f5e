"""BatchWorker with executions that end too early, too late, or not at all."""

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

PNG = b"an image"


class Running:
    """A running job that ends when the test calls `done`."""

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


class ManualRunner:
    """Runner of jobs that run until the test ends them."""

    slots = 4
    cards = [SimpleNamespace(name=MODEL)]

    def start(
        self, spec: JobSpec, pngs: Mapping[str, bytes], indices: Sequence[int], on_done: Callable[[], None]
    ) -> Running:
        return Running(indices, on_done)


class InstantRunner(ManualRunner):
    """Runner of jobs that end before `start` returns."""

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
    """Store that refuses results until `has_space` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.has_space = threading.Event()
        self.refused = 0

    def put(self, key: str, data: bytes) -> bool:
        if key.startswith("results/") and not self.has_space.is_set():
            self.refused += 1
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().put(key, data)


@pytest.fixture
def make_worker(idle_service: Service) -> Iterator[Callable[[Any], BatchWorker]]:
    workers = []

    def make(runner: Any, store: MemoryStore | None = None) -> BatchWorker:
        store = store or MemoryStore()
        store.put(input_key(idle_service.image), b"an input")
        worker = BatchWorker(idle_service.redis, store, runner, lease_s=20)
        workers.append(worker)
        return worker

    yield make
    for worker in workers:
        worker._loaders.shutdown()


def claim(worker: BatchWorker) -> JobExecution:
    """Claim one job and wait until it is in the engine."""
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
def test_job_that_ends_at_once_keeps_its_images_and_error(
    error: JobError | None, idle_service: Service, make_worker: Callable[[Any], BatchWorker]
) -> None:
    runner = InstantRunner()
    runner.error = error
    worker = make_worker(runner)
    job_id = idle_service.submit(num_images=2)
    assert worker._intake.claim_one()
    finish_one(worker)
    record = idle_service.record(job_id)
    if error is None:
        assert record.status is JobStatus.SUCCEEDED
        assert [image.index for image in record.images] == [0, 1]
    else:
        assert record.error is not None
        assert record.error.message == "broken"
    assert idle_service.is_idle()


@pytest.mark.parametrize("retaken", [False, True], ids=["waiting again", "in other hands"])
@pytest.mark.parametrize("ending", ["success", "failure", "stop"])
def test_worker_that_lost_its_lease_changes_nothing(
    ending: str, retaken: bool, idle_service: Service, make_worker: Callable[[Any], BatchWorker]
) -> None:
    zombie, heir = make_worker(ManualRunner()), make_worker(ManualRunner())
    job_id = idle_service.submit()
    lost = claim(zombie)
    idle_service.jobs.requeue(job_id, execution=lost.execution.id)
    if retaken:
        claim(heir)
    before, in_rq = idle_service.record(job_id), idle_service.redis.hgetall(Job.key_for(job_id))
    assert isinstance(lost.running, Running)
    if ending == "failure":
        lost.running.error = JobError("broken")
    lost.running.stop() if ending == "stop" else lost.running.done()
    finish_one(zombie)
    assert idle_service.record(job_id) == before
    assert idle_service.redis.hgetall(Job.key_for(job_id)) == in_rq
    leases = idle_service.queue.started_job_registry.get_job_and_execution_ids(cleanup=False)
    assert leases == ([(job_id, before.execution)] if retaken else [])
    assert idle_service.queue.get_job_ids() == ([] if retaken else [job_id])
    assert zombie.executions == {}
    if retaken:  # and the new owner finishes, with the image that was stored first
        (held,) = heir._claims.values()
        assert isinstance(held.running, Running)
        held.running.done()
        finish_one(heir)
        assert idle_service.record(job_id).status is JobStatus.SUCCEEDED


def test_cancelled_job_stays_cancelled_when_its_worker_finishes_late(
    idle_service: Service, make_worker: Callable[[Any], BatchWorker]
) -> None:
    worker = make_worker(ManualRunner())
    job_id = idle_service.submit()
    late = claim(worker)
    assert idle_service.jobs.cancel(job_id) is not None
    before = idle_service.record(job_id)
    assert isinstance(late.running, Running)
    late.running.done()
    finish_one(worker)
    assert idle_service.record(job_id) == before
    assert before.status is JobStatus.CANCELLED
    assert idle_service.is_idle()
    assert idle_service.redis.ttl(Job.key_for(job_id)) > 0


def test_cancel_reaches_the_worker_without_rqs_execution_record(
    idle_service: Service, make_worker: Callable[[Any], BatchWorker]
) -> None:
    """RQ deletes its record of an execution with the lease; a heartbeat after an outage restores only a part of it."""
    worker = make_worker(ManualRunner())
    job_id = idle_service.submit()
    running = claim(worker)
    idle_service.redis.delete(running.execution.key)
    worker.maintain_heartbeats(running.job, running.execution)
    with idle_service.redis.pubsub() as commands:
        commands.subscribe(PUBSUB_CHANNEL_TEMPLATE % worker.name)
        idle_service.jobs.cancel(job_id)
        messages = [commands.get_message(timeout=5) for _ in range(2)]  # that it has subscribed, and the command
    command = parse_payload(messages[-1] or {})
    assert (command["command"], command["execution_id"]) == ("stop-execution", running.execution.id)


def test_job_queued_twice_runs_once(idle_service: Service, make_worker: Callable[[Any], BatchWorker]) -> None:
    first, second = make_worker(ManualRunner()), make_worker(ManualRunner())
    job_id = idle_service.submit()
    idle_service.queue.push_job_id(job_id)  # as when the answer to a submit is lost, and it is sent again
    running = claim(first)
    before = idle_service.record(job_id)
    assert second._intake.claim_one()
    assert second._claims == {}
    assert idle_service.record(job_id) == before
    assert idle_service.queue.started_job_registry.get_job_and_execution_ids(cleanup=False) == [
        (job_id, running.execution.id)
    ]


def test_stop_command_of_rq_cancels_the_job(idle_service: Service, make_worker: Callable[[Any], BatchWorker]) -> None:
    worker = make_worker(ManualRunner())
    job_id = idle_service.submit()
    worker.request_stop_execution(claim(worker).execution.id)
    finish_one(worker)
    assert idle_service.record(job_id).status is JobStatus.CANCELLED
    assert idle_service.is_idle()


def test_job_requeued_too_often_fails_at_once(idle_service: Service, make_worker: Callable[[Any], BatchWorker]) -> None:
    job_id = idle_service.submit()
    for _ in range(MAX_ATTEMPTS):
        assert idle_service.record(job_id).status is JobStatus.QUEUED
        worker = make_worker(ManualRunner())
        claim(worker)
        worker._hand_back_all()
    assert idle_service.record(job_id).status is JobStatus.FAILED
    assert idle_service.is_idle()


def test_job_on_its_last_attempt_runs_alone(idle_service: Service, make_worker: Callable[[Any], BatchWorker]) -> None:
    suspect = idle_service.submit()
    for _ in range(MAX_ATTEMPTS - 1):
        idle_service.jobs.requeue(suspect, execution=claim(make_worker(ManualRunner())).execution.id)
    worker = make_worker(ManualRunner())
    idle_service.queue.remove(suspect)
    idle_service.submit()
    neighbour = claim(worker)
    idle_service.jobs.requeue(suspect)
    behind = idle_service.submit()

    assert worker._intake.room > 0
    assert worker._intake.claim_one()
    assert worker._intake.room == 0, "it waits in its queue until the worker is empty, and no job overtakes it"
    assert idle_service.record(suspect).attempts == MAX_ATTEMPTS - 1
    assert idle_service.queue.get_job_ids() == [suspect, behind]

    assert isinstance(neighbour.running, Running)
    neighbour.running.done()
    finish_one(worker)
    del worker._claims[neighbour.execution.id]
    assert worker._intake.room == ManualRunner.slots
    alone = claim(worker)
    assert alone.record.id == suspect
    assert worker._intake.room == 0


class TwoModelRunner(ManualRunner):
    cards = [SimpleNamespace(name="other"), SimpleNamespace(name=MODEL)]


def test_models_of_a_worker_take_turns(idle_service: Service, make_worker: Callable[[Any], BatchWorker]) -> None:
    worker = make_worker(TwoModelRunner())
    many = [idle_service.submit(model="other") for _ in range(3)]
    single = idle_service.submit()
    assert [claim(worker).record.id for _ in range(4)] == [many[0], single, *many[1:]]


def test_exclusive_job_comes_before_other_models(
    idle_service: Service, make_worker: Callable[[Any], BatchWorker]
) -> None:
    suspect = idle_service.submit()
    for _ in range(MAX_ATTEMPTS - 1):
        idle_service.jobs.requeue(suspect, execution=claim(make_worker(ManualRunner())).execution.id)
    others = [idle_service.submit(model="other") for _ in range(2)]
    worker = make_worker(TwoModelRunner())
    neighbour = claim(worker)
    assert neighbour.record.id == others[0]
    assert worker._intake.claim_one()
    assert worker._intake.room == 0
    assert isinstance(neighbour.running, Running)
    neighbour.running.done()
    finish_one(worker)
    del worker._claims[neighbour.execution.id]
    assert claim(worker).record.id == suspect


def test_images_stored_by_an_earlier_attempt_are_kept(
    idle_service: Service, make_worker: Callable[[Any], BatchWorker]
) -> None:
    worker = make_worker(ManualRunner())
    job_id = idle_service.submit(num_images=3)
    idle_service.jobs.requeue(job_id, execution=claim(worker).execution.id)
    worker._store.put(result_key(job_id, 1), b"from the earlier run")
    again = claim(worker)
    assert isinstance(again.running, Running)
    assert again.running.indices == [0, 2]
    again.running.done()
    finish_one(worker)
    record = idle_service.record(job_id)
    assert [image.bytes for image in record.images] == [len(PNG), len(b"from the earlier run"), len(PNG)]
    assert record.attempts == 2


def test_images_wait_for_a_full_store(
    idle_service: Service, make_worker: Callable[..., BatchWorker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("img2img.worker.queue.batch_worker.OUTAGE_S", 0.01)
    store = FullStore()
    worker = make_worker(ManualRunner(), store)
    job_id = idle_service.submit(num_images=2)
    running = claim(worker).running
    assert isinstance(running, Running)
    running.done()
    finisher = threading.Thread(target=finish_one, args=(worker,))
    finisher.start()
    wait_for(lambda: store.refused > 3)
    assert idle_service.record(job_id).status is JobStatus.RUNNING
    store.has_space.set()
    finisher.join()
    record = idle_service.record(job_id)
    assert (record.status, record.attempts, len(record.images)) == (JobStatus.SUCCEEDED, 1, 2)


def test_store_outage_fails_jobs(
    idle_service: Service, make_worker: Callable[..., BatchWorker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("img2img.worker.queue.batch_worker.STORE_OUTAGE_S", 0.2)
    monkeypatch.setattr("img2img.worker.queue.batch_worker.OUTAGE_S", 0.01)
    store = FullStore()
    worker = make_worker(ManualRunner(), store)
    ids = [idle_service.submit() for _ in range(3)]
    for _ in ids:
        running = claim(worker).running
        assert isinstance(running, Running)
        running.done()
    finish_one(worker)
    refused = store.refused
    assert refused > 3
    finish_one(worker)
    assert store.refused == refused + 1, "the time is counted for all jobs together"
    store.has_space.set()
    finish_one(worker)
    *failed, last = idle_service.all(ids)
    assert [record.error and record.error.code for record in failed] == ["storage_unavailable"] * 2
    assert last.status is JobStatus.SUCCEEDED
    assert worker._store_away_since is None


def test_claims_stop_while_images_wait_to_be_stored(
    idle_service: Service, make_worker: Callable[..., BatchWorker]
) -> None:
    worker = make_worker(ManualRunner())
    for _ in range(ManualRunner.slots):
        idle_service.submit()
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
    assert worker._intake.room == ManualRunner.slots
