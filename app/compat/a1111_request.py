"""The body of the AUTOMATIC1111 web UI's `/sdapi/v1/img2img`, and its conversion to a request of `POST /img2img`.

The types of fields exclude values that this service does not support, so they are refused. Fields about the server's
disk are accepted and ignored.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from img2img.domain.parameters import MAX_CLIP_SKIP, MAX_IMAGES, MAX_SEED, Resize, Scheduler
from img2img.errors import ParameterError

from ..imaging.decoder_share import DecoderShare
from ..schemas.request_fields import parse_image
from ..schemas.requests import Img2ImgRequest
from .mask_conversion import convert_mask
from .validation import validated

# By sampler and schedule. The web UI's automatic schedule of DPM++ 2M is Karras.
SAMPLERS: dict[tuple[str, str], Scheduler] = {
    ("DDIM", "automatic"): Scheduler.DDIM,
    ("PLMS", "automatic"): Scheduler.PNDM,
    ("LMS", "automatic"): Scheduler.LMS,
    ("Euler", "automatic"): Scheduler.EULER,
    ("Euler a", "automatic"): Scheduler.EULER_A,
    ("Heun", "automatic"): Scheduler.HEUN,
    ("DPM++ 2M", "automatic"): Scheduler.DPMPP_2M_KARRAS,
    ("DPM++ 2M", "karras"): Scheduler.DPMPP_2M_KARRAS,
    ("DPM++ 2M Karras", "automatic"): Scheduler.DPMPP_2M_KARRAS,
    ("DPM++ 2M", "uniform"): Scheduler.DPMPP_2M,
    ("DPM++ 2M SDE", "uniform"): Scheduler.DPMPP_2M_SDE,
    ("UniPC", "automatic"): Scheduler.UNIPC,
    ("LCM", "automatic"): Scheduler.LCM,
}
NAMES = {scheduler: name for (name, _), scheduler in reversed(SAMPLERS.items())}
RESIZES = {0: Resize.STRETCH, 1: Resize.CROP}
OFF = Literal[False] | None


class OverrideSettings(BaseModel):
    """The settings of the web UI that a request can override."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sd_model_checkpoint: str | None = None
    # Layer of the CLIP text encoder at which to stop, from the end: 1 is the last one.
    CLIP_stop_at_last_layers: Annotated[int, Field(ge=1, le=MAX_CLIP_SKIP + 1)] = 1


