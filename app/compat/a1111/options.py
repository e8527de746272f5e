"""`/sdapi/v1/options`: the model of a caller's requests, and options that only the web UI has."""

import json
from collections.abc import Mapping
from typing import Any

from anyio.to_thread import run_sync
from fastapi import APIRouter, Request
from redis import Redis

from img2img.errors import ParameterError
from img2img.redis.decode import decode
from img2img.redis.keys import A1111_OPTIONS

from ...dependencies import DefaultModelDep
from ...http.request_body import read_json
from ..blocking_jobs import BlockingJobs, BlockingJobsDep

MODEL = "sd_model_checkpoint"
# What the web UI remembers for its own pages, with its defaults. Nothing here depends on them.
PAGE_OPTIONS: dict[str, bool] = {
    "send_seed": True,
    "send_size": True,
    "samples_save": True,
    "grid_save": True,
    "save_to_dirs": True,
    "do_not_show_images": False,
    "show_progressbar": True,
    "live_previews_enable": True,
    "return_grid": True,
    "return_mask": False,
    "return_mask_composite": False,
    "enable_pnginfo": True,
}
# Options that have one value here. Requests set them in `override_settings` or in fields.
FIXED_OPTIONS: dict[str, Any] = {
    "sd_checkpoint_hash": "",
    "sd_vae": "Automatic",
    "CLIP_stop_at_last_layers": 1,
    "samples_format": "png",
    "img2img_fix_steps": False,
    "eta_noise_seed_delta": 0,
}
# Options of a caller who sets none for so long are forgotten.
RETENTION_S = 30 * 24 * 3600

router = APIRouter()


@router.get("/options")
def get_options(jobs: BlockingJobsDep, default: DefaultModelDep) -> dict[str, Any]:
    """Returns the options of the caller."""
    return {MODEL: default.name, **FIXED_OPTIONS, **PAGE_OPTIONS, **_stored(jobs)}


@router.post("/options")
async def set_options(request: Request, jobs: BlockingJobsDep, default: DefaultModelDep) -> dict[str, Any]:
    """Sets the caller's model, and options of the web UI's pages."""
    options = await read_json(request, dict[str, Any], strict=False)
    await run_sync(_set, options, jobs, default.name)
    return {}


def chosen_model(jobs: BlockingJobs) -> str | None:
    """Return the model that the caller has set for requests that name none, if there is one."""
    value = jobs.redis.hget(_key(jobs), MODEL)
    return None if value is None else json.loads(value)


def _set(options: dict[str, Any], jobs: BlockingJobs, default: str) -> None:
    stored = {}
    for name, value in options.items():
        if name == MODEL:
            models = sorted({default, *jobs.models.live()})
            if value not in models:
                raise ParameterError(name, f"Input should be one of: {', '.join(models)}", got=value)
        elif name in PAGE_OPTIONS:
            if not isinstance(value, bool):
                raise ParameterError(name, "Input should be true or false", got=value)
        elif FIXED_OPTIONS.get(name) == value:
            continue
        else:
            settable = ", ".join((MODEL, *PAGE_OPTIONS))
            message = f"This option cannot be set; a request can have it in `override_settings`. Settable: {settable}"
            raise ParameterError(name, message, got=value)
        stored[name] = json.dumps(value)
    if stored:
        _store(jobs.redis, _key(jobs), stored)


def _store(redis: Redis, key: str, options: Mapping[Any, str]) -> None:
    with redis.pipeline() as pipe:
        pipe.hset(key, mapping=options)
        pipe.expire(key, RETENTION_S)
        pipe.execute()


def _stored(jobs: BlockingJobs) -> dict[str, Any]:
    return {decode(name): json.loads(value) for name, value in jobs.redis.hgetall(_key(jobs)).items()}


def _key(jobs: BlockingJobs) -> str:
    return A1111_OPTIONS.format(owner=jobs.submitter.caller.owner)
