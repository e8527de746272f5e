"""Killed, paused and disconnected processes lose no job and publish none twice, with real workers and Redis."""

import json
import pickle
import select
import signal
import socket
import time
from pathlib import Path
from typing import Any

from rq import Callback
from rq.job import Job
from rq.serializers import JSONSerializer, PickleSerializer

from img2img.domain.blob_keys import result_key
from img2img.domain.job import JobStatus
from img2img.domain.parameters import DIFFUSION_SCHEDULERS, Scheduler
from tests.support.processes import Service, wait_for

# Steps of a long job.
LONG = 150


def test_worker_killed_with_full_batch_loses_no_job(service: Service) -> None:
    lease_s = 4
    victim, successor = (service.start_worker(slots=6, lease_s=lease_s, wait=False) for _ in range(2))
    service.wait_until_live(victim)
    schedulers = [s for s in DIFFUSION_SCHEDULERS if s not in (Scheduler.LCM, Scheduler.TCD)]
    ids = []
    for i in range(16):
        ids.append(service.submit(seed=i, scheduler=schedulers[i % len(schedulers)], num_inference_steps=LONG - 3 * i))
        time.sleep(0.03)
    service.wait_until_live(successor)
    wait_for(lambda: sum(victim.owns(record) and record.step > 0 for record in service.all(ids)) >= 5)
    lost = [record for record in service.all(ids) if victim.owns(record) and not record.status.is_terminal]
    assert len({record.step for record in lost}) > 1, "the jobs of the batch are at different steps"
    victim.kill()
    killed_at = time.time()
    records = service.wait_until_ended(ids)
    service.assert_finished_once(records)
    for record in service.all(record.id for record in lost):
        assert successor.owns(record)
        assert record.attempts == 2
        assert record.started_at is not None
    delays = [r.started_at - killed_at for r in service.all(r.id for r in lost) if r.started_at is not None]
    assert min(delays) < 3 * lease_s


def test_redis_killed_and_restarted_loses_and_repeats_no_job(
    service: Service,
) -> None:
    lease_s = 2
    workers = [service.start_worker(slots=4, lease_s=lease_s, wait=False) for _ in range(2)]
    for worker in workers:
        service.wait_until_live(worker)
    ids = [service.submit(seed=i, num_inference_steps=LONG if i < 8 else 10) for i in range(12)]
    wait_for(lambda: sum(record.step > 0 for record in service.all(ids)) >= 8)
    service.kill_redis()
    # Every lease expires.
    time.sleep(lease_s + 1.5)
    service.start_redis()
    records = service.wait_until_ended(ids)
    service.assert_finished_once(records)
    assert [record.attempts for record in records] == [1] * 12
    assert all(worker.is_alive for worker in workers)


def test_worker_without_redis_exits_with_code_for_restart(service: Service) -> None:
    service.kill_redis()
    worker = service.start_worker(wait=False)
    assert worker.exit_code(60) == 1, "with 2, `img2img serve` would end the whole service"
    assert "img2img worker: cannot connect to Redis at unix:" in (service.folder / "workers.log").read_text()


def test_sigterm_finishes_jobs_in_flight_and_second_sigterm_requeues_them(service: Service) -> None:
    first = service.start_worker(slots=2)
    running = [service.submit(seed=i, num_inference_steps=LONG) for i in range(2)]
    waiting = [service.submit(seed=i, num_inference_steps=LONG, num_images=4) for i in range(2)]
    for job_id in running:
        service.wait_until_running(job_id, first)
    first.send(signal.SIGTERM)
    assert first.exit_code() == 0
    assert [record.status for record in service.all(running)] == [JobStatus.SUCCEEDED] * 2
    assert [record.status for record in service.all(waiting)] == [JobStatus.QUEUED] * 2
    assert service.queue.get_job_ids() == waiting

    second = service.start_worker(slots=16, cold=True)
    for job_id in waiting:
        service.wait_until_running(job_id, second)
    second.send(signal.SIGTERM)
    time.sleep(1.2)
    assert second.is_alive
    second.send(signal.SIGTERM)
    assert second.exit_code() == 1
    requeued = service.all(waiting)
    assert [record.status for record in requeued] == [JobStatus.QUEUED] * 2
    assert [record.worker for record in requeued] == [None] * 2
    assert sorted(service.queue.get_job_ids()) == sorted(waiting)
    assert service.redis.zcard(service.queue.started_job_registry.key) == 0

    third = service.start_worker(slots=16)
    records = service.wait_until_ended(waiting)
    assert all(third.owns(record) for record in records)
    service.assert_finished_once(records)


def test_worker_paused_past_lease_gives_up_job_that_another_worker_runs(service: Service) -> None:
    paused = service.start_worker(slots=1, lease_s=2)
    job_id = service.submit(num_inference_steps=LONG)
    service.wait_until_running(job_id, paused)
    paused.send(signal.SIGSTOP)
    successor = service.start_worker(slots=1, lease_s=2)
    service.wait_until_running(job_id, successor)
    paused.send(signal.SIGCONT)
    # The paused worker stops its rendering, and has a free slot for another job.
    other = service.submit(seed=1, num_inference_steps=LONG)
    service.wait_until_running(other, paused)
    record = service.wait_until(job_id, JobStatus.SUCCEEDED)
    assert successor.owns(record)
    assert record.attempts == 2
    service.assert_finished_once(service.wait_until_ended([job_id, other]))
    assert service.record(job_id) == record


