"""`/sdapi/v1/img2img`, its progress, and what ends it."""

import json
from base64 import b64encode
from contextlib import suppress
from typing import Any

from anyio.to_thread import run_sync
from fastapi import APIRouter, Request
from redis import Redis

from img2img.domain.job import JobRecord, JobStatus
from img2img.errors import Gone, NotFound
from img2img.redis.clock import redis_clock
from img2img.redis.decode import decode
from img2img.redis.keys import A1111_JOBS

from ...dependencies import EtaDep, PreviewsDep
from ...http.request_body import read_json
from ..blocking_jobs import BlockingJobs, BlockingJobsDep
from .errors import web_ui_fields
from .images import encoded
from .info import info_of
from .options import chosen_model
from .request import WebUIRequest, to_request

# Seconds after which ids of unfinished jobs are dropped if the API server died before it removed them.
RETENTION_S = 24 * 3600

router = APIRouter()


@router.post("/img2img")
async def img2img(request: Request, jobs: BlockingJobsDep) -> dict[str, Any]:
    """Makes images and responds when they are done."""
    body = await read_json(request, WebUIRequest, strict=False)
    # Without a mask, this opens few images. The sizes of the images are not known yet.
    unmeasured = [body] if body.mask is not None else []
    with web_ui_fields():
        name = body.model or await run_sync(chosen_model, jobs)
        card = await run_sync(jobs.submitter.model_card, name)
        record = await jobs.start(await jobs.decoders.run(to_request, body, card, jobs.decoders, images=unmeasured))
    if not body.include_init_images:
        body = body.without_images()
        jobs.release_body()
    await run_sync(_add_unfinished, jobs.redis, record)
    try:
        record = await jobs.end(record.id)
    finally:
        await run_sync(jobs.redis.zrem, A1111_JOBS.format(owner=record.owner), record.id)
    interrupted = record.status is JobStatus.CANCELLED
    images = [] if interrupted or not body.send_images else await jobs.pngs(record)
    hidden = set() if body.include_init_images else {"init_images", "mask"}
    return {
        "images": await run_sync(lambda: list(map(encoded, images))),
        "parameters": body.model_dump(mode="json", exclude=hidden),
        "info": json.dumps(info_of(record)),
    }


def _add_unfinished(redis: Redis, record: JobRecord) -> None:
    key = A1111_JOBS.format(owner=record.owner)
    with redis.pipeline() as pipe:
        pipe.zremrangebyscore(key, "-inf", record.created_at - RETENTION_S)
        pipe.zadd(key, {record.id: record.created_at})
        pipe.expire(key, RETENTION_S)
        pipe.execute()


@router.get("/progress")
def progress(
    jobs: BlockingJobsDep, previews: PreviewsDep, eta: EtaDep, skip_current_image: bool = False
) -> dict[str, Any]:
    """Returns the progress and preview of the caller's oldest unfinished job of this API."""
    record = next(iter(_unfinished_jobs(jobs)), None)
    state = {"skipped": False, "interrupted": False, "job": "", "job_count": 0, "job_no": 0, "job_timestamp": "0"}
    if record is None:
        steps = {"sampling_step": 0, "sampling_steps": 0}
        return {"progress": 0.0, "eta_relative": 0.0, "state": state | steps, "current_image": None, "textinfo": None}
    preview = None
    if not skip_current_image:
        previews.request(record.id)
        preview = previews.latest(record.id)
    steps = {"sampling_step": record.step, "sampling_steps": record.steps}
    done = record.step / record.steps if record.steps else 0.0
    return {
        "progress": done,
        "eta_relative": _seconds_left(record, done, jobs, eta),
        "state": state | steps | {"job": record.id, "job_count": 1, "job_timestamp": f"{record.created_at:.0f}"},
        "current_image": b64encode(preview.jpeg).decode() if preview else None,
        "textinfo": record.status.value,
    }


def _seconds_left(record: JobRecord, done: float, jobs: BlockingJobs, eta: EtaDep) -> float:
    """Return how long a job will take from now: by its own steps once it runs, by the queue before; 0 if unknown."""
    if record.started_at is not None and done > 0:
        elapsed = max(0.0, redis_clock(jobs.redis).now() - record.started_at)
        return elapsed * (1 - done) / done
    [estimate] = eta.estimate([record])
    return estimate.eta_s or 0.0 if estimate else 0.0


@router.post("/interrupt")
def interrupt(jobs: BlockingJobsDep) -> dict[str, Any]:
    """Cancels the caller's jobs of this API. Their responses have no images."""
    for record in _unfinished_jobs(jobs):
        jobs.queue.cancel(record.id)
    return {}


def _unfinished_jobs(jobs: BlockingJobs) -> list[JobRecord]:
    """Return the caller's unfinished jobs of this API, oldest first. An admin gets only its own jobs, too."""
    found = []
    for job_id in jobs.redis.zrange(A1111_JOBS.format(owner=jobs.submitter.caller.owner), 0, -1):
        with suppress(NotFound, Gone):
            found.append(jobs.queue.job_store.find(decode(job_id)))
    return [record for record in found if not record.status.is_terminal]
