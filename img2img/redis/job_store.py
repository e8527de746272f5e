"""Job records in Redis. Every change of state is one compare-and-set, so a record has one history whoever writes it."""

import json
import logging
import time
from collections.abc import Iterable, Mapping
from copy import copy
from dataclasses import dataclass
from typing import Any, Self

from redis import Redis
from redis.client import Pipeline
from rq.utils import as_text

from img2img.domain.job import TRANSITIONS, ImageInfo, JobFailure, JobRecord, JobStatus
from img2img.domain.spec import JobSpec, input_key
from img2img.errors import Deleted, Expired, Gone, Img2ImgError, NotFound
from img2img.redis.fair_queue import LINE, FairQueue
from img2img.redis.input_images import INPUT_USES, INPUTS
from img2img.redis.job_store_scripts import FORGET, MOVE, PROGRESS
from img2img.telemetry.logging import job_extra

RECORD = "i2i:job:{id}"  # hash: the record, field by field
ALL_JOBS = "i2i:jobs"  # sorted set: ids of all jobs, by creation time
LISTED_AS = "i2i:jobs:{status}"  # the same, of the jobs in one state
LISTED_OF = "i2i:jobs:of:{owner}"  # the same, of the jobs of one owner; and + :{status}
EXPIRING = "i2i:expiring"  # sorted set: ids of ended jobs, by when their record and pictures go
DEADLINES = "i2i:deadlines"  # sorted set: ids of jobs with a deadline that have not ended, by that deadline
CHANGES = "i2i:changes"  # channel: id of every job whose record has changed, and its new status where that is new
OUTBOX = "i2i:outbox"  # sorted set: ids of jobs whose end a webhook is to tell, by when it is next tried
ENDED = "i2i:jobs:ended"  # hash: how many jobs have ended so, by `{status} {model}`; goes on for ever
GONE = "i2i:gone:{id}"  # string with a time to live: why there is no such job any more, and whose it was

GONE_S = 24 * 3600  # a job that is gone is answered for this long with what became of it
LATE_S = 300  # a worker may publish a picture of a job that is being deleted; they are looked for again after this

log = logging.getLogger(__name__)

Scalar = bytes | bytearray | memoryview | str | int | float  # what a Redis hash field can hold


@dataclass(frozen=True, order=True)
class Cursor:
    """Where a job stands in a list by creation time."""

    created_at: float
    job_id: str


@dataclass(frozen=True)
class Progress:
    """How far an execution of a job is, in denoising steps summed over its images."""

    job_id: str
    execution: str
    step: int
    steps: int


