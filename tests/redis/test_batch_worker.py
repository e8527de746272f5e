"""BatchWorker with runners and blob stores that misbehave, and without an engine."""

import errno
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from rq.command import PUBSUB_CHANNEL_TEMPLATE, parse_payload
from rq.job import Job
from rq.serializers import JSONSerializer

from img2img.domain.blob_keys import input_key, result_key
from img2img.domain.job import JobOptions, JobStatus, Priority
from img2img.domain.spec import SPEC_VERSION, JobSpec
from img2img.erasure import Eraser
from img2img.errors import Cancelled, JobError
from img2img.redis.job_queue import MAX_ATTEMPTS
from img2img.redis.keys import EXPIRING_JOBS, JOB
from img2img.worker.engine.timeline import Timeline
from img2img.worker.queue.batch_worker import FINISHER_THREADS, BatchWorker
from img2img.worker.queue.execution import ExecutionState, JobExecution
from img2img.worker.queue.job_fetcher import UNREADABLE_S
from img2img.worker.queue.reaper import UNREADABLE, Reaper
from img2img.worker.queue.retention import Retention
from tests.support.fixed_models import FixedModels
from tests.support.images import encoded, gradient
from tests.support.memory_store import MemoryStore
from tests.support.processes import MODEL, SIDE, Service, wait_for
from tests.support.specs import make_spec

PNG, EARLIER_PNG = (encoded(gradient(SIDE, SIDE, blue)) for blue in (0, 200))


class FakeRendering:
    """A rendering without an engine: the test ends it."""

    waits = False
    digest = None

    def __init__(self, indices: Sequence[int]) -> None:
        self.indices = indices
        self.steps_done = 0
        self.remaining = len(indices)
        self.error: JobError | None = None

    def start(self, on_done: Callable[[], None]) -> None:
        self.end = on_done

    def stop(self) -> None:
        self.error = Cancelled()
        self.end()

    def timeline(self) -> Timeline:
        return Timeline()

    def render(self) -> list[Any]:
        if self.error is not None:
            raise self.error
        return [SimpleNamespace(index=index, png=PNG) for index in self.indices]


class FakeRunner:
    """A runner whose jobs run until the test ends them."""

    slots = 4
    names = [MODEL]

    def prepare(self, spec: JobSpec, pngs: Mapping[str, bytes], indices: Sequence[int], *_: Any) -> FakeRendering:
        return FakeRendering(indices)


class InstantRendering(FakeRendering):
    """Ends before `start` returns, as in an engine that is faster than the loader thread."""

    def start(self, on_done: Callable[[], None]) -> None:
        on_done()
        time.sleep(0.2)


class InstantRunner(FakeRunner):
    def __init__(self, error: JobError | None) -> None:
        self.error = error

    def prepare(self, spec: JobSpec, pngs: Mapping[str, bytes], indices: Sequence[int], *_: Any) -> FakeRendering:
        rendering = InstantRendering(indices)
        rendering.error = self.error
        return rendering


class FullStore(MemoryStore):
    """Accepts no results until the test makes space."""

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
def make_worker(idle_service: Service) -> Iterator[Callable[..., BatchWorker]]:
    workers = []

    def make(runner: Any = None, store: MemoryStore | None = None) -> BatchWorker:
        store = store or MemoryStore()
        store.put(input_key(idle_service.image), idle_service.input)
        runner = runner or FakeRunner()
        models = FixedModels({name: SimpleNamespace(card=SimpleNamespace(name=name)) for name in runner.names})
        worker = BatchWorker(idle_service.redis, store, runner, models, lease_s=20)
        workers.append(worker)
        return worker

    yield make
    for worker in workers:
        worker._loaders.shutdown()


def fetch(worker: BatchWorker) -> JobExecution:
    """Let the worker fetch one job, and wait until it is in the engine."""
    before = set(worker._in_flight)
    assert worker._fetcher.fetch_one()
    (key,) = set(worker._in_flight) - before
    execution = worker._in_flight[key]
    wait_for(lambda: execution.state is ExecutionState.RUNNING)
    return execution


