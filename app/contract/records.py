"""Job records in Redis. Every change of state is one compare-and-set, so a record has one history whoever writes it."""

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from redis import Redis
from rq.utils import as_text

from app.contract.job import TRANSITIONS, ImageInfo, JobFailure, JobRecord, JobStatus
from app.contract.spec import JobSpec

RECORD = "i2i:job:{id}"  # hash: the record, field by field
ACTIVE = "i2i:active"  # sorted set: ids of jobs that have not ended, by creation time

Scalar = bytes | bytearray | memoryview | str | int | float  # what a Redis hash field can hold

# Moves a record to a new state if it is in one that allows the move and, where an execution is named, if that
# execution still owns it. Answers "ok", or what stood in the way: "missing", "lost" or the present status.
# KEYS: record, active. ARGV: id, statuses it may move from, owning execution or "", "1" if the new state is terminal,
# "1" to count an attempt, then field, value, ...
_MOVE = """
local status = redis.call('HGET', KEYS[1], 'status')
if not status then return 'missing' end
if not string.find(',' .. ARGV[2] .. ',', ',' .. status .. ',', 1, true) then return status end
if ARGV[3] ~= '' and redis.call('HGET', KEYS[1], 'execution') ~= ARGV[3] then return 'lost' end
redis.call('HSET', KEYS[1], unpack(ARGV, 6))
if ARGV[4] == '1' then redis.call('ZREM', KEYS[2], ARGV[1]) end
if ARGV[5] == '1' then redis.call('HINCRBY', KEYS[1], 'attempts', 1) end
return 'ok'
"""

# Notes progress if the execution still owns a running record. KEYS: record. ARGV: execution, step, steps.
_PROGRESS = """
local now = redis.call('HMGET', KEYS[1], 'status', 'execution')
if now[1] == 'running' and now[2] == ARGV[1] then
  redis.call('HSET', KEYS[1], 'step', ARGV[2], 'steps', ARGV[3])
  return 1
end
return 0
"""


@dataclass(frozen=True)
class Progress:
    """How far an execution of a job is, in denoising steps summed over its images."""

    job_id: str
    execution: str
    step: int
    steps: int


class JobRecords:
    """The job records of one Redis."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._move_script = redis.register_script(_MOVE)
        self._progress_script = redis.register_script(_PROGRESS)

    def get(self, job_id: str) -> JobRecord | None:
        """The record, or None where there is none."""
        fields = self._redis.hgetall(RECORD.format(id=job_id))
        return _parse(job_id, fields) if fields else None

    def start(self, job_id: str, *, execution: str, worker: str) -> bool:
        """Gives a queued job to `execution`. False if there is no such job, it has ended, or another one has it."""
        fields: dict[str, Scalar] = {"execution": execution, "worker": worker, "started_at": time.time(), "step": 0}
        return self._move(job_id, JobStatus.RUNNING, fields, attempt=True) == "ok"

    def hand_back(self, job_id: str, *, execution: str) -> bool:
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

    def cancel(self, job_id: str, *, execution: str = "") -> bool:
        """Ends a queued or running job as cancelled. With an execution: only if that one still owns the job."""
        return self._move(job_id, JobStatus.CANCELLED, {"finished_at": time.time()}, execution=execution) == "ok"

    def note_progress(self, progress: Iterable[Progress]) -> list[Progress]:
        """Notes progress, in one round trip. Returns those whose execution no longer owns its job."""
        progress = list(progress)
        if not progress:
            return []
        with self._redis.pipeline(transaction=False) as pipe:
            for p in progress:
                self._progress_script(
                    keys=[RECORD.format(id=p.job_id)], args=[p.execution, p.step, p.steps], client=pipe
                )
            noted = pipe.execute()
        return [p for p, ok in zip(progress, noted, strict=True) if not ok]

    def active_ids(self) -> list[str]:
        """Ids of all jobs that have not ended, oldest first."""
        return [str(as_text(job_id)) for job_id in self._redis.zrange(ACTIVE, 0, -1)]  # type: ignore[arg-type]

    def _move(
        self, job_id: str, to: JobStatus, fields: Mapping[str, Scalar], *, execution: str = "", attempt: bool = False
    ) -> str:
        sources = ",".join(status for status, targets in TRANSITIONS.items() if to in targets)
        flat = [x for field in {"status": to.value, **fields}.items() for x in field]
        args: list[Scalar] = [job_id, sources, execution, int(to.is_terminal), int(attempt), *flat]
        answer = self._move_script(keys=[RECORD.format(id=job_id), ACTIVE], args=args)
        return str(as_text(answer))


def new_record_fields(spec: JobSpec, created_at: float) -> dict[str, Scalar]:
    """The fields of a record just made, for the transaction that also queues the job."""
    return {
        "status": JobStatus.QUEUED.value,
        "spec": spec.model_dump_json(),
        "created_at": created_at,
        "attempts": 0,
        "step": 0,
        "steps": spec.steps_run * spec.num_images,
    }


def _parse(job_id: str, fields: Mapping[bytes | str, bytes | str]) -> JobRecord:
    text = {as_text(name): as_text(value) for name, value in fields.items() if value}  # an empty field is an unset one
    parsed: dict[str, object] = {"id": job_id, **text}
    parsed["spec"] = JobSpec.model_validate_json(text["spec"])
    for name in ("images", "error", "timings"):
        if name in text:
            parsed[name] = json.loads(text[name])
    return JobRecord.model_validate(parsed)