class JobStore:
    """The job records of one Redis: all of them, or as the owner of some sees them."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._owner: str | None = None  # None: sees the jobs of all
        self.fair_queue = FairQueue(redis, RECORD.format(id=""))
        self._move_script = redis.register_script(MOVE)
        self._forget_script = redis.register_script(FORGET)
        self._progress_script = redis.register_script(PROGRESS)

    def visible_to(self, owner: str | None) -> Self:
        """The same records, of which `find` and `page` show only those of this owner; None sees all."""
        seen = copy(self)
        seen._owner = owner
        return seen

    def get(self, job_id: str) -> JobRecord | None:
        """The record, whosever it is, or None where there is none."""
        fields = self._redis.hgetall(RECORD.format(id=job_id))
        return parse_record(job_id, fields) if fields else None

    def find(self, job_id: str) -> JobRecord:
        """The record. Raises NotFound, Expired or Deleted."""
        record = self.get(job_id)
        if record is None:
            raise self._why_none(job_id)
        if self._owner not in (None, record.owner):
            raise _no_job(job_id)
        if record.expires_at and record.expires_at <= time.time():  # not yet swept
            raise Expired
        return record

    def _why_none(self, job_id: str) -> Img2ImgError:
        why, _, owner = str(as_text(self._redis.get(GONE.format(id=job_id)) or b"")).partition(" ")
        if self._owner not in (None, owner):
            return _no_job(job_id)
        reasons: dict[str, Img2ImgError] = {kind.code: kind() for kind in (Expired, Deleted)}
        return reasons.get(why) or _no_job(job_id)

    def add(self, pipe: Pipeline, record: JobRecord) -> None:
        """Writes a new record with all that lists it, in the transaction that also queues the job."""
        spec = record.spec
        fields: dict[str, Scalar] = {
            "status": record.status.value,
            "spec": spec.model_dump_json(),
            "inputs": " ".join(map(input_key, spec.inputs)),
            "model": spec.model,
            "owner": record.owner,
            "priority": record.priority.value,
            "cost": spec.cost,
            "revision": 1,
            "created_at": record.created_at,
            "result_ttl_s": record.result_ttl_s,
            "attempts": 0,
            "step": 0,
            "steps": record.steps,
        }
        if record.deadline_at is not None:
            fields["deadline_at"] = record.deadline_at
            pipe.zadd(DEADLINES, {record.id: record.deadline_at})
        if record.traceparent is not None:
            fields["traceparent"] = record.traceparent
        if record.webhook is not None:
            fields["webhook"] = record.webhook.model_dump_json()
            fields["webhook_on"] = ",".join(record.webhook.statuses)
            fields["webhook_host"] = record.webhook.host
        pipe.hset(RECORD.format(id=record.id), items=[x for field in fields.items() for x in field])
        pipe.zadd(ALL_JOBS, {record.id: record.created_at})
        pipe.zadd(LISTED_AS.format(status=record.status), {record.id: record.created_at})
        if record.owner:
            pipe.zadd(job_index(record.owner), {record.id: record.created_at})
            pipe.zadd(job_index(record.owner, record.status), {record.id: record.created_at})
        for sha256 in spec.inputs:
            pipe.hincrby(INPUT_USES, input_key(sha256), 1)
        self.fair_queue.enqueue(pipe, record)
        pipe.publish(CHANGES, f"{record.id} {record.status}")

    def page(
        self, status: JobStatus | None, before: Cursor | None, limit: int
    ) -> tuple[list[JobRecord], Cursor | None]:
        """Up to `limit` jobs, newest first, from behind the place `before`; and the place to go on from, if any."""
        index = job_index(self._owner, status)
        newest = before.created_at if before else "+inf"
        places: list[Cursor] = []
        offset = 0
        while len(places) <= limit:
            rows = self._redis.zrevrangebyscore(index, newest, "-inf", offset, limit + 1, withscores=True)
            found = [Cursor(float(score), str(as_text(job_id))) for job_id, score in rows]  # type: ignore[str-unpack,arg-type]
            places += [place for place in found if before is None or place < before]
            offset += len(found)
            if len(found) <= limit:
                break
        with self._redis.pipeline(transaction=False) as pipe:
            for place in places[:limit]:
                pipe.hgetall(RECORD.format(id=place.job_id))
            hashes = pipe.execute()
        return _readable(places, hashes), places[limit - 1] if len(places) > limit else None

    def forget(self, job_id: str, why: type[Gone], *, again_at: float | None = None) -> bool:
        """Removes the record of an ended job, and remembers why for a while. False if it has not ended.

        again_at: when `expired_ids` names it once more, for pictures that came late.
        """
        keys = [RECORD.format(id=job_id), ALL_JOBS, EXPIRING, GONE.format(id=job_id), CHANGES, OUTBOX]
        return bool(self._forget_script(keys=keys, args=[job_id, why.code, GONE_S, again_at or ""]))

    def expired_ids(self, limit: int = 100) -> list[str]:
        """Ids of ended jobs whose time is over."""
        return self._due(EXPIRING, limit)

    def overdue_ids(self, limit: int = 100) -> list[str]:
        """Ids of jobs that have not ended by their deadline."""
        return self._due(DEADLINES, limit)

    def _due(self, key: str, limit: int) -> list[str]:
        due = self._redis.zrangebyscore(key, "-inf", time.time(), 0, limit)
        return [str(as_text(job_id)) for job_id in due]  # type: ignore[arg-type]

    def start(self, job_id: str, *, execution: str, worker: str) -> bool:
        """Gives a queued job to `execution`. False if there is no such job, it has ended, or another one has it."""
        fields: dict[str, Scalar] = {"execution": execution, "worker": worker, "started_at": time.time(), "step": 0}
        return self._move(job_id, JobStatus.RUNNING, fields, attempt=True) == "ok"

    def release(self, job_id: str, *, execution: str) -> bool:
        """Returns a running job to the queued state, owned by none. False if `execution` no longer owns it."""
        fields: dict[str, Scalar] = {"execution": "", "worker": "", "started_at": "", "step": 0}
        return self._move(job_id, JobStatus.QUEUED, fields, execution=execution) == "ok"

    def succeed(
        self, job_id: str, *, execution: str, images: Iterable[ImageInfo], timings: Mapping[str, float], steps: int
    ) -> bool:
        """Ends the job with its pictures. False if `execution` no longer owns it: nothing is written then."""
        fields: dict[str, Scalar] = {
            "images": json.dumps([image.model_dump() for image in images]),
            "timings": json.dumps({stage: round(seconds, 6) for stage, seconds in timings.items()}),
            "step": steps,
            "steps": steps,
            "finished_at": time.time(),
        }
        return self._move(job_id, JobStatus.SUCCEEDED, fields, execution=execution) == "ok"

    def fail(self, job_id: str, failure: JobFailure, *, execution: str = "") -> bool:
        """Ends the job with a failure. With an execution: only if that one still owns the job."""
        fields: dict[str, Scalar] = {"error": failure.model_dump_json(), "finished_at": time.time()}
        return self._move(job_id, JobStatus.FAILED, fields, execution=execution) == "ok"

    def cancel(self, job_id: str, *, execution: str = "", why: JobFailure | None = None) -> bool:
        """Ends a queued or running job as cancelled. With an execution: only if that one still owns the job."""
        fields: dict[str, Scalar] = {"finished_at": time.time()}
        if why is not None:
            fields["error"] = why.model_dump_json()
        return self._move(job_id, JobStatus.CANCELLED, fields, execution=execution) == "ok"

    def record_progress(self, progress: Iterable[Progress]) -> list[Progress]:
        """Notes progress, in one round trip. Returns those whose execution no longer owns its job."""
        progress = list(progress)
        if not progress:
            return []
        with self._redis.pipeline(transaction=False) as pipe:
            for p in progress:
                self._progress_script(
                    keys=[RECORD.format(id=p.job_id), CHANGES],
                    args=[p.job_id, p.execution, p.step, p.steps],
                    client=pipe,
                )
            noted = pipe.execute()
        return [p for p, ok in zip(progress, noted, strict=True) if not ok]

    def active_ids(self) -> list[str]:
        """Ids of all jobs that have not ended, oldest first."""
        with self._redis.pipeline() as pipe:  # one transaction: a job that moves meanwhile is in one of the two
            for status in JobStatus:
                if not status.is_terminal:
                    pipe.zrange(LISTED_AS.format(status=status), 0, -1, withscores=True)
            scored = [row for rows in pipe.execute() for row in rows]
        return [str(as_text(job_id)) for job_id, _ in sorted(scored, key=lambda row: row[1])]

    def ended(self) -> dict[tuple[str, JobStatus], int]:
        """How many jobs have ended, by model and end state, since this Redis began: whoever ended them, once each."""
        counts = {}
        for name, count in self._redis.hgetall(ENDED).items():
            status, _, model = str(as_text(name)).partition(" ")
            counts[model, JobStatus(status)] = int(count)
        return counts

    def _move(
        self, job_id: str, to: JobStatus, fields: Mapping[str, Scalar], *, execution: str = "", attempt: bool = False
    ) -> str:
        sources = ",".join(status for status, targets in TRANSITIONS.items() if to in targets)
        flat = [x for field in fields.items() for x in field]
        ended_at: Scalar = fields["finished_at"] if to.is_terminal else ""
        args: list[Scalar] = [job_id, to.value, sources, execution, ended_at, int(attempt), *flat]
        keys = [
            RECORD.format(id=job_id),
            ALL_JOBS,
            EXPIRING,
            DEADLINES,
            INPUT_USES,
            INPUTS,
            LINE,
            CHANGES,
            OUTBOX,
            ENDED,
        ]
        answer = self._move_script(keys=keys, args=args)
        return str(as_text(answer))


def job_index(owner: str | None, status: JobStatus | None = None) -> str:
    """The list of the jobs of an owner, or of all where it is None or empty, in one state or in any."""
    index = LISTED_OF.format(owner=owner) if owner else ALL_JOBS
    return f"{index}:{status}" if status else index


def _no_job(job_id: str) -> NotFound:
    return NotFound(f"There is no job {job_id[:80]}.")


def _readable(places: Iterable[Cursor], hashes: Iterable[Mapping[bytes | str, bytes | str]]) -> list[JobRecord]:
    """The records of a page, without those that went meanwhile or that another version wrote."""
    records = []
    for place, fields in zip(places, hashes, strict=False):
        try:
            record = parse_record(place.job_id, fields) if fields else None
        except (ValueError, KeyError):
            log.warning("cannot be read", extra=job_extra(place.job_id))
            continue
        if record and not (record.expires_at and record.expires_at <= time.time()):
            records.append(record)
    return records


def parse_record(job_id: str, fields: Mapping[Any, bytes | str]) -> JobRecord:
    """The record that a hash holds. Raises ValueError or KeyError where it cannot be read."""
    text = {as_text(name): as_text(value) for name, value in fields.items() if value}  # an empty field is an unset one
    parsed: dict[str, object] = {"id": job_id, **text}
    parsed["spec"] = JobSpec.model_validate_json(text["spec"])
    for name in ("images", "error", "timings", "webhook", "delivery"):
        if name in text:
            parsed[name] = json.loads(text[name])
    return JobRecord.model_validate(parsed)
