"""The order of the waiting jobs of each model, and the position of a job in it.

1. Jobs that a worker had started and lost come first.
2. Then by priority. After seven jobs in a row of one priority, one job of a lower priority is taken if one waits. So
   one job of eight is not of high priority, and of eight of those one is of low priority. The count starts when the
   first lower job arrives, so that it overtakes none of the jobs that already wait. Shares prevent starvation better
   than an age limit, which would let a thousand old low jobs overtake every normal one at the same time.
3. Within a priority, owners take turns.
4. Jobs of one owner are taken first in, first out.

RQ's list holds the same jobs by arrival, for RQ's own tools. The scripts that submit, claim, cancel and requeue a job
change both in one step.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from redis import Redis

from img2img.domain.job import JobRecord, Priority
from img2img.redis import keys, scripts

# As in lua/fair_queue.lua.
LEVELS = ("returned", *reversed(Priority))
STREAK_LIMIT = 7


@dataclass(frozen=True)
class QueuePosition:
    """Number of jobs ahead of a waiting job and their cost, if no job is added or cancelled."""

    position: int
    cost_ahead: float


class FairQueue:
    """The waiting jobs of all models."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._claim = scripts.register(redis, "claim_job")
        self._positions = scripts.register(redis, "queue_positions")

    def claim(self, model: str, waiting: str, intermediate: str) -> bytes | None:
        """Move the next job of a model from RQ's list of waiting jobs to RQ's intermediate list.

        Args:
            model: Name of the model.
            waiting: Key of the list of waiting jobs.
            intermediate: Key of the intermediate list.

        Returns:
            The id of the job, or None if no job is waiting. Removing the job from RQ's list takes O(1) for the oldest
            and the youngest job, O(n) for jobs between them.
        """
        job_id: bytes | None = self._claim(keys=[waiting, intermediate], args=[model])
        return job_id

    def positions(self, records: Sequence[JobRecord]) -> list[QueuePosition | None]:
        """Return the positions of waiting jobs, None for a job that is not waiting.

        The position is exact and takes O(k log n) for k owners with waiting jobs. The cost is exact while no waiting
        job is cancelled and only whole priorities are ahead; a part of a priority, or of an owner's jobs after
        some of them were cancelled, counts with its even share.
        """
        if not records:
            return []
        jobs = [(r.spec.model, r.id, r.priority, r.owner, r.spec.cost) for r in records]
        return list(map(_parse, self._positions(args=[arg for job in jobs for arg in job])))

    def next_position(self, model: str, owner: str = "", priority: Priority = Priority.NORMAL) -> QueuePosition:
        """Return the position that a job would have if it were queued now."""
        [reply] = self._positions(args=[model, "", priority, owner, 0])
        position = _parse(reply)
        assert position is not None
        return position

    def backlog(self, models: Sequence[str]) -> dict[tuple[str, str], tuple[int, float]]:
        """Return the number and the cost of the waiting jobs by model and level: a priority, or `returned`."""
        fields = [f"{level} {total}" for level in LEVELS for total in ("jobs", "cost")]
        with self._redis.pipeline(transaction=False) as pipe:
            for model in models:
                pipe.hmget(keys.FAIR_QUEUE_TOTALS.format(model=model), fields)
            rows = pipe.execute()
        return {
            (model, level): (int(jobs or 0), max(0.0, float(cost or 0)))
            for model, row in zip(models, rows, strict=True)
            for level, jobs, cost in zip(LEVELS, row[::2], row[1::2], strict=True)
        }


def _parse(reply: Sequence[bytes | int] | None) -> QueuePosition | None:
    if reply is None:
        return None
    count, cost = reply
    return QueuePosition(int(count), float(cost))