def rendering_of(execution: JobExecution) -> FakeRendering:
    assert isinstance(execution._rendering, FakeRendering)
    return execution._rendering


def finish_one(worker: BatchWorker) -> None:
    assert worker._finisher.finish_next()


def make_new(service: Service, job_id: str, **fields: Any) -> bytes:
    """Let the job have fields of a later version. Returns the spec as it was."""
    name = JOB.format(id=job_id)
    spec = service.redis.hget(name, "spec")
    assert isinstance(spec, bytes)
    service.redis.hset(name, mapping={"spec": json.dumps(json.loads(spec) | {"new": 1}), **fields})
    return spec


@pytest.mark.parametrize("fields", [{}, {"spec_version": SPEC_VERSION + 1}])
def test_job_of_a_later_version_is_left_to_a_later_worker(
    make_worker: Callable[..., BatchWorker], idle_service: Service, fields: dict[str, Any]
) -> None:
    new, other = idle_service.submit(), idle_service.submit()
    spec = make_new(idle_service, new, **fields)
    earlier, later = make_worker(), make_worker()
    assert earlier._fetcher.fetch_one()
    assert not earlier._fetcher.fetch_one(), "it waits, so that the other worker is first"
    assert idle_service.queue.get_job_ids() == [new, other]
    idle_service.redis.hset(JOB.format(id=new), mapping={"spec": spec, "spec_version": SPEC_VERSION})
    assert fetch(later).job_id == new
    wait_for(lambda: earlier._fetcher.fetch_one())
    assert [execution.job_id for execution in earlier._in_flight.values()] == [other]


def test_job_of_a_later_version_blocks_no_others(
    make_worker: Callable[..., BatchWorker], idle_service: Service
) -> None:
    new, other = idle_service.submit(), idle_service.submit()
    spec = make_new(idle_service, new)
    worker = make_worker()
    assert worker._fetcher.fetch_one()
    wait_for(worker._fetcher.fetch_one)
    assert fetch(worker).job_id == other
    # The reaper finds it, and a worker of a later version may have been started since.
    Reaper(idle_service.redis, lease_s=0)._requeue_orphaned([idle_service.queue])
    assert idle_service.queue.get_job_ids() == [new]
    idle_service.redis.hset(JOB.format(id=new), "spec", spec)
    assert fetch(worker).job_id == new


def test_job_that_no_worker_reads_for_long_fails(
    make_worker: Callable[..., BatchWorker], idle_service: Service
) -> None:
    job = idle_service.submit()
    make_new(idle_service, job, unreadable_since=time.time() - UNREADABLE_S - 1)
    make_worker()._fetcher.fetch_one()
    record = idle_service.record(job)
    assert (record.status, record.error) == (JobStatus.FAILED, UNREADABLE)
    assert idle_service.is_idle()


@pytest.mark.parametrize("error", [None, JobError("broken")])
def test_job_rendered_at_once_keeps_images_and_error(
    error: JobError | None, idle_service: Service, make_worker: Callable[..., BatchWorker]
) -> None:
    worker = make_worker(InstantRunner(error))
    job_id = idle_service.submit(num_images=2)
    assert worker._fetcher.fetch_one()
    finish_one(worker)
    record = idle_service.record(job_id)
    if error is None:
        assert record.status is JobStatus.SUCCEEDED
        assert [image.index for image in record.images] == [0, 1]
    else:
        assert record.error is not None
        assert record.error.message == "broken"
    assert idle_service.is_idle()


