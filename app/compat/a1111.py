"""The API of the AUTOMATIC1111 web UI: `/sdapi/v1/img2img` and the endpoints that its clients use.

https://github.com/AUTOMATIC1111/stable-diffusion-webui/wiki/API
"""

import json
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from anyio.to_thread import run_sync
from fastapi import APIRouter, Request
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict
from redis import Redis

from img2img.domain.infotext import WEB_UI_NAMES, infotext, parse_infotext
from img2img.domain.job import JobRecord, JobStatus
from img2img.domain.spec import StrengthSpec
from img2img.errors import Gone, NotFound, ParameterError
from img2img.redis.decode import decode
from img2img.redis.keys import A1111_JOBS

from ..dependencies import DefaultModelDep, PreviewsDep
from ..http.request_body import read_json
from ..imaging.file_types import identify
from ..imaging.parts import check_parts
from ..imaging.png import read_texts
from ..schemas.request_fields import ImageBytes
from .a1111_request import WebUIRequest, to_request
from .a1111_samplers import SAMPLERS, SCHEDULES
from .blocking_jobs import BlockingJobs, BlockingJobsDep

# Seconds after which ids of unfinished jobs are dropped if the API server died before it removed them.
RETENTION_S = 24 * 3600

# The web UI's names of fields of `POST /img2img`.
FIELDS = {
    "image": "init_images",
    "loras": "prompt",
    "prompt_weighting": "prompt",
    "strength": "denoising_strength",
    "guidance_scale": "cfg_scale",
    "num_inference_steps": "steps",
    "scheduler": "sampler_name",
    "num_images": "batch_size",
    "resize": "resize_mode",
    "model": "override_settings.sd_model_checkpoint",
    "clip_skip": "override_settings.CLIP_stop_at_last_layers",
    "mask_padding": "inpaint_full_res_padding",
}

router = APIRouter(prefix="/sdapi/v1", include_in_schema=False)


@router.post("/img2img")
async def img2img(request: Request, jobs: BlockingJobsDep) -> dict[str, Any]:
    """Makes images and responds when they are done."""
    body = await read_json(request, WebUIRequest, strict=False)
    # Without a mask, this opens no image. The sizes of the images are not known yet.
    unmeasured = [body] if body.mask is not None else []
    with _web_ui_fields():
        record = await jobs.start(await jobs.decoders.run(to_request, body, jobs.decoders, images=unmeasured))
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
        "images": await run_sync(lambda: [b64encode(image).decode() for image in images]),
        "parameters": body.model_dump(mode="json", exclude=hidden),
        "info": json.dumps(_info(record)),
    }


@contextmanager
def _web_ui_fields() -> Iterator[None]:
    """Name the fields of errors as the web UI does."""
    try:
        yield
    except ParameterError as error:
        error.field = FIELDS.get(error.field.partition(".")[0], error.field)
        raise


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
    withheld = record.withheld
    seeds = [spec.image_seed(index) for index in range(spec.num_images) if index not in withheld]
    width, height = spec.result_size
    return {
        "prompt": spec.prompt,
        "all_prompts": [spec.prompt] * len(seeds),
        "negative_prompt": spec.negative_prompt,
        "all_negative_prompts": [spec.negative_prompt] * len(seeds),
        "seed": spec.seed,
        "all_seeds": seeds,
        "width": width,
        "height": height,
        "sampler_name": WEB_UI_NAMES[spec.scheduler][0] if spec.scheduler in WEB_UI_NAMES else spec.scheduler.value,
        "cfg_scale": spec.guidance_scale,
        "steps": spec.num_inference_steps,
        "batch_size": spec.num_images,
        "denoising_strength": spec.strength,
        "sd_model_name": spec.model,
        "infotexts": [infotext(spec, seed) for seed in seeds],
        "index_of_first_image": 0,
        "job_id": record.id,
        "interrupted": record.status is JobStatus.CANCELLED,
    }


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
    return [{"name": name.lower(), "label": name, "aliases": None} for name in SCHEDULES]


@router.get("/sd-models")
def sd_models(jobs: BlockingJobsDep) -> list[dict[str, Any]]:
    """Lists the models that live workers serve."""
    return [
        {"title": name, "model_name": name, "hash": None, "sha256": None, "filename": name, "config": None}
        for name in sorted(jobs.models.live())
    ]


@router.get("/loras")
def loras(jobs: BlockingJobsDep, default: DefaultModelDep) -> list[dict[str, Any]]:
    """Lists the LoRAs of the default model, for tags in prompts."""
    card = jobs.models.find(default.name)
    return [{"name": name, "alias": name, "path": name, "metadata": {}} for name in (card.loras if card else ())]


class PngInfoRequest(BaseModel):
    """The body of `/sdapi/v1/png-info`."""

    model_config = ConfigDict(extra="forbid")

    image: ImageBytes


@router.post("/png-info")
async def png_info(request: Request) -> dict[str, Any]:
    """Returns the texts of an image, among them the parameters that results have."""
    body = await read_json(request, PngInfoRequest, strict=False)
    return await run_sync(_png_info, body.image, limiter=request.app.state.services.parsers)


def _png_info(image: bytes) -> dict[str, Any]:
    kind = identify(image)
    check_parts(kind, image)
    texts = read_texts(image) if kind == "PNG" else {}
    info = texts.get("parameters", "")
    return {"info": info, "items": texts, "parameters": parse_infotext(info) if info else {}}


@router.get("/options")
def options(default: DefaultModelDep) -> dict[str, Any]:
    """Returns the only option: the default model."""
    return {"sd_model_checkpoint": default.name}


@router.post("/options")
async def set_options(request: Request, default: DefaultModelDep) -> dict[str, Any]:
    """Accepts only options that have this value already: they would apply to all clients."""
    options = await read_json(request, dict[str, Any], strict=False)
    for name, value in options.items():
        if (name, value) != ("sd_model_checkpoint", default.name):
            message = "Options cannot be set for all clients; a request can name its model in `override_settings`"
            raise ParameterError(name, message, got=value)
    return {}


@router.get("/scripts")
def scripts() -> dict[str, list[str]]:
    """Lists no scripts."""
    return {"txt2img": [], "img2img": []}


@router.post("/txt2img")
def txt2img() -> None:
    """Names the alternative: this service makes images of images."""
    raise NotFound(
        "Images cannot be made of text alone. `/sdapi/v1/img2img` starts from an image; `POST /img2img` also from "
        "`controls` alone."
    )


@router.api_route("/{path:path}", methods=["GET", "POST"])
def not_supported(path: str) -> None:
    """Names the endpoints that there are."""
    known = dict.fromkeys(route.path for route in router.routes[:-2] if isinstance(route, APIRoute))
    raise NotFound(f"/sdapi/v1/{path} is not supported. Supported are: {', '.join(known)}.")
