"""Job records. Every change of status is one compare-and-set script, so concurrent writers cannot lose an update."""

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Self

from redis import Redis

from img2img.domain.job import TRANSITIONS, ImageInfo, JobFailure, JobRecord, JobStatus
from img2img.errors import Gone, UnreadableJob
from img2img.redis import job_record, keys, scripts
from img2img.redis.clock import redis_clock
from img2img.redis.decode import decode
from img2img.redis.durability import DurableWrites
from img2img.redis.fair_queue import FairQueue
from img2img.redis.job_record import Scalar
from img2img.redis.lookup import checked
from img2img.telemetry.logging import job_extra

# How long a request for a deleted or expired job is answered with the reason.
GONE_S = 24 * 3600

# Jobs with the same result that are looked at, for one that has not expired.
SAME_TRIED = 10

log = logging.getLogger(__name__)


# Pattern of a cursor as text.
CURSOR = r"^[0-9]{1,11}(\.[0-9]{1,9})?-[0-9a-f]{32}$"


@dataclass(frozen=True, order=True)
class Cursor:
    """A job's position in a list by creation time."""

    created_at: float
    job_id: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the cursor that `str` has written."""
        created_at, _, job_id = text.partition("-")
        return cls(float(created_at), job_id)

    def __str__(self) -> str:
        return f"{self.created_at!r}-{self.job_id}"


@dataclass(frozen=True)
class Progress:
    """Denoising steps that an execution of a job has done, summed over its images."""

    job_id: str
    execution: str
    step: int
    steps: int


class JobStore:
    """The job records. `visible_to` restricts `find` and `page` to the jobs of one owner.

    Args:
        writes: Confirms changes of status and deletions. Default: they are not confirmed.
    """

    def __init__(self, redis: Redis, writes: DurableWrites | None = None) -> None:
        self._writes = writes or DurableWrites(redis)
        self._redis = redis
        self._owner: str | None = None
        self._clock = redis_clock(redis)
        self.fair_queue = FairQueue(redis)
        self._transition_script = scripts.register(redis, "transition_job")
        self._forget_script = scripts.register(redis, "forget_job")
        self._deadline_script = scripts.register(redis, "miss_deadline")
        self._progress_script = scripts.register(redis, "record_progress")

    def visible_to(self, owner: str | None) -> Self:
        """Return a store with only the jobs of this owner; None means all jobs."""
        restricted = copy(self)
        restricted._owner = owner
        return restricted

    def get(self, job_id: str) -> JobRecord | None:
        """Return the record, of any owner, or None if there is none."""
        fields = self._redis.hgetall(keys.JOB.format(id=job_id))
        return job_record.from_fields(job_id, fields) if fields else None

    def get_all(self, job_ids: Sequence[str]) -> list[JobRecord | None]:
        """Return the records of jobs, of any owner; None for each that is gone or cannot be read."""
        with self._redis.pipeline(transaction=False) as pipe:
            for job_id in job_ids:
                pipe.hgetall(keys.JOB.format(id=job_id))
            hashes = pipe.execute()
        return [_readable(job_id, fields) for job_id, fields in zip(job_ids, hashes, strict=True)]

    def find(self, job_id: str) -> JobRecord:
        """Return the record.

        Raises:
            NotFound: There is no such job, or it belongs to another owner.
            Expired: The job's time to live is over.
            Deleted: The job was deleted.
        """
        return checked(
            self.get(job_id),
            f"job {job_id}",
            owner=self._owner,
            now=self._clock.now,
            gone=lambda: self._redis.get(keys.GONE_JOB.format(id=job_id)),
        )

    def find_same(self, owner: str, digest: str) -> JobRecord | None:
        """Return the latest job of an owner with a result digest that has all of its images, if there is one."""
        key = keys.SAME_RESULTS.format(owner=owner, digest=digest)
        job_ids = list(map(decode, self._redis.zrevrange(key, 0, SAME_TRIED - 1)))
        found = (record for record in self.get_all(job_ids) if record is not None)
        return next((record for record in found if record.images and not self._has_expired(record)), None)

    def unreadable_s(self, job_id: str) -> float:
        """Return the seconds since this was first called for a job: since a worker could not read it."""
        name, now = keys.JOB.format(id=job_id), self._clock.now()
        self._redis.hsetnx(name, "unreadable_since", now)
        return now - float(self._redis.hget(name, "unreadable_since") or now)

    def page(
        self, status: JobStatus | None, before: Cursor | None, limit: int
    ) -> tuple[list[JobRecord], Cursor | None]:
        """Return up to `limit` jobs created before a cursor, newest first, and the cursor of the next page if any."""
        index = job_index(self._owner, status)
        newest = before.created_at if before else "+inf"
        cursors: list[Cursor] = []
        offset = 0
        while len(cursors) <= limit:
            rows = self._redis.zrevrangebyscore(index, newest, "-inf", offset, limit + 1, withscores=True)
            found = [Cursor(float(score), decode(job_id)) for job_id, score in rows]  # type: ignore[str-unpack]
            # Several jobs can have the same creation time, so the first rows may be those of the previous page.
            cursors += [cursor for cursor in found if before is None or cursor < before]
            offset += len(found)
            if len(found) <= limit:
                break
        with self._redis.pipeline(transaction=False) as pipe:
            for cursor in cursors[:limit]:
                pipe.hgetall(keys.JOB.format(id=cursor.job_id))
            hashes = pipe.execute()
        return self._readable(cursors, hashes), cursors[limit - 1] if len(cursors) > limit else None

    def forget(self, job_id: str, reason: type[Gone], *, again_at: float | None = None) -> list[str] | None:
        """Delete the record of an ended job and remember the reason for GONE_S.

        Args:
            again_at: Time at which `expired_ids` lists the job once more, for images that are stored late.

        Returns:
            The blob keys of its inputs that no other job needs, to be claimed for deletion. None if there is no such
            job or it has not ended.
        """
        args: list[Scalar] = [job_id, reason.code, GONE_S, again_at or ""]
        unused = self._writes.run(self._forget_script, args=args)
        return None if unused is None else list(map(decode, unused))

    def expired_ids(self, limit: int = 100) -> list[str]:
        """Return ids of ended jobs whose time to live is over."""
        return self._due(keys.EXPIRING_JOBS, limit)

    def postpone(self, job_id: str, until: float) -> None:
        """List an expired job again at a later time, because its images cannot be deleted now."""
        self._redis.zadd(keys.EXPIRING_JOBS, {job_id: until}, xx=True)

    def expire_at(self, job_id: str, until: float | None) -> None:
        """List a job, which need not exist yet, as expired from a time on; None: no longer."""
        if until is None:
            self._redis.zrem(keys.EXPIRING_JOBS, job_id)
        else:
            self._redis.zadd(keys.EXPIRING_JOBS, {job_id: until})

    def overdue_ids(self, limit: int = 100) -> list[str]:
        """Return ids of jobs that have missed their deadline."""
        return self._due(keys.DEADLINES, limit)

    def miss_deadline(self, job_id: str) -> bool:
        """Mark a job that goes on after its deadline. Returns False if it is to be cancelled instead."""
        return bool(self._writes.run(self._deadline_script, args=[job_id]))

    def _due(self, index: str, limit: int) -> list[str]:
        return list(map(decode, self._redis.zrangebyscore(index, "-inf", self._clock.now(), 0, limit)))

    def start(self, job_id: str, *, execution: str, worker: str) -> bool:
        """Give a queued job to an execution. Returns False if it has ended or another execution owns it."""
        fields: dict[str, Scalar] = {
            "execution": execution,
            "worker": worker,
            "started_at": self._clock.now(),
            "step": 0,
        }
        return self._transition(job_id, JobStatus.RUNNING, fields, attempt=True)

    def release(self, job_id: str, *, execution: str) -> bool:
        """Return a running job to the queued status. Returns False if `execution` no longer owns it."""
        fields: dict[str, Scalar] = {"execution": "", "worker": "", "started_at": "", "step": 0}
        return self._transition(job_id, JobStatus.QUEUED, fields, execution=execution)

    def succeed(
        self,
        job_id: str,
        *,
        execution: str,
        images: Iterable[ImageInfo],
        timings: Mapping[str, float],
        steps: int,
        withheld: Sequence[int] = (),
        digest: str | None = None,
    ) -> bool:
        """End the job with its images. Returns False and changes nothing if `execution` no longer owns it.

        Args:
            withheld: Indices of the images that were flagged and are not delivered.
            digest: Its `result_digest`, by which later requests find the images.
        """
        fields: dict[str, Scalar] = {
            "images": json.dumps([image.model_dump() for image in images]),
            "timings": json.dumps({stage: round(seconds, 6) for stage, seconds in timings.items()}),
            "step": steps,
            "steps": steps,
            "finished_at": self._clock.now(),
        }
        if withheld:
            fields["withheld"] = json.dumps(withheld)
        elif digest:
            fields["result_digest"] = digest
        return self._transition(job_id, JobStatus.SUCCEEDED, fields, execution=execution)

    def fail(self, job_id: str, failure: JobFailure, *, execution: str = "") -> bool:
        """End the job with a failure; if an execution is given, only while that owns the job."""
        fields: dict[str, Scalar] = {"error": failure.model_dump_json(), "finished_at": self._clock.now()}
        return self._transition(job_id, JobStatus.FAILED, fields, execution=execution)

    def cancel_queued(self, job_ids: Sequence[str]) -> list[str]:
        """Cancel those of the jobs that wait, in one round trip. Returns their ids."""
        finished_at = self._clock.now()
        args = [JobStatus.CANCELLED.value, JobStatus.QUEUED.value, "", finished_at, 0, "finished_at", finished_at]
        replies = self._writes.run_all(self._transition_script, [((), (job_id, *args)) for job_id in job_ids])
        return [job_id for job_id, reply in zip(job_ids, replies, strict=True) if decode(reply) == "ok"]

    def cancel(self, job_id: str, *, execution: str = "", reason: JobFailure | None = None) -> bool:
        """Cancel a queued or running job; if an execution is given, only while that owns the job."""
        fields: dict[str, Scalar] = {"finished_at": self._clock.now()}
        if reason is not None:
            fields["error"] = reason.model_dump_json()
        return self._transition(job_id, JobStatus.CANCELLED, fields, execution=execution)

    def record_progress(self, progress: Iterable[Progress]) -> list[Progress]:
        """Record progress, in one round trip. Returns the entries whose execution no longer owns its job."""
        progress = list(progress)
        if not progress:
            return []
        recorded = self._progress_script(args=[a for p in progress for a in (p.job_id, p.execution, p.step, p.steps)])
        return [p for p, ok in zip(progress, recorded, strict=True) if not ok]

    def active_ids(self) -> list[str]:
        """Return the ids of all jobs that have not ended, oldest first."""
        # In a transaction, so that a job that starts between the two reads is in one of the results.
        with self._redis.pipeline() as pipe:
            for status in JobStatus:
                if not status.is_terminal:
                    pipe.zrange(keys.JOBS_BY_STATUS.format(status=status), 0, -1, withscores=True)
            scored = [row for rows in pipe.execute() for row in rows]
        return [decode(job_id) for job_id, _ in sorted(scored, key=lambda row: row[1])]

    def ended_counts(self) -> dict[tuple[str, JobStatus], int]:
        """Return how many jobs have ever ended, by model and final status."""
        counts = {}
        for name, count in self._redis.hgetall(keys.ENDED_JOBS).items():
            status, _, model = decode(name).partition(" ")
            counts[model, JobStatus(status)] = int(count)
        return counts

    def _readable(
        self, cursors: Iterable[Cursor], hashes: Iterable[Mapping[bytes | str, bytes | str]]
    ) -> list[JobRecord]:
        """Return the records of a page, except for those that were deleted or that another version has written."""
        records = []
        for cursor, fields in zip(cursors, hashes, strict=False):
            record = _readable(cursor.job_id, fields)
            if record and not self._has_expired(record):
                records.append(record)
        return records

    def _has_expired(self, record: JobRecord) -> bool:
        return bool(record.expires_at and record.expires_at <= self._clock.now())

    def _transition(
        self, job_id: str, to: JobStatus, fields: Mapping[str, Scalar], *, execution: str = "", attempt: bool = False
    ) -> bool:
        sources = ",".join(status for status, targets in TRANSITIONS.items() if to in targets)
        ended_at: Scalar = fields["finished_at"] if to.is_terminal else ""
        args: list[Scalar] = [job_id, to.value, sources, execution, ended_at, int(attempt)]
        args += [item for field in fields.items() for item in field]
        return decode(self._writes.run(self._transition_script, args=args)) == "ok"


def _readable(job_id: str, fields: Mapping[bytes | str, bytes | str]) -> JobRecord | None:
    """Return the record of a hash, or None if there is none or it cannot be read."""
    try:
        return job_record.from_fields(job_id, fields) if fields else None
    except UnreadableJob:
        log.warning("the record cannot be read", extra=job_extra(job_id))
        return None


def job_index(owner: str | None, status: JobStatus | None = None) -> str:
    """Return the key of the list of an owner's jobs with a status. No owner means all owners, None any status."""
    if owner:
        index = keys.JOBS_OF_OWNER_BY_STATUS if status else keys.JOBS_OF_OWNER
    else:
        index = keys.JOBS_BY_STATUS if status else keys.JOBS
    return index.format(owner=owner, status=status)
