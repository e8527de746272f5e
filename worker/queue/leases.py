"""Ending a worker's lease on a job in RQ without touching the job record."""

from redis import Redis
from rq import Queue
from rq.executions import Execution
from rq.job import Job
from rq.worker import BaseWorker

from img2img.domain.job import JobRecord


def release_lease(worker: BaseWorker, job: Job, execution: Execution) -> None:
    """End the worker's lease. The job stays where it is."""
    with worker.connection.pipeline() as pipe:
        worker.cleanup_execution(job, pipeline=pipe, execution=execution)
        pipe.execute()


def discard_job(worker: BaseWorker, job: Job, queue: Queue, execution: Execution, record: JobRecord | None) -> None:
    """End the worker's lease on a job that is not to be run: it has ended, or another worker runs it.

    Args:
        worker: the worker that holds the lease.
        job: the job in RQ; deleted if its record is gone or terminal.
        queue: the queue from which it was fetched.
        execution: the lease.
        record: the present job record.
    """
    redis: Redis = worker.connection
    with redis.pipeline() as pipe:
        worker.cleanup_execution(job, pipeline=pipe, execution=execution)
        pipe.lrem(queue.intermediate_queue_key, 1, job.id)
        if record is None or record.status.is_terminal:
            pipe.delete(job.key)
        pipe.execute()