class WebUIRequest(BaseModel):
    """The body of `/sdapi/v1/img2img`."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    init_images: Annotated[list[str], Field(min_length=1, max_length=1)]
    mask: str | None = None
    prompt: str = ""
    negative_prompt: str = ""
    denoising_strength: Annotated[float, Field(ge=0, le=1)] = 0.75
    cfg_scale: Annotated[float, Field(ge=1)] = 7.0
    steps: Annotated[int, Field(ge=1, le=150)] = 50
    sampler_name: str | None = None
    # The older name of `sampler_name`.
    sampler_index: str | None = None
    scheduler: str | None = None
    seed: Annotated[int, Field(ge=-1, le=MAX_SEED)] = -1
    batch_size: Annotated[int, Field(ge=1)] = 1
    n_iter: Annotated[int, Field(ge=1)] = 1
    width: Annotated[int, Field(ge=1)] = 512
    height: Annotated[int, Field(ge=1)] = 512
    resize_mode: Literal[0, 1] = 0
    mask_blur: Annotated[int, Field(ge=0, le=256)] = 4
    inpainting_fill: Literal[0, 1] = 0
    inpaint_full_res: bool = True
    inpaint_full_res_padding: Annotated[int, Field(ge=0, le=4096)] = 0
    inpainting_mask_invert: Literal[0, 1] = 0
    include_init_images: bool = False
    send_images: bool = True
    # 0 and 1 are the defaults of the web UI's samplers.
    eta: Annotated[float, Field(ge=0, le=1)] | None = None
    override_settings: OverrideSettings = OverrideSettings()
    # Not supported. The accepted values have no effect.
    image_cfg_scale: float | None = None
    styles: Annotated[list[str], Field(max_length=0)] = []
    subseed: int = -1
    subseed_strength: Literal[0] = 0
    seed_resize_from_h: Annotated[int, Field(le=0)] = -1
    seed_resize_from_w: Annotated[int, Field(le=0)] = -1
    initial_noise_multiplier: Literal[1] | None = None
    restore_faces: OFF = None
    tiling: OFF = None
    s_churn: Literal[0] | None = None
    s_tmax: Literal[0] | None = None
    s_tmin: Literal[0] | None = None
    s_noise: Literal[1] | None = None
    script_name: Literal[""] | None = None
    script_args: Annotated[list[Any], Field(max_length=0)] = []
    alwayson_scripts: dict[str, Any] = {}
    # About the server's disk and settings; ignored.
    override_settings_restore_afterwards: bool = True
    do_not_save_samples: bool = False
    do_not_save_grid: bool = False
    save_images: bool = False


def to_request(body: WebUIRequest, decoders: DecoderShare) -> Img2ImgRequest:
    """Convert a request of the web UI. Raises ParameterError, ImageError or RequestValidationError."""
    for name, script in body.alwayson_scripts.items():
        if any(not _is_off(argument) for argument in (script or {}).get("args", [])):
            raise ParameterError(
                f"alwayson_scripts.{name}", "Scripts are not supported; `POST /img2img` has `controls`"
            )
    if body.batch_size * body.n_iter > MAX_IMAGES:
        raise ParameterError("n_iter", f"At most {MAX_IMAGES} images can be made by one request", got=body.n_iter)
    fields: dict[str, Any] = {
        "image": _parse_image("init_images.0", body.init_images[0]),
        "prompt": body.prompt,
        "negative_prompt": body.negative_prompt,
        "strength": body.denoising_strength,
        "guidance_scale": body.cfg_scale,
        "num_inference_steps": body.steps,
        "scheduler": _scheduler(body),
        "seed": None if body.seed == -1 else body.seed,
        "num_images": body.batch_size * body.n_iter,
        "width": body.width,
        "height": body.height,
        "resize": RESIZES[body.resize_mode],
        "model": body.override_settings.sd_model_checkpoint,
        "clip_skip": body.override_settings.CLIP_stop_at_last_layers - 1,
    }
    if body.eta and (body.eta < 1 or fields["scheduler"] is Scheduler.DDIM):
        fields["eta"] = body.eta
    if body.mask is not None:
        mask = _parse_image("mask", body.mask)
        image, mask = convert_mask(
            fields["image"],
            mask,
            None if body.inpaint_full_res else (body.width, body.height, RESIZES[body.resize_mode]),
            invert=bool(body.inpainting_mask_invert),
            fill=body.inpainting_fill == 0,
            decoders=decoders,
        )
        fields |= {"image": image, "mask": mask, "mask_blur": body.mask_blur, "resize": Resize.CROP}
        fields["mask_padding"] = body.inpaint_full_res_padding if body.inpaint_full_res else None
    return validated(Img2ImgRequest, fields)


def _is_off(argument: Any) -> bool:
    return argument in (False, None) or (isinstance(argument, dict) and not argument.get("enabled", True))


def _parse_image(name: str, text: str) -> bytes:
    try:
        return parse_image(text)
    except ValueError as error:
        raise ParameterError(name, str(error)) from None


def _scheduler(body: WebUIRequest) -> Scheduler | None:
    name = body.sampler_name or body.sampler_index
    if name is None:
        return None
    schedule = (body.scheduler or "automatic").lower()
    found = SAMPLERS.get((name, schedule))
    if found is None:
        known = ", ".join(f"{sampler} ({schedule})" for sampler, schedule in SAMPLERS)
        raise ParameterError(
            "sampler_name", f"With its schedule, input should be one of: {known}", f"{name} ({schedule})"
        )
    return found
