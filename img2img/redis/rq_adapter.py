"""The one module through which shared code and the API server use RQ.

RQ transports job ids, leases and commands. It never runs a function: the job itself is our own record.

RQ writes times of the worker's clock. Of these only the end of a lease is compared with another host's clock, so leases
get Redis' time here. The others, such as the last heartbeat, are for RQ's tools.
"""

from dataclasses import dataclass
from typing import Self

from redis import Redis
from redis.client import Pipeline
from rq import Queue
from rq.command import send_command
from rq.executions import Execution
from rq.job import Job
from rq.job import JobStatus as RQJobStatus
from rq.registry import StartedJobRegistry
from rq.serializers import JSONSerializer
from rq.utils import now

from img2img.redis import scripts
from img2img.redis.decode import decode
from img2img.redis.keys import RQ_QUEUE

# RQ requires the name of a function. No process of this project imports or calls a name that it reads from Redis.
FUNCTION = "img2img.job"
RESULT_TTL_S = 60
FAILURE_TTL_S = 24 * 3600
NO_TIMEOUT = -1


class LeaseRegistry(StartedJobRegistry):
    """RQ's registry of the leases of a queue. They end by Redis' clock, because each host has another one."""

    def add_execution(self, execution: Execution, pipeline: Pipeline, ttl: int = 0, xx: bool = False) -> int:
        """Take or renew a lease for `ttl` seconds. Overrides RQ's."""
        script = scripts.load("hold_lease")
        pipeline.eval(script, 1, self.key, execution.composite_key, str(ttl), "XX" if xx else "")
        return 0

    def expired(self) -> list[str]:
        """Return the expired leases, as `{job id}:{execution id}`."""
        return list(map(decode, self.connection.eval(scripts.load("expired_leases"), 1, self.key)))


class InertJob(Job):
    """An RQ job that never calls a function, callback or webhook whose name is stored in Redis."""

    @property
    def started_job_registry(self) -> LeaseRegistry:
        return LeaseRegistry(
            self.origin, connection=self.connection, job_class=self.__class__, serializer=self.serializer
        )

    func_name = property(lambda _self: FUNCTION)
    success_callback = property(lambda _self: None)
    failure_callback = property(lambda _self: None)
    stopped_callback = property(lambda _self: None)

    def send_webhooks(self, *_args: object, **_kwargs: object) -> None:
        return


def lease_registry(queue: Queue) -> LeaseRegistry:
    """Return the leases of a queue."""
    return LeaseRegistry(queue=queue, job_class=queue.job_class, serializer=queue.serializer)


def rq_queue(model: str, redis: Redis) -> Queue:
    """Return the RQ queue of the jobs for one model."""
    return Queue(RQ_QUEUE.format(model=model), connection=redis, serializer=JSONSerializer, job_class=InertJob)


def queued_models(redis: Redis) -> list[str]:
    """Return the names of all models that jobs were ever queued for, also of those that were removed."""
    prefix = Queue.redis_queue_namespace_prefix + RQ_QUEUE.format(model="")
    names = map(decode, redis.smembers(Queue.redis_queues_keys))
    return sorted(name.removeprefix(prefix) for name in names if name.startswith(prefix))


def rq_job_key(job_id: str) -> str:
    """Return the key of RQ's job hash."""
    return Job.key_for(job_id)


@dataclass(frozen=True)
class RQFields:
    """Field, value, ... of RQ's job hash: those with text, and those with bytes."""

    text: list[str]
    binary: list[str | bytes]

    @classmethod
    def of(cls, queue: Queue, job_id: str) -> Self:
        """Return the fields of a job. They do not contain its id."""
        fields = rq_job_fields(queue, job_id)
        text: list[str] = []
        binary: list[str | bytes] = []
        for name, value in zip(map(text_of, fields[::2]), fields[1::2], strict=True):
            if isinstance(value, bytes):
                binary += [name, value]
            else:
                text += [name, text_of(value)]
        return cls(text, binary)


def text_of(value: str | bytes | float) -> str:
    """Return a value that is not bytes as the Redis client sends it."""
    return value if isinstance(value, str) else repr(value)


def rq_job_fields(queue: Queue, job_id: str) -> list[str | bytes | float]:
    """Return field, value, ... of RQ's job hash, as `Queue.enqueue` writes it.

    Our scripts write the hash and push the id themselves, in the same step as everything else about the job. RQ's own
    `enqueue` needs five commands, and could not be undone if a limit forbids the job.
    """
    job = queue.create_job(
        FUNCTION,
        job_id=job_id,
        description="img2img",
        timeout=NO_TIMEOUT,
        result_ttl=RESULT_TTL_S,
        failure_ttl=FAILURE_TTL_S,
        status=RQJobStatus.QUEUED,
    )
    job.origin = queue.name
    job.enqueued_at = now()
    return [item for field in job.to_dict().items() for item in field]


def send_stop_command(redis: Redis, worker: str, job_id: str, execution_id: str) -> None:
    """Ask a worker to stop an execution of a job.

    RQ's own helper finds the worker through RQ's record of the execution, which may be incomplete after an outage.
    """
    send_command(redis, worker, "stop-execution", job_id=job_id, execution_id=execution_id)
