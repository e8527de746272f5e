"""Measures the time until the jobs of lost workers are recovered."""

import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from redis import Redis
from redis.exceptions import RedisError

from img2img.redis.keys import JOB, JOBS_BY_STATUS
from tests.chaos.deployment import Process
from tests.chaos.watcher import Watcher

MAX_RECOVERY_S = 40.0  # a lease and one round of a reaper, with the default lease of 20 s

log = logging.getLogger(__name__)


@dataclass
class LostJob:
    """A job that was running on a worker when the worker was lost. Times are of the monotonic clock."""

    job_id: str
    execution: bytes
    worker: str
    since: float
    recovered_at: float | None = None

    @property
    def recovery_s(self) -> float | None:
        return None if self.recovered_at is None else self.recovered_at - self.since


class RecoveryMonitor(Watcher):
    """Watches lost jobs until they have ended or are requeued.

    Args:
        redis: a client without a proxy.
        can_recover: returns whether there is a worker now that could recover jobs.
    """

    def __init__(self, redis: Redis, can_recover: Callable[[], bool]) -> None:
        super().__init__("recovery")
        self._redis = redis
        self._can_recover = can_recover
        self.lost: list[LostJob] = []
        self.outages: list[tuple[float, float]] = []  # times in which no worker could have recovered a job

    @property
    def losses(self) -> Counter[str]:
        """By job id, how often the worker that ran the job was lost."""
        return Counter(lost.job_id for lost in self.lost)

    def worker_lost(self, worker: Process) -> None:
        """Note the jobs of a worker that has been killed or paused."""
        since = time.monotonic()
        try:
            ids = [job_id.decode() for job_id in self._redis.zrange(JOBS_BY_STATUS.format(status="running"), 0, -1)]
            with self._redis.pipeline(transaction=False) as pipe:
                for job_id in ids:
                    pipe.hmget(JOB.format(id=job_id), "worker", "execution")
                owners = pipe.execute()
        except RedisError:
            log.info("%s: Redis is unreachable; the recovery of its jobs is not measured", worker.name)
            return
        for job_id, (owner, execution) in zip(ids, owners, strict=True):
            if owner and f"-{worker.pid}-" in owner.decode() and execution:
                self.lost.append(LostJob(job_id, execution, worker.name, since))

    def net_s(self, lost: LostJob) -> float:
        """Return the time until recovery, without the outages."""
        counted, end = lost.since, time.monotonic() if lost.recovered_at is None else lost.recovered_at
        net_s = end - counted
        for out, back in sorted(self.outages):
            net_s -= max(0.0, min(back, end) - max(out, counted))
            counted = max(counted, back)
        return net_s

    def _watch(self) -> None:
        checked_at = time.monotonic()
        while not self._stopped.wait(0.2):
            before, checked_at = checked_at, time.monotonic()
            if not self._can_recover():
                self.outages.append((before, time.monotonic()))
            waiting = [lost for lost in list(self.lost) if lost.recovered_at is None]
            try:
                with self._redis.pipeline(transaction=False) as pipe:
                    for lost in waiting:
                        pipe.hmget(JOB.format(id=lost.job_id), "status", "execution")
                    states = pipe.execute()
            except RedisError:
                continue
            for lost, (status, execution) in zip(waiting, states, strict=True):
                if status != b"running" or execution != lost.execution:
                    lost.recovered_at = time.monotonic()