@pytest.mark.parametrize("retaken", [False, True], ids=["queued", "retaken"])
@pytest.mark.parametrize("ending", ["success", "failure", "stop"])
def test_worker_that_lost_lease_changes_nothing(
    ending: str, retaken: bool, idle_service: Service, make_worker: Callable[..., BatchWorker]
) -> None:
    first, second = make_worker(), make_worker()
    job_id = idle_service.submit()
    lost = fetch(first)
    idle_service.jobs.requeue(job_id, execution=lost.id)
    if retaken:
        fetch(second)
    before, in_rq = idle_service.record(job_id), idle_service.redis.hgetall(Job.key_for(job_id))
    if ending == "failure":
        rendering_of(lost).error = JobError("broken")
    rendering_of(lost).stop() if ending == "stop" else rendering_of(lost).end()
    finish_one(first)
    assert idle_service.record(job_id) == before
    assert idle_service.redis.hgetall(Job.key_for(job_id)) == in_rq
    leases = idle_service.queue.started_job_registry.get_job_and_execution_ids(cleanup=False)
    assert leases == ([(job_id, before.execution)] if retaken else [])
    assert idle_service.queue.get_job_ids() == ([] if retaken else [job_id])
    assert first.executions == {}
    if retaken:
        # The second worker finishes the job with the images that were stored first.
        (held,) = second._in_flight.values()
        rendering_of(held).end()
        finish_one(second)
        assert idle_service.record(job_id).status is JobStatus.SUCCEEDED


def test_cancelled_job_stays_cancelled_if_worker_finishes_late(
    idle_service: Service, make_worker: Callable[..., BatchWorker]
) -> None:
    worker = make_worker()
    job_id = idle_service.submit()
    late = fetch(worker)
    assert idle_service.jobs.cancel(job_id) is not None
    before = idle_service.record(job_id)
    rendering_of(late).end()
    finish_one(worker)
    assert idle_service.record(job_id) == before
    assert before.status is JobStatus.CANCELLED
    assert idle_service.is_idle()
    assert idle_service.redis.ttl(Job.key_for(job_id)) > 0


def test_cancel_reaches_worker_without_execution_in_rq(
    idle_service: Service, make_worker: Callable[..., BatchWorker]
) -> None:
    """RQ's record of an execution expires with the lease; the heartbeat after an outage restores only part of it."""
    worker = make_worker()
    job_id = idle_service.submit()
    running = fetch(worker)
    idle_service.redis.delete(running.rq_execution.key)
    worker.maintain_heartbeats(running.job, running.rq_execution)
    with idle_service.redis.pubsub() as commands:
        commands.subscribe(PUBSUB_CHANNEL_TEMPLATE % worker.name)
        idle_service.jobs.cancel(job_id)
        # The first message confirms the subscription.
        messages = [commands.get_message(timeout=5) for _ in range(2)]
    payload = parse_payload(messages[-1] or {})
    assert (payload["command"], payload["execution_id"]) == ("stop-execution", running.id)


def test_job_queued_twice_runs_once(idle_service: Service, make_worker: Callable[..., BatchWorker]) -> None:
    first, second = make_worker(), make_worker()
    job_id = idle_service.submit()
    # As after a submission whose response was lost and that was sent again.
    idle_service.queue.push_job_id(job_id)
    running = fetch(first)
    before = idle_service.record(job_id)
    assert second._fetcher.fetch_one()
    assert second._in_flight == {}
    assert idle_service.record(job_id) == before
    assert idle_service.queue.started_job_registry.get_job_and_execution_ids(cleanup=False) == [(job_id, running.id)]


def test_stop_command_of_rq_cancels_job(idle_service: Service, make_worker: Callable[..., BatchWorker]) -> None:
    worker = make_worker()
    job_id = idle_service.submit()
    worker.request_stop_execution(fetch(worker).id)
    finish_one(worker)
    assert idle_service.record(job_id).status is JobStatus.CANCELLED
    assert idle_service.is_idle()


def test_job_requeued_too_often_fails_at_once(idle_service: Service, make_worker: Callable[..., BatchWorker]) -> None:
    job_id = idle_service.submit()
    for _ in range(MAX_ATTEMPTS):
        assert idle_service.record(job_id).status is JobStatus.QUEUED
        worker = make_worker()
        fetch(worker)
        worker._requeue_all()
    assert idle_service.record(job_id).status is JobStatus.FAILED
    assert idle_service.is_idle()


