"""The API of the AUTOMATIC1111 web UI: `/sdapi/v1/img2img` and the endpoints that its clients use.

https://github.com/AUTOMATIC1111/stable-diffusion-webui/wiki/API
"""

import json
from base64 import b64encode
from contextlib import suppress
from typing import Any

from anyio.to_thread import run_sync
from fastapi import APIRouter
from redis import Redis

from img2img.domain.job import JobRecord, JobStatus
from img2img.domain.model_card import model_name
from img2img.domain.spec import StrengthSpec
from img2img.errors import Gone, NotFound, ParameterError
from img2img.redis.decode import decode
from img2img.redis.keys import A1111_JOBS

from ..dependencies import PreviewsDep, SettingsDep
from .a1111_request import NAMES, SAMPLERS, WebUIRequest, to_request
from .blocking_jobs import BlockingJobs, BlockingJobsDep

# Seconds after which ids of unfinished jobs are dropped if the API server died before it removed them.
RETENTION_S = 24 * 3600

router = APIRouter(prefix="/sdapi/v1", include_in_schema=False)


@router.post("/img2img")
async def img2img(body: WebUIRequest, jobs: BlockingJobsDep) -> dict[str, Any]:
    """Makes images and responds when they are done."""
    # Without a mask, this opens no image. The sizes of the images are not known yet.
    unmeasured = [body] if body.mask is not None else []
    request = await jobs.decoders.run(to_request, body, jobs.decoders, images=unmeasured)
    record = await jobs.start(request)
    await run_sync(_add_unfinished, jobs.redis, record)
    try:
        record = await jobs.end(record.id)
    finally:
        await run_sync(jobs.redis.zrem, A1111_JOBS.format(owner=record.owner), record.id)
    interrupted = record.status is JobStatus.CANCELLED
    images = [] if interrupted or not body.send_images else await run_sync(jobs.pngs, record)
    hidden = set() if body.include_init_images else {"init_images", "mask"}
    return {
        "images": [b64encode(image).decode() for image in images],
        "parameters": body.model_dump(mode="json", exclude=hidden),
        "info": json.dumps(_info(record)),
    }


def _add_unfinished(redis: Redis, record: JobRecord) -> None:
    key = A1111_JOBS.format(owner=record.owner)
    with redis.pipeline() as pipe:
        pipe.zremrangebyscore(key, "-inf", record.created_at - RETENTION_S)
        pipe.zadd(key, {record.id: record.created_at})
        pipe.expire(key, RETENTION_S)
        pipe.execute()


def _info(record: JobRecord) -> dict[str, Any]:
    spec = record.spec
    assert isinstance(spec, StrengthSpec)
    seeds = [spec.seed + index for index in range(spec.num_images)]
    width, height = spec.result_size
    return {
        "prompt": spec.prompt,
        "all_prompts": [spec.prompt] * spec.num_images,
        "negative_prompt": spec.negative_prompt,
        "all_negative_prompts": [spec.negative_prompt] * spec.num_images,
        "seed": spec.seed,
        "all_seeds": seeds,
        "width": width,
        "height": height,
        "sampler_name": NAMES.get(spec.scheduler, spec.scheduler.value),
        "cfg_scale": spec.guidance_scale,
        "steps": spec.num_inference_steps,
        "batch_size": spec.num_images,
        "denoising_strength": spec.strength,
        "sd_model_name": spec.model,
        "infotexts": [_infotext(spec, seed) for seed in seeds],
        "index_of_first_image": 0,
        "job_id": record.id,
        "interrupted": record.status is JobStatus.CANCELLED,
    }


def _infotext(spec: StrengthSpec, seed: int) -> str:
    negative = f"\nNegative prompt: {spec.negative_prompt}" if spec.negative_prompt else ""
    width, height = spec.result_size
    sampler = NAMES.get(spec.scheduler, spec.scheduler)
    return (
        f"{spec.prompt}{negative}\nSteps: {spec.num_inference_steps}, Sampler: {sampler}, "
        f"CFG scale: {spec.guidance_scale:g}, Seed: {seed}, Size: {width}x{height}, Model: {spec.model}, "
        f"Denoising strength: {spec.strength:g}"
    )


@router.get("/progress")
def progress(jobs: BlockingJobsDep, previews: PreviewsDep, skip_current_image: bool = False) -> dict[str, Any]:
    """Returns the progress and preview of the caller's oldest unfinished job of this API."""
    record = next(iter(_unfinished_jobs(jobs)), None)
    state = {"skipped": False, "interrupted": False, "job": "", "job_count": 0, "job_no": 0}
    if record is None:
        steps = {"sampling_step": 0, "sampling_steps": 0}
        return {"progress": 0.0, "eta_relative": 0.0, "state": state | steps, "current_image": None, "textinfo": None}
    preview = None
    if not skip_current_image:
        previews.request(record.id)
        preview = previews.latest(record.id)
    steps = {"sampling_step": record.step, "sampling_steps": record.steps}
    return {
        "progress": record.step / record.steps if record.steps else 0.0,
        "eta_relative": 0.0,
        "state": state | steps | {"job": record.id, "job_count": 1},
        "current_image": b64encode(preview.jpeg).decode() if preview else None,
        "textinfo": record.status.value,
    }


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


@router.get("/samplers")
def samplers() -> list[dict[str, Any]]:
    """Lists the samplers by the web UI's names."""
    return [{"name": name, "aliases": [], "options": {}} for name in dict.fromkeys(name for name, _ in SAMPLERS)]


@router.get("/schedulers")
def schedulers() -> list[dict[str, Any]]:
    """Lists the schedules. Each goes with some of the samplers."""
    names = dict.fromkeys(schedule for _, schedule in SAMPLERS)
    return [{"name": name, "label": name.capitalize(), "aliases": None} for name in names]


@router.get("/sd-models")
def sd_models(jobs: BlockingJobsDep) -> list[dict[str, Any]]:
    """Lists the models that live workers serve."""
    return [
        {"title": name, "model_name": name, "hash": None, "sha256": None, "filename": name, "config": None}
        for name in sorted(jobs.models.live())
    ]


@router.get("/options")
def options(settings: SettingsDep) -> dict[str, Any]:
    """Returns the only option: the default model."""
    return {"sd_model_checkpoint": model_name(settings.model)}


@router.post("/options")
def set_options(options: dict[str, Any], settings: SettingsDep) -> dict[str, Any]:
    """Accepts only options that have this value already: they would apply to all clients."""
    for name, value in options.items():
        if (name, value) != ("sd_model_checkpoint", model_name(settings.model)):
            message = "Options cannot be set for all clients; a request can name its model in `override_settings`"
            raise ParameterError(name, message, got=value)
    return {}


@router.get("/scripts")
def scripts() -> dict[str, list[str]]:
    """Lists no scripts."""
    return {"txt2img": [], "img2img": []}
