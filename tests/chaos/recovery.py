"""How long the jobs of a worker that fell silent stay with it."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from redis import Redis
from redis.exceptions import RedisError

from img2img.redis.keys import JOB, JOBS_BY_STATUS
from tests.chaos.plant import Process

LIMIT_S = 40.0  # lease and sweep, with the default lease of 20 s

log = logging.getLogger(__name__)


@dataclass
class Lost:
    """A job that a worker had when it fell silent. Times on the monotonic clock."""

    job_id: str
    execution: bytes
    worker: str
    since: float
    found_at: float | None = None

    @property
    def took_s(self) -> float | None:
        return None if self.found_at is None else self.found_at - self.since


class RecoveryWatch:
    """Looks after lost jobs until they have ended or are in other hands."""

    def __init__(self, redis: Redis, can_sweep: Callable[[], bool]) -> None:
        """can_sweep: whether there is a worker now that could find jobs."""
        self._redis = redis
        self._can_sweep = can_sweep
        self.lost: list[Lost] = []
        self.outages: list[tuple[float, float]] = []  # when nobody could have found a job
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="recovery", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()

    def fell_silent(self, worker: Process) -> None:
        """Notes what a worker, which is dead or stopped by now, has in its hands."""
        since = time.monotonic()
        try:
            ids = [job_id.decode() for job_id in self._redis.zrange(JOBS_BY_STATUS.format(status="running"), 0, -1)]
            with self._redis.pipeline(transaction=False) as pipe:
                for job_id in ids:
                    pipe.hmget(JOB.format(id=job_id), "worker", "execution")
                held = pipe.execute()
        except RedisError:
            log.info("%s: Redis is away; its jobs are not timed", worker.name)
            return
        for job_id, (owner, execution) in zip(ids, held, strict=True):
            if owner and f"-{worker.pid}-" in owner.decode() and execution:
                self.lost.append(Lost(job_id, execution, worker.name, since))

    def net_s(self, lost: Lost) -> float:
        """How long it was looked for: without the time in which nobody could."""
        counted, end = lost.since, time.monotonic() if lost.found_at is None else lost.found_at
        net_s = end - counted
        for out, back in sorted(self.outages):
            net_s -= max(0.0, min(back, end) - max(out, counted))
            counted = max(counted, back)
        return net_s

    def _watch(self) -> None:
        seen = time.monotonic()
        while not self._over.wait(0.2):
            before, seen = seen, time.monotonic()
            if not self._can_sweep():
                self.outages.append((before, time.monotonic()))
            waiting = [lost for lost in list(self.lost) if lost.found_at is None]
            try:
                with self._redis.pipeline(transaction=False) as pipe:
                    for lost in waiting:
                        pipe.hmget(JOB.format(id=lost.job_id), "status", "execution")
                    states = pipe.execute()
            except RedisError:
                continue
            for lost, (status, execution) in zip(waiting, states, strict=True):
                if status != b"running" or execution != lost.execution:
                    lost.found_at = time.monotonic()
