"""The order of the waiting jobs of each model, and the position of a job in it.

1. Jobs that a worker had started and lost come first. They were charged when they were taken first.
2. Priorities share the work: while jobs of both wait, a priority gets seven times the work of the next lower one, so
   high, normal and low get 49, 7 and 1 of 57 parts. Shares prevent starvation better than an age limit, which would
   let a thousand old low jobs overtake every normal one at the same time.
3. Within a priority, owners get equal work, in megapixel-steps, whatever the size of their jobs.
4. Jobs of one owner and priority are taken by the time at which they are due: their deadline, or 10 minutes after
   their submission if that is earlier. So jobs without deadlines are first in, first out, and are overtaken only by
   jobs with a deadline that come in these 10 minutes. A deadline is of no use against the jobs of other owners.

Both shares are start-time fair queueing (Goyal, Vin, Cheng 1996): every owner has a virtual time, which advances by the
work of each of its jobs that is taken, and the owner with the earliest time is next. Two owners whose jobs wait differ
by at most the largest job of each. An owner whose jobs did not wait begins at the time of the others, so idle time
gives no credit, and large jobs that came one at a time are not forgotten. Between priorities, a lower job is taken when
its share has paid for it.

RQ's list holds the same jobs by arrival, for RQ's own tools. The scripts that submit, claim, cancel and requeue a job
change both in one step.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from redis import Redis

from img2img.domain.job import JobRecord, Priority
from img2img.redis import keys, scripts

# As in lua/fair_queue.lua.
DUE_S = 600
LEVELS = ("returned", *reversed(Priority))
PIXEL_STEPS = 1e6


@dataclass(frozen=True)
class QueuePosition:
    """Number of jobs ahead of a waiting job and their cost, if no job is added or cancelled."""

    position: int
    cost_ahead: float


def due_at(record: JobRecord) -> float:
    """Return the time at which a job is due: its deadline, or DUE_S after its submission if that is earlier."""
    return min(record.created_at + DUE_S, record.deadline_at or math.inf)


class FairQueue:
    """The waiting jobs of all models."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._claim = scripts.register(redis, "claim_job")
        self._positions = scripts.register(redis, "queue_positions")

    def claim(self, model: str, waiting: str, intermediate: str, due_before: float | None = None) -> bytes | None:
        """Move the next job of a model from RQ's list of waiting jobs to RQ's intermediate list.

        Args:
            model: Name of the model.
            waiting: Key of the list of waiting jobs.
            intermediate: Key of the intermediate list.
            due_before: None, or a time to take a job beyond the slots of a worker: only while jobs of high priority
                wait, or if it has a deadline before this time. It is the next one in order, so that the shares of
                priorities and owners hold; jobs of lost workers are left.

        Returns:
            The id of the job, or None if no job is waiting. Removing the job from RQ's list takes O(1) for the oldest
            and the youngest job, O(n) for jobs between them.
        """
        args = [model, "" if due_before is None else due_before]
        job_id: bytes | None = self._claim(keys=[waiting, intermediate], args=args)
        return job_id

    def positions(self, records: Sequence[JobRecord]) -> list[QueuePosition | None]:
        """Return the positions of waiting jobs, None for a job that is not waiting.

        Position and cost are exact, if no job is added or cancelled, and take O(k log n) for k owners with waiting
        jobs. They are estimates if jobs of more than 20 owners wait in another priority, whose jobs then count with
        their mean cost, and after a job was cancelled that had more than 10,000 jobs of its owner on both sides. Later
        jobs of the same owner with an earlier deadline come before.
        """
        if not records:
            return []
        jobs = [(r.spec.model, r.id, r.priority, r.owner, r.spec.cost, "") for r in records]
        return list(map(_parse, self._positions(args=[arg for job in jobs for arg in job])))

    def next_position(
        self,
        model: str,
        cost: float,
        owner: str = "",
        priority: Priority = Priority.NORMAL,
        deadline_s: float | None = None,
    ) -> QueuePosition:
        """Return the position that a job of this cost would have if it were queued now."""
        [reply] = self._positions(args=[model, "", priority, owner, cost, "" if deadline_s is None else deadline_s])
        position = _parse(reply)
        assert position is not None
        return position

    def backlog(self, models: Sequence[str]) -> dict[tuple[str, str], tuple[int, float]]:
        """Return the number and the cost of the waiting jobs by model and level: a priority, or `returned`."""
        fields = [f"{level} {total}" for level in LEVELS for total in ("jobs", "work")]
        with self._redis.pipeline(transaction=False) as pipe:
            for model in models:
                pipe.hmget(keys.FAIR_QUEUE_TOTALS.format(model=model), fields)
            rows = pipe.execute()
        return {
            (model, level): (int(jobs or 0), max(0, int(work or 0)) / PIXEL_STEPS)
            for model, row in zip(models, rows, strict=True)
            for level, jobs, work in zip(LEVELS, row[::2], row[1::2], strict=True)
        }


def _parse(reply: Sequence[bytes | int] | None) -> QueuePosition | None:
    if reply is None:
        return None
    count, cost = reply
    return QueuePosition(int(count), float(cost))