def test_job_on_last_attempt_runs_alone(idle_service: Service, make_worker: Callable[..., BatchWorker]) -> None:
    exclusive = idle_service.submit()
    for _ in range(MAX_ATTEMPTS - 1):
        idle_service.jobs.requeue(exclusive, execution=fetch(make_worker()).id)
    worker = make_worker()
    idle_service.queue.remove(exclusive)
    idle_service.submit()
    neighbour = fetch(worker)
    idle_service.jobs.requeue(exclusive)
    behind = idle_service.submit()

    assert worker._fetcher.free_slots > 0
    assert worker._fetcher.fetch_one()
    assert worker._fetcher.free_slots == 0, "the job waits first in its queue until the worker is empty"
    assert idle_service.record(exclusive).attempts == MAX_ATTEMPTS - 1
    assert idle_service.queue.get_job_ids() == [exclusive, behind]

    rendering_of(neighbour).end()
    finish_one(worker)
    assert worker._fetcher.free_slots == FakeRunner.slots
    alone = fetch(worker)
    assert alone.record.id == exclusive
    assert worker._fetcher.free_slots == 0


class ServesTwoModels(FakeRunner):
    names = ["other", MODEL]


def test_worker_fetches_from_models_in_rotation(idle_service: Service, make_worker: Callable[..., BatchWorker]) -> None:
    worker = make_worker(ServesTwoModels())
    many = [idle_service.submit(model="other") for _ in range(3)]
    single = idle_service.submit()
    assert [fetch(worker).record.id for _ in range(4)] == [many[0], single, *many[1:]]


def test_job_on_last_attempt_precedes_other_models(
    idle_service: Service, make_worker: Callable[..., BatchWorker]
) -> None:
    exclusive = idle_service.submit()
    for _ in range(MAX_ATTEMPTS - 1):
        idle_service.jobs.requeue(exclusive, execution=fetch(make_worker()).id)
    others = [idle_service.submit(model="other") for _ in range(2)]
    worker = make_worker(ServesTwoModels())
    neighbour = fetch(worker)
    assert neighbour.record.id == others[0]
    assert worker._fetcher.fetch_one()
    assert worker._fetcher.free_slots == 0
    rendering_of(neighbour).end()
    finish_one(worker)
    assert fetch(worker).record.id == exclusive


def test_images_stored_by_earlier_execution_are_kept(
    idle_service: Service, make_worker: Callable[..., BatchWorker]
) -> None:
    worker = make_worker()
    job_id = idle_service.submit(num_images=3)
    idle_service.jobs.requeue(job_id, execution=fetch(worker).id)
    worker._store.put(result_key(job_id, 1), EARLIER_PNG)
    again = fetch(worker)
    assert rendering_of(again).indices == [0, 2]
    rendering_of(again).end()
    finish_one(worker)
    record = idle_service.record(job_id)
    assert [image.bytes for image in record.images] == [len(PNG), len(EARLIER_PNG), len(PNG)]
    assert record.attempts == 2


