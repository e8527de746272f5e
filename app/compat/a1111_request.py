"""The body of AUTOMATIC1111's `/sdapi/v1/img2img`, and what it asks for in our words.

A value that this service cannot honour is not in the type of its field, and so refused; fields that only say what a
server does with its own disk are taken.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from img2img.domain.parameters import MAX_CLIP_SKIP, MAX_IMAGES, MAX_SEED, Resize, Scheduler
from img2img.errors import ParameterError

from ..imaging.sandbox_pool import DecoderPool
from ..schemas.requests import Img2ImgRequest, parse_image
from .mask_conversion import convert_mask
from .validation import validated

# (sampler, schedule) to ours. With the schedule left to it, the web UI runs DPM++ 2M on Karras' sigmas.
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
    sampler_index: str | None = None  # its older name
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
    # What cannot be asked for here. The values are those that ask for nothing.
    image_cfg_scale: float | None = None  # of instruction models, which have an endpoint of their own
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
    # What a server does with its own disk and settings.
    override_settings_restore_afterwards: bool = True
    do_not_save_samples: bool = False
    do_not_save_grid: bool = False
    save_images: bool = False


def to_request(asked: WebUIRequest, decoders: DecoderPool) -> Img2ImgRequest:
    """Our request for theirs. Raises ParameterError, PictureError or RequestValidationError."""
    for name, script in asked.alwayson_scripts.items():
        if any(not _is_off(argument) for argument in (script or {}).get("args", [])):
            raise ParameterError(
                f"alwayson_scripts.{name}", "There are no scripts here; `POST /img2img` has `controls`"
            )
    if asked.batch_size * asked.n_iter > MAX_IMAGES:
        raise ParameterError("n_iter", f"At most {MAX_IMAGES} pictures come of one request", got=asked.n_iter)
    fields: dict[str, Any] = {
        "image": _picture("init_images.0", asked.init_images[0]),
        "prompt": asked.prompt,
        "negative_prompt": asked.negative_prompt,
        "strength": asked.denoising_strength,
        "guidance_scale": asked.cfg_scale,
        "num_inference_steps": asked.steps,
        "scheduler": _scheduler(asked),
        "seed": None if asked.seed == -1 else asked.seed,
        "num_images": asked.batch_size * asked.n_iter,
        "width": asked.width,
        "height": asked.height,
        "resize": RESIZES[asked.resize_mode],
        "model": asked.override_settings.sd_model_checkpoint,
        "clip_skip": asked.override_settings.CLIP_stop_at_last_layers - 1,
    }
    if asked.eta and (asked.eta < 1 or fields["scheduler"] is Scheduler.DDIM):
        fields["eta"] = asked.eta
    if asked.mask is not None:
        mask = _picture("mask", asked.mask)
        image, painted = convert_mask(
            fields["image"],
            mask,
            None if asked.inpaint_full_res else (asked.width, asked.height, RESIZES[asked.resize_mode]),
            invert=bool(asked.inpainting_mask_invert),
            fill=asked.inpainting_fill == 0,
            decoders=decoders,
        )
        fields |= {"image": image, "mask": painted, "mask_blur": asked.mask_blur, "resize": Resize.CROP}
        fields["mask_padding"] = asked.inpaint_full_res_padding if asked.inpaint_full_res else None
    return validated(Img2ImgRequest, fields)


def _is_off(argument: Any) -> bool:
    return argument in (False, None) or (isinstance(argument, dict) and not argument.get("enabled", True))


def _picture(name: str, text: str) -> bytes:
    try:
        return parse_image(text)
    except ValueError as error:
        raise ParameterError(name, str(error)) from None


def _scheduler(asked: WebUIRequest) -> Scheduler | None:
    name = asked.sampler_name or asked.sampler_index
    if name is None:
        return None
    schedule = (asked.scheduler or "automatic").lower()
    found = SAMPLERS.get((name, schedule))
    if found is None:
        known = ", ".join(f"{sampler} ({schedule})" for sampler, schedule in SAMPLERS)
        raise ParameterError(
            "sampler_name", f"With its schedule, input should be one of: {known}", f"{name} ({schedule})"
        )
    return found
