"""The API of the ControlNet extension of the web UI."""

from collections.abc import Sequence
from typing import Annotated, Any

from anyio.to_thread import run_sync
from fastapi import APIRouter, Request
from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from img2img.domain.parameters import MAX_IMAGES
from img2img.errors import ParameterError

from ...http.request_body import read_json, validated
from ...schemas.requests import ControlMapRequest
from ..blocking_jobs import BlockingJobsDep
from .controlnet_units import Unit, control_type
from .errors import web_ui_fields
from .images import encoded, parse_web_image
from .lists import CardDep
from .options import chosen_model
from .routes import img2img

# Version of the extension's API whose units are understood.
VERSION = 2
NONE = "none"

router = APIRouter()
# Clients of older versions of the extension send `controlnet_units` here.
router.add_api_route("/img2img", img2img, methods=["POST"])


class DetectRequest(BaseModel):
    """The body of `/controlnet/detect`."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)

    controlnet_module: str = NONE
    # The second name is that of `webuiapi`.
    controlnet_input_images: Annotated[
        list[str],
        Field(
            min_length=1,
            max_length=MAX_IMAGES,
            validation_alias=AliasChoices("controlnet_input_images", "controlnet_images"),
        ),
    ]
    controlnet_masks: list[str] = []
    controlnet_threshold_a: float | None = None
    controlnet_threshold_b: float | None = None


@router.get("/version")
def version() -> dict[str, int]:
    """Returns the version of the API."""
    return {"version": VERSION}


@router.get("/model_list")
def model_list(card: CardDep) -> dict[str, Sequence[str]]:
    """Lists the ControlNets of the model: one for each control type."""
    return {"model_list": card.controls if card else ()}


@router.get("/module_list")
def module_list(card: CardDep) -> dict[str, Any]:
    """Lists the preprocessors."""
    names = (NONE, *(card.preprocessors if card else ()))
    details = {name: {"model_free": False, "no_control_mode": False, "sliders": []} for name in names}
    return {"module_list": names, "module_detail": details}


@router.get("/control_types")
def control_types(card: CardDep) -> dict[str, Any]:
    """Lists the preprocessors and ControlNets that go together, by control type."""
    nets, modules = (card.controls, card.preprocessors) if card else ((), ())
    types = {"All": _control_type(modules, nets)}
    types |= {name: _control_type([kind for kind in modules if kind == name], [name]) for name in nets}
    return {"control_types": types}


def _control_type(modules: Sequence[str], nets: Sequence[str]) -> dict[str, Any]:
    return {
        "module_list": [NONE, *modules],
        "model_list": ["None", *nets],
        "default_option": modules[0] if len(modules) == 1 else NONE,
        "default_model": nets[0] if len(nets) == 1 else "None",
    }


@router.get("/settings")
def settings() -> dict[str, int]:
    """Returns how many units a request can have."""
    return {"control_net_unit_count": 4}


@router.post("/detect")
async def detect(request: Request, jobs: BlockingJobsDep) -> dict[str, Any]:
    """Makes control maps of images."""
    body = await read_json(request, DetectRequest, strict=False)
    if any(body.controlnet_masks):
        raise ParameterError("controlnet_masks", "Masks of control maps are not supported; leave them out")
    unit = Unit(
        module=body.controlnet_module,
        threshold_a=body.controlnet_threshold_a,
        threshold_b=body.controlnet_threshold_b,
    )
    images = []
    with web_ui_fields():
        card = await run_sync(jobs.submitter.model_card, await run_sync(chosen_model, jobs))
        kind = control_type("controlnet", unit, card)
        for index, text in enumerate(body.controlnet_input_images):
            image = parse_web_image(f"controlnet_input_images.{index}", text)
            map_request = validated(ControlMapRequest, {"image": image, "type": kind, "model": card.name})
            job = await jobs.start(map_request, part=index)
            [png] = await jobs.pngs(await jobs.end(job.id))
            images.append(await run_sync(encoded, png))
    return {"images": images, "info": "Success"}