def test_images_wait_for_full_store(
    idle_service: Service, make_worker: Callable[..., BatchWorker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("img2img.worker.queue.finisher.RETRY_INTERVAL_S", 0.01)
    store = FullStore()
    worker = make_worker(store=store)
    job_id = idle_service.submit(num_images=2)
    rendering_of(fetch(worker)).end()
    finisher = threading.Thread(target=finish_one, args=(worker,))
    finisher.start()
    wait_for(lambda: store.refused > 3)
    assert idle_service.record(job_id).status is JobStatus.RUNNING
    store.has_space.set()
    finisher.join()
    record = idle_service.record(job_id)
    assert (record.status, record.attempts, len(record.images)) == (JobStatus.SUCCEEDED, 1, 2)


def test_long_store_outage_fails_jobs(
    idle_service: Service, make_worker: Callable[..., BatchWorker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("img2img.worker.queue.finisher.STORE_TIMEOUT_S", 0.2)
    monkeypatch.setattr("img2img.worker.queue.finisher.RETRY_INTERVAL_S", 0.01)
    store = FullStore()
    worker = make_worker(store=store)
    ids = [idle_service.submit() for _ in range(3)]
    for _ in ids:
        rendering_of(fetch(worker)).end()
    finish_one(worker)
    refused = store.refused
    assert refused > 3
    finish_one(worker)
    assert store.refused == refused + 1, "the limit applies to the whole outage"
    store.has_space.set()
    finish_one(worker)
    *failed, last = idle_service.all(ids)
    assert [record.error and record.error.code for record in failed] == ["storage_unavailable"] * 2
    assert last.status is JobStatus.SUCCEEDED
    assert worker._finisher._store_unavailable_since is None


def test_fetcher_pauses_while_rendered_jobs_wait_for_store(
    idle_service: Service, make_worker: Callable[..., BatchWorker]
) -> None:
    worker = make_worker()
    for _ in range(FakeRunner.slots):
        idle_service.submit()
        rendered = fetch(worker)
        assert worker._fetcher.free_slots > 0
        rendering_of(rendered).remaining = 0
        rendering_of(rendered).end()
    assert worker._fetcher.free_slots == 0
    finish_one(worker)
    assert worker._fetcher.free_slots == FakeRunner.slots


def test_images_of_a_job_that_was_deleted_while_it_ran_are_deleted(
    idle_service: Service, make_worker: Callable[..., BatchWorker]
) -> None:
    worker = make_worker()
    job_id = idle_service.submit(num_images=2)
    late = fetch(worker)
    Eraser(idle_service.jobs, worker._store).delete_job(job_id)
    rendering_of(late).end()
    finish_one(worker)
    assert [worker._store.get(result_key(job_id, index)) for index in range(2)] == [None, None]
    assert late.state is ExecutionState.ENDED
    assert idle_service.is_idle()
    assert not idle_service.redis.exists(Job.key_for(job_id))


def test_outage_while_images_of_a_deleted_job_are_deleted_keeps_the_worker(
    idle_service: Service, make_worker: Callable[..., BatchWorker], monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = make_worker()
    job_id = idle_service.submit()
    late = fetch(worker)
    eraser = Eraser(idle_service.jobs, worker._store)
    eraser.delete_job(job_id)
    with monkeypatch.context() as patch:
        patch.setattr(worker._store, "delete", raise_os_error)
        rendering_of(late).end()
        finish_one(worker)
    assert worker._store.get(result_key(job_id, 0)) == PNG
    assert idle_service.is_idle()
    idle_service.redis.zadd(EXPIRING_JOBS, {job_id: 1}, xx=True)
    Retention(idle_service.redis, worker._store).sweep()
    assert worker._store.get(result_key(job_id, 0)) is None


def raise_os_error(*_: str) -> None:
    raise OSError("the store is unavailable")


def test_rq_keeps_no_error_message(idle_service: Service, make_worker: Callable[..., BatchWorker]) -> None:
    """It may quote the prompt, and RQ keeps it for a day, also if the job is deleted."""
    worker = make_worker()
    job_id = idle_service.submit()
    execution = fetch(worker)
    rendering_of(execution).error = JobError("cannot parse the prompt: a private prompt")
    rendering_of(execution).end()
    finish_one(worker)
    error = idle_service.record(job_id).error
    assert error is not None
    assert error.message == "cannot parse the prompt: a private prompt"
    Eraser(idle_service.jobs, worker._store).delete_job(job_id)
    redis = idle_service.redis
    redis.config_set("rdbcompression", "no")
    assert not [key for key in redis.scan_iter() if b"a private prompt" in redis.dump(key)]


class MeetingStore(MemoryStore):
    """A store whose writes of results wait for each other, so that one thread alone writes none."""

    def __init__(self, parties: int) -> None:
        super().__init__()
        self.barrier = threading.Barrier(parties, timeout=60)
        self.writes: list[str] = []

    def put(self, key: str, data: bytes) -> bool:
        if key.startswith("results/"):
            self.barrier.wait()
            self.writes.append(key)
        return super().put(key, data)


def test_finishers_end_jobs_at_the_same_time_and_each_once(
    idle_service: Service, make_worker: Callable[..., BatchWorker]
) -> None:
    store = MeetingStore(FINISHER_THREADS)
    worker = make_worker(store=store)
    ended = 0
    threads = [threading.Thread(target=worker._finisher.run, daemon=True) for _ in range(FINISHER_THREADS)]
    for thread in threads:
        thread.start()
    for _ in range(3):
        ids = [idle_service.submit() for _ in range(FINISHER_THREADS)]
        for execution in [fetch(worker) for _ in ids]:
            rendering_of(execution).end()
        ended += len(ids)
        wait_for(lambda: not worker._in_flight)
        assert {record.status for record in idle_service.all(ids)} == {JobStatus.SUCCEEDED}
    stopped, broken = idle_service.submit(), idle_service.submit()
    executions = {execution.record.id: execution for execution in (fetch(worker), fetch(worker))}
    idle_service.jobs.cancel(stopped)
    rendering_of(executions[broken]).error = JobError("broken")
    rendering_of(executions[broken]).end()
    rendering_of(executions[stopped]).stop()
    worker._finisher.close()
    for thread in threads:
        thread.join()
    assert len(store.writes) == len(set(store.writes)) == ended
    in_rq = Job.fetch_many([stopped, broken], connection=idle_service.redis, serializer=JSONSerializer)
    assert [job and job.get_status() for job in in_rq] == ["stopped", "failed"]
    assert idle_service.is_idle()


def test_jobs_of_high_priority_are_fetched_beyond_the_slots(
    idle_service: Service, make_worker: Callable[..., BatchWorker]
) -> None:
    worker = make_worker()
    normal = [idle_service.submit() for _ in range(2 * FakeRunner.slots)]
    for _ in range(FakeRunner.slots):
        fetch(worker)
    assert not worker._fetcher.fetch()
    options = JobOptions(priority=Priority.HIGH, deadline_s=100)
    spec = make_spec(image=idle_service.image, width=SIDE, height=SIDE)
    high = [idle_service.jobs.submit(spec, options).id for _ in range(5)]
    while worker._fetcher.fetch():
        pass
    taken = [execution.record.id for execution in worker._in_flight.values()]
    assert taken == [*normal[: FakeRunner.slots], *high[: FakeRunner.slots]]
    urgency = next(e._urgency for e in worker._in_flight.values() if e.record.id == high[0])
    assert urgency.priority == 0
    assert 90 < (urgency.deadline or 0) - time.perf_counter() <= 100


def test_jobs_with_a_deadline_before_those_in_flight_are_fetched_beyond_the_slots(
    idle_service: Service, make_worker: Callable[..., BatchWorker]
) -> None:
    worker = make_worker()
    spec = make_spec(image=idle_service.image, width=SIDE, height=SIDE)

    def submit(deadline_s: float) -> str:
        return idle_service.jobs.submit(spec, JobOptions(deadline_s=deadline_s)).id

    patient = [submit(500) for _ in range(FakeRunner.slots)]
    for _ in patient:
        fetch(worker)
    later, earlier = submit(600), submit(100)
    while worker._fetcher.fetch():
        pass
    assert [execution.record.id for execution in worker._in_flight.values()] == [*patient, earlier]
    assert worker._fetcher.free_slots == -1
    assert idle_service.jobs.claim(MODEL) == later.encode()


def test_worker_is_told_of_queued_jobs_of_its_models(
    idle_service: Service, make_worker: Callable[..., BatchWorker]
) -> None:
    worker = make_worker()
    closed = threading.Event()
    thread = threading.Thread(target=worker._arrivals.run, args=(closed,))
    thread.start()
    try:
        assert worker._wake.wait(10), "jobs may have been queued before"
        for model, is_served in (("other", False), (MODEL, True)):
            worker._wake.clear()
            job_id = idle_service.submit(model=model)
            assert worker._wake.wait(10 if is_served else 0.3) == is_served
        worker._wake.clear()
        idle_service.jobs.requeue(job_id)
        assert worker._wake.wait(10)
    finally:
        closed.set()
        thread.join()
