"""The parts of RQ that this project uses, internals included.

When an upgrade of RQ breaks one of these tests, check img2img/redis/rq_adapter.py, the scripts in img2img/redis/lua and
worker/queue against the new version.
"""

import inspect
from typing import Any

import pytest
import rq
from rq import Queue
from rq.command import handle_stop_execution_command, send_command
from rq.executions import Execution
from rq.intermediate_queue import IntermediateQueue
from rq.job import Job
from rq.registry import StartedJobRegistry
from rq.worker import BaseWorker

from img2img.redis.rq_adapter import FAILURE_TTL_S, FUNCTION, NO_TIMEOUT, RESULT_TTL_S, InertJob, rq_job_key
from tests.support.processes import Service

SIGNATURES: list[tuple[Any, str]] = [
    (BaseWorker.prepare_execution, "self, job"),
    (BaseWorker.prepare_job_execution, "self, job, remove_from_intermediate_queue=False"),
    (BaseWorker.maintain_heartbeats, "self, job, execution"),
    (BaseWorker.get_heartbeat_ttl, "self, job, working_time=0.0"),
    (BaseWorker.handle_job_success, "self, job, queue, started_job_registry, execution"),
    (
        BaseWorker.handle_job_failure,
        "self, job, queue, started_job_registry=None, exc_string='', execution=None",
    ),
    (BaseWorker.cleanup_execution, "self, job, pipeline, execution=None"),
    (BaseWorker.request_stop_execution, "self, execution_id"),
    (BaseWorker.heartbeat, "self, timeout=None, pipeline=None"),
    (BaseWorker.set_state, "self, state, pipeline=None"),
    (BaseWorker.register_birth, "self"),
    (BaseWorker.register_death, "self"),
    (BaseWorker.subscribe, "self"),
    (BaseWorker.unsubscribe, "self"),
    (StartedJobRegistry.get_job_and_execution_ids, "self, start=0, end=-1, desc=False, cleanup=True"),
    (IntermediateQueue.get_job_ids, "self"),
    (IntermediateQueue.remove, "self, job_id"),
    (Job.to_dict, "self, include_meta=True, include_result=True"),
    (Queue.remove, "self, job_or_id, pipeline=None"),
    (Queue.get_job_ids, "self, offset=0, length=-1"),
    (Job.fetch, "id, connection=None, serializer=None"),
    (Job.key_for, "job_id"),
    (Job.send_webhooks, "self, status, *, exc_string=None"),
    (send_command, "connection, worker_name, command, **kwargs"),
    (handle_stop_execution_command, "worker, payload"),
]


def test_rq_has_the_expected_version() -> None:
    assert rq.__version__ == "3.0.0"


@pytest.mark.parametrize(("function", "expected"), [pytest.param(*row, id=row[0].__qualname__) for row in SIGNATURES])
def test_rq_signature_is_unchanged(function: Any, expected: str) -> None:
    signature = inspect.signature(function)
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()]
    found = str(signature.replace(parameters=bare, return_annotation=inspect.Signature.empty))
    assert found == f"({expected})"


def test_intermediate_list_belongs_to_queue(idle_service: Service) -> None:
    assert isinstance(Queue.intermediate_queue_key, property)
    assert idle_service.queue.intermediate_queue_key == f"{idle_service.queue.key}:intermediate"
    assert idle_service.queue.intermediate_queue.key == idle_service.queue.intermediate_queue_key


class TenSecondLeaseWorker(BaseWorker):
    job_class = InertJob

    def get_heartbeat_ttl(self, job: Job, working_time: float = 0.0) -> int:
        return 10


def test_claim_leaves_traces_for_the_reaper(idle_service: Service) -> None:
    queue, connection = idle_service.queue, idle_service.redis
    job_id = idle_service.submit()
    assert queue.get_job_ids() == [job_id]
    connection.lmove(queue.key, queue.intermediate_queue_key, "LEFT", "RIGHT")
    assert queue.intermediate_queue.get_job_ids() == [job_id]

    worker = TenSecondLeaseWorker([queue], connection=connection, serializer=queue.serializer)
    job = InertJob.fetch(job_id, connection=connection, serializer=queue.serializer)
    execution = worker.prepare_execution(job)
    registry = queue.started_job_registry
    assert isinstance(execution, Execution)
    assert execution.composite_key == f"{job_id}:{execution.id}"
    assert registry.get_job_and_execution_ids(cleanup=False) == [(job_id, execution.id)]
    lease_ends = connection.zscore(registry.key, execution.composite_key)
    now = connection.time()[0]
    assert 8 <= lease_ends - now <= 11
    assert queue.intermediate_queue.get_job_ids() == [job_id]

    worker.prepare_job_execution(job, remove_from_intermediate_queue=True)
    assert queue.intermediate_queue.get_job_ids() == []
    assert worker.executions == {execution.id: execution}

    with connection.pipeline() as pipe:
        worker.cleanup_execution(job, pipeline=pipe, execution=execution)
        pipe.execute()
    assert worker.executions == {}
    assert registry.get_job_and_execution_ids(cleanup=False) == []


def test_heartbeat_renews_a_lease_but_does_not_restore_a_lost_one(idle_service: Service) -> None:
    queue, connection = idle_service.queue, idle_service.redis
    worker = TenSecondLeaseWorker([queue], connection=connection, serializer=queue.serializer)
    worker.register_birth()
    job = InertJob.fetch(idle_service.submit(), connection=connection, serializer=queue.serializer)
    execution = worker.prepare_execution(job)
    registry = queue.started_job_registry.key
    connection.zadd(registry, {execution.composite_key: 1})
    worker.maintain_heartbeats(job, execution)
    assert connection.zscore(registry, execution.composite_key) > 1
    connection.zrem(registry, execution.composite_key)
    worker.maintain_heartbeats(job, execution)
    assert connection.zscore(registry, execution.composite_key) is None


def test_inert_job_ignores_function_callbacks_and_webhooks_stored_in_redis(idle_service: Service) -> None:
    job_id = idle_service.submit()
    names = ("success_callback_name", "failure_callback_name", "stopped_callback_name")
    idle_service.redis.hset(Job.key_for(job_id), mapping=dict.fromkeys(names, "os.system") | {"data": b"\x80\x04."})
    job = InertJob.fetch(job_id, connection=idle_service.redis, serializer=idle_service.queue.serializer)
    assert job.func_name == FUNCTION
    assert (job.success_callback, job.failure_callback, job.stopped_callback) == (None, None, None)
    assert issubclass(idle_service.queue.job_class, InertJob)


def test_submit_writes_the_same_keys_as_rq_enqueue(idle_service: Service) -> None:
    queue, connection = idle_service.queue, idle_service.redis
    job_id = idle_service.submit()
    written, listed = connection.hgetall(rq_job_key(job_id)), connection.lrange(queue.key, 0, -1)
    queues = connection.smembers(queue.redis_queues_keys)
    connection.delete(rq_job_key(job_id), queue.key, queue.redis_queues_keys)
    queue.enqueue(
        FUNCTION,
        job_id=job_id,
        description="img2img",
        job_timeout=NO_TIMEOUT,
        result_ttl=RESULT_TTL_S,
        failure_ttl=FAILURE_TTL_S,
    )
    expected = connection.hgetall(rq_job_key(job_id))
    for time_field in (b"created_at", b"enqueued_at"):
        assert len(written.pop(time_field)) == len(expected.pop(time_field))
    assert written == expected
    assert listed == connection.lrange(queue.key, 0, -1)
    assert queues == connection.smembers(queue.redis_queues_keys)
    assert connection.ttl(rq_job_key(job_id)) == -1