def test_job_that_kills_its_workers_fails_after_three_attempts(service: Service) -> None:
    others = [service.submit(seed=i, num_inference_steps=LONG) for i in range(3)]
    poison = service.submit(num_inference_steps=LONG, num_images=4)
    for attempt in (1, 2, 3):
        worker = service.start_worker(slots=8, lease_s=2)
        record = service.wait_until_running(poison, worker)
        assert record.attempts == attempt
        worker.kill()
    survivor = service.start_worker(slots=8, lease_s=2)
    record = service.wait_until(poison, JobStatus.FAILED)
    assert record.error is not None
    assert record.error.code == "worker_lost"
    assert record.attempts == 3
    records = service.wait_until_ended(others)
    service.assert_finished_once(records)
    assert [record.attempts for record in records] == [3] * 3
    assert survivor.is_alive
    assert not service.redis.exists(Job.key_for(poison))


def test_cancelled_job_frees_its_slots_and_stays_cancelled(service: Service) -> None:
    worker = service.start_worker(slots=1)

    notified = service.submit(num_inference_steps=LONG, num_images=8)
    queued, following = service.submit(seed=1), service.submit(seed=2)
    service.wait_until_running(notified, worker)
    assert service.jobs.cancel(queued).status is JobStatus.CANCELLED
    assert queued not in service.queue.get_job_ids()
    assert not service.redis.exists(Job.key_for(queued))
    cancelled = service.jobs.cancel(notified)
    assert cancelled.status is JobStatus.CANCELLED
    started = service.wait_until_ended([following])[0].started_at
    assert started - cancelled.finished_at < 5, "1200 steps take longer"

    unnotified = service.submit(seed=3, num_inference_steps=LONG, num_images=8)
    following = service.submit(seed=4)
    service.wait_until_running(unnotified, worker)
    # The message to the worker is lost.
    assert service.job_store.cancel(unnotified)
    cancelled = service.record(unnotified)
    started = service.wait_until_ended([following])[0].started_at
    assert started - cancelled.finished_at < 5, "1200 steps take longer"

    wait_for(service.is_idle)
    for job_id in (notified, queued, unnotified):
        record = service.record(job_id)
        assert record.status is JobStatus.CANCELLED
        assert record.images == ()
        assert service.store.get(result_key(job_id, 0)) is None
    assert service.record(queued).attempts == 0
    assert service.jobs.cancel(following).status is JobStatus.SUCCEEDED


class Touches:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_data_in_redis_cannot_make_worker_run_code(service: Service) -> None:
    worker = service.start_worker()
    marker = service.folder / "ran"
    touch = f"touch {marker}"
    callbacks = {name: Callback("os.system") for name in ("on_success", "on_failure", "on_stopped")}
    for serializer in (JSONSerializer, PickleSerializer):
        job = Job.create("os.system", (touch,), connection=service.redis, serializer=serializer, **callbacks)
        service.queue.enqueue_job(job)
    unpickled = Job.create("os.system", (Touches(marker),), connection=service.redis, serializer=PickleSerializer)
    service.queue.enqueue_job(unpickled)
    garbage = Job.create("os.system", (touch,), connection=service.redis, serializer=JSONSerializer)
    service.queue.enqueue_job(garbage)
    service.redis.hset(garbage.key, "timeout", "soon")
    service.redis.rpush(service.queue.key, b"\xff\xfe", "no such job", "../../etc/passwd")

    # Jobs of the service with overwritten RQ hashes: one succeeds, one fails.
    listener = socket.create_server(("127.0.0.1", 0))
    address = f"http://127.0.0.1:{listener.getsockname()[1]}/"
    poisoned = [service.submit(), service.submit(image="1" * 64)]
    for job_id in poisoned:
        fields = {f"{kind}_callback_name": "os.system" for kind in ("success", "failure", "stopped")}
        fields["data"] = pickle.dumps(("os.system", None, (Touches(marker),), {}))
        fields["meta"] = pickle.dumps(Touches(marker))
        fields["webhooks"] = json.dumps([{"url": address, "job_status": state} for state in ("finished", "failed")])
        service.redis.hset(Job.key_for(job_id), mapping=fields)

    # A job with an invalid record, which could be one of a later version: it fails if no worker reads it for an hour.
    invalid = service.submit()
    service.redis.hset(f"i2i:job:{invalid}", mapping={"spec": "{}", "unreadable_since": 1})

    good = service.submit(seed=7)
    assert service.wait_until(good, JobStatus.SUCCEEDED)
    assert service.wait_until(poisoned[0], JobStatus.SUCCEEDED)
    assert service.wait_until(poisoned[1], JobStatus.FAILED)
    wait_for(service.is_idle)
    assert service.redis.hget(f"i2i:job:{invalid}", "status") == b"failed"
    assert not marker.exists()
    with listener:
        assert not select.select([listener], [], [], 0)[0], "no webhook of RQ was sent"
    assert worker.is_alive
