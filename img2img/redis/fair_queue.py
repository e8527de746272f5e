"""The line of waiting jobs of each model: whose turn it is, who stands where, and how much work is ahead.

The order, of one model:
1. Jobs that a worker had and lost come first again.
2. Then by priority. So that low ones wait longer but not for ever, seven jobs in a row of one priority let one from
   below it pass: of eight jobs one is not high, and of eight that are not high one is low. Where nothing lower waited
   before, those that wait when the first one comes are not counted, so that it overtakes none of them. It is a share
   and not an age: a thousand low jobs that have waited long would all at once stand before every normal one.
3. Within a priority, owners take turns: they stand in a ring, and whose job was taken goes to the end of it.
4. One owner's jobs, first in, first out.

RQ's list holds the same jobs, in the order in which they came, and is what RQ's own tools see. The transactions that
queue, claim, cancel and put back jobs keep the two in step.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from redis import Redis
from redis.client import Pipeline
from rq import Queue
from rq.utils import as_text

from img2img.domain.job import JobRecord, Priority
from img2img.redis.fair_queue_scripts import ADOPT, CLAIM, JOIN, LEVELS, REJOIN, STAND

LINE = "i2i:line"  # + :{model} + what `line_scripts` says


@dataclass(frozen=True)
class QueuePosition:
    """Where a job stands in its line, if nothing comes or goes."""

    position: int  # jobs ahead
    cost_ahead: float


class FairQueue:
    """The lines of one Redis. record_key: what the key of a job's record begins with."""

    def __init__(self, redis: Redis, record_key: str) -> None:
        self._redis = redis
        self._record_key = record_key
        self._join = redis.register_script(JOIN)
        self._rejoin = redis.register_script(REJOIN)
        self._adopt = redis.register_script(ADOPT)
        self._claim = redis.register_script(CLAIM)
        self._stand = redis.register_script(STAND)

    def enqueue(self, pipe: Pipeline, record: JobRecord) -> None:
        """Puts a new job where it belongs, in the transaction that queues it."""
        args: list[str | float] = [record.id, record.priority, record.owner, record.spec.cost]
        self._join(keys=[_key(record.spec.model)], args=args, client=pipe)

    def requeue(self, pipe: Pipeline, record: JobRecord) -> None:
        """Puts a job before all others, in the transaction that queues it again; one that has ended stays away."""
        self._rejoin(keys=[_key(record.spec.model), self._record_key + record.id], args=[record.id], client=pipe)

    def adopt(self, record: JobRecord, queue: Queue) -> bool:
        """Puts a job that waits in RQ's list, and stands in no line, behind those of its kind. False if it does not."""
        keys = [_key(record.spec.model), self._record_key + record.id, queue.key]
        return bool(self._adopt(keys=keys, args=[record.id, record.spec.cost]))

    def claim(self, model: str, queue: Queue) -> bytes | None:
        """Moves the job whose turn it is to the queue's intermediate list, in one step. Its id, or None if none waits.

        RQ's list is searched for the job from its nearer end: O(1) for the oldest and the youngest, O(n) between.
        """
        keys = [queue.key, queue.intermediate_queue_key, _key(model)]
        job_id: bytes | None = self._claim(keys=keys, args=[self._record_key])
        return job_id

    def positions(self, records: Sequence[JobRecord]) -> list[QueuePosition | None]:
        """Where waiting jobs stand, in one round trip; None for one that does not wait.

        The position is exact with up to 16 other owners before and 16 behind the job's own in the ring. Those beyond
        are taken to be like these, so that it takes O(log n) of 32 owners at most.
        The cost is exact as long as nobody cancels and whole priorities are ahead. Of a part of a priority, or of what
        an owner has left after cancelling, the cost is its even share.
        """
        if not records:
            return []
        with self._redis.pipeline(transaction=False) as pipe:
            for record in records:
                args: list[str | float] = [record.id, record.priority, record.owner, record.spec.cost]
                self._stand(keys=[_key(record.spec.model)], args=args, client=pipe)
            return [_parse(answer) for answer in pipe.execute()]

    def backlog(self, models: Sequence[str]) -> dict[tuple[str, str], tuple[int, float]]:
        """Jobs that wait and what they cost, by model and priority; or `returned`, of those that a worker lost."""
        with self._redis.pipeline(transaction=False) as pipe:
            for model in models:
                fields = [f"{name} {what}" for name in LEVELS for what in ("jobs", "cost")]
                pipe.hmget(f"{_key(model)}:sums", fields)
            rows = pipe.execute()
        return {
            (model, name): (int(jobs or 0), max(0.0, float(cost or 0)))
            for model, row in zip(models, rows, strict=True)
            for name, jobs, cost in zip(LEVELS, row[::2], row[1::2], strict=True)
        }

    def next_position(self, model: str, owner: str = "", priority: Priority = Priority.NORMAL) -> QueuePosition:
        """Where a job would stand that came now."""
        standing = _parse(self._stand(keys=[_key(model)], args=["", priority, owner, 0]))
        assert standing is not None
        return standing


def _key(model: str) -> str:
    return f"{LINE}:{model}"


def _parse(answer: Sequence[bytes | int] | None) -> QueuePosition | None:
    if answer is None:
        return None
    position, cost = answer
    return QueuePosition(int(position), float(as_text(cost)))  # type: ignore[arg-type]
