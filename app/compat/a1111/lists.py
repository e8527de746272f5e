"""Lists of samplers, models and other things that clients of the web UI show, and `png-info`."""

import os
from typing import Annotated, Any

from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, ConfigDict

from img2img.domain.infotext import parse_infotext
from img2img.domain.model_card import ModelCard
from img2img.domain.sampler_names import AUTOMATIC, UNIFORM, WEB_UI_SAMPLERS, WEB_UI_SCHEDULES
from img2img.imaging.file_types import identify
from img2img.imaging.parts import check_parts
from img2img.imaging.png import read_texts

from ...dependencies import DefaultModelDep
from ...http.request_body import read_json
from ...schemas.request_fields import ImageBytes
from ..blocking_jobs import BlockingJobsDep
from .options import chosen_model
from .scripts import CONTROLNET, UPSCALE
from .upscalers import RESAMPLING, upscalers_of

router = APIRouter()


def current_card(jobs: BlockingJobsDep, default: DefaultModelDep) -> ModelCard | None:
    """Return the card of the model that the caller has set, or of the default model; None if it is not known yet."""
    return jobs.models.find(chosen_model(jobs) or default.name)


CardDep = Annotated[ModelCard | None, Depends(current_card)]


@router.get("/samplers")
def samplers() -> list[dict[str, Any]]:
    """Lists the samplers by the web UI's names."""
    return [{"name": name, "aliases": [scheduler.value], "options": {}} for scheduler, name in WEB_UI_SAMPLERS.items()]


@router.get("/schedulers")
def schedulers() -> list[dict[str, Any]]:
    """Lists the schedules. Each goes with some of the samplers."""
    own = [{"name": name.lower(), "label": name, "aliases": None} for name in (AUTOMATIC, UNIFORM)]
    return [
        *own,
        *({"name": sigmas.value, "label": name, "aliases": None} for sigmas, name in WEB_UI_SCHEDULES.items()),
    ]


@router.get("/sd-models")
def sd_models(jobs: BlockingJobsDep) -> list[dict[str, Any]]:
    """Lists the models that live workers serve."""
    return [
        {"title": name, "model_name": name, "hash": None, "sha256": None, "filename": name, "config": None}
        for name in sorted(jobs.models.live())
    ]


@router.get("/loras")
def loras(card: CardDep) -> list[dict[str, Any]]:
    """Lists the LoRAs of the model, for tags in prompts."""
    return [{"name": name, "alias": name, "path": name, "metadata": {}} for name in (card.loras if card else ())]


@router.get("/embeddings")
def embeddings(card: CardDep) -> dict[str, Any]:
    """Lists the embeddings of the model, for prompts."""
    names = card.embeddings if card else ()
    unknown = {"step": None, "sd_checkpoint": None, "sd_checkpoint_name": None, "shape": 0, "vectors": 0}
    return {"loaded": dict.fromkeys(names, unknown), "skipped": {}}


@router.get("/upscalers")
def upscalers(card: CardDep) -> list[dict[str, Any]]:
    """Lists the upscalers for `extra-single-image` and the script `sd upscale`."""
    factors: dict[str, int] = {**dict.fromkeys(RESAMPLING, 4), **(upscalers_of(card) if card else {})}
    return [
        {"name": name, "model_name": None, "model_path": None, "model_url": None, "scale": factor}
        for name, factor in factors.items()
    ]


@router.get("/scripts")
def scripts(card: CardDep) -> dict[str, list[str]]:
    """Lists the scripts."""
    names = [UPSCALE] if card and card.upscales else []
    return {"txt2img": [], "img2img": [*names, *([CONTROLNET] if card and card.controls else [])]}


@router.get("/hypernetworks")
@router.get("/face-restorers")
@router.get("/realesrgan-models")
@router.get("/prompt-styles")
@router.get("/sd-vae")
@router.get("/latent-upscale-modes")
@router.get("/script-info")
@router.get("/extensions")
def nothing() -> list[dict[str, Any]]:
    """Lists what this service does not have."""
    return []


@router.get("/cmd-flags")
def cmd_flags() -> dict[str, Any]:
    """Returns the only flag of the web UI that applies."""
    return {"api": True}


@router.get("/memory")
def memory() -> dict[str, Any]:
    """Returns the memory of the API server's host. Devices belong to the workers, which report theirs as metrics."""
    page = os.sysconf("SC_PAGE_SIZE")
    total, free = page * os.sysconf("SC_PHYS_PAGES"), page * os.sysconf("SC_AVPHYS_PAGES")
    ram = {"free": free, "used": total - free, "total": total}
    return {"ram": ram, "cuda": {"error": "the API server has no device; see the metrics of the workers"}}


@router.post("/refresh-checkpoints")
@router.post("/refresh-loras")
@router.post("/refresh-embeddings")
@router.post("/refresh-vae")
def refresh() -> dict[str, Any]:
    """Does nothing: workers follow changes of their model file and LoRA folders by themselves."""
    return {}


class PngInfoRequest(BaseModel):
    """The body of `/sdapi/v1/png-info`."""

    model_config = ConfigDict(extra="forbid")

    image: ImageBytes


@router.post("/png-info")
async def png_info(request: Request) -> dict[str, Any]:
    """Returns the texts of an image, among them the parameters that results have."""
    body = await read_json(request, PngInfoRequest, strict=False)
    return await run_sync(_png_info, body.image, limiter=request.app.state.cells.all[0].parsers)


def _png_info(image: bytes) -> dict[str, Any]:
    kind = identify(image)
    check_parts(kind, image)
    texts = read_texts(image) if kind == "PNG" else {}
    info = texts.get("parameters", "")
    return {"info": info, "items": texts, "parameters": parse_infotext(info) if info else {}}
