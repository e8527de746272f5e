"""The line of waiting jobs of each model: who stands where, and how much work is ahead.

What workers pop is RQ's list. The line is kept in step with it by the transactions that queue, start, end and hand back
jobs, and answers in O(log n).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from redis import Redis
from redis.client import Pipeline

from app.contract.scripts import JOIN, STAND
from app.contract.spec import JobSpec

LINE = "i2i:line"  # + :{model}, sorted set: ids of waiting jobs, by the cost of all that ever came before
# + :{model}:cost, hash: `came`, the cost of all jobs that ever joined; `all`, that of those who wait now


@dataclass(frozen=True)
class Standing:
    """Where a job stands in its line."""

    position: int  # jobs ahead
    cost_ahead: float


class Line:
    """The lines of one Redis."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._join = redis.register_script(JOIN)
        self._stand = redis.register_script(STAND)

    def join(self, pipe: Pipeline, job_id: str, spec: JobSpec) -> None:
        """Puts a new job at the end, in the transaction that queues it."""
        self._join(keys=[f"{LINE}:{spec.model}"], args=[job_id, spec.cost], client=pipe)

    def standings(self, jobs: Sequence[tuple[str, JobSpec]]) -> list[Standing | None]:
        """Where waiting jobs stand, in one round trip; None for one that does not wait."""
        if not jobs:
            return []
        with self._redis.pipeline(transaction=False) as pipe:
            for job_id, spec in jobs:
                self._stand(keys=[f"{LINE}:{spec.model}"], args=[job_id], client=pipe)
            answers = pipe.execute()
        return [self._parse(answer, spec) for answer, (_, spec) in zip(answers, jobs, strict=True)]

    @staticmethod
    def _parse(answer: Sequence[bytes | int] | None, spec: JobSpec) -> Standing | None:
        if answer is None:
            return None
        rank, score, first, came, waiting = int(answer[0]), *map(float, answer[1:])
        ahead, behind = score - first, came - score - spec.cost
        # Jobs that were cancelled while they waited have left gaps on the tape. What really waits is known in sum; the
        # gaps are taken to be spread evenly.
        real = (waiting - spec.cost) / (ahead + behind) if ahead + behind > 0 else 1.0
        return Standing(rank, max(0.0, ahead * min(real, 1.0)) if rank else 0.0)

    def end(self, model: str) -> Standing:
        """Where a job would stand that came now."""
        with self._redis.pipeline() as pipe:
            pipe.zcard(f"{LINE}:{model}")
            pipe.hget(f"{LINE}:{model}:cost", "all")
            waiting, cost = pipe.execute()
        return Standing(waiting, max(0.0, float(cost or 0)))
