"""The body of the AUTOMATIC1111 web UI's `/sdapi/v1/img2img`, and its conversion to a request of `POST /img2img`.

The types of fields exclude values that this service does not support, so they are refused. Values that ask for nothing,
such as defaults and null, are accepted. Fields about the server's disk are accepted and ignored.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from img2img.domain.conditioning import MAX_LORAS
from img2img.domain.parameters import MAX_CLIP_SKIP, MAX_IMAGES, MAX_SEED, NOISY_SCHEDULERS, Resize, Scheduler, Text
from img2img.errors import ParameterError

from ..http.request_body import validated
from ..imaging.decoder_share import DecoderShare
from ..schemas.request_fields import parse_image
from ..schemas.requests import Img2ImgRequest
from .a1111_prompt import parse_prompt
from .a1111_samplers import find_scheduler
from .mask_conversion import convert_mask

RESIZES = {0: Resize.STRETCH, 1: Resize.CROP}
OFF = Literal[False] | None
# Names of nothing.
NOTHING = ("", "None", None)
Nothing = Annotated[None, BeforeValidator(lambda value: None if value in NOTHING else value)]


class _WebUIModel(BaseModel):
    """Takes null for any field as not given, as the web UI does."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _without_null(cls, fields: Any) -> Any:
        if not isinstance(fields, dict):
            return fields
        return {name: value for name, value in fields.items() if value is not None}


class OverrideSettings(_WebUIModel):
    """The settings of the web UI that a request can override."""

    sd_model_checkpoint: str | None = None
    # Layer of the CLIP text encoder at which to stop, from the end: 1 is the last one.
    CLIP_stop_at_last_layers: Annotated[int, Field(ge=1, le=MAX_CLIP_SKIP + 1)] = 1


class Script(_WebUIModel):
    """The arguments of an extension."""

    args: list[Any] = []


class WebUIRequest(_WebUIModel):
    """The body of `/sdapi/v1/img2img`."""

    init_images: Annotated[list[str], Field(min_length=1, max_length=1)]
    mask: str | None = None
    prompt: Text = ""
    negative_prompt: Text = ""
    # Whether to leave out the LoRAs that the prompt names by tags.
    disable_extra_networks: bool = False
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
    # Not the web UI's default, 512, which is not a size of every model.
    width: Annotated[int, Field(ge=1)] | None = None
    height: Annotated[int, Field(ge=1)] | None = None
    resize_mode: Literal[0, 1] = 0
    # Sets both of the others.
    mask_blur: Annotated[int, Field(ge=0, le=256)] | None = None
    mask_blur_x: Annotated[int, Field(ge=0, le=256)] = 4
    mask_blur_y: Annotated[int, Field(ge=0, le=256)] = 4
    # Whether grey of a mask is rounded to black and white.
    mask_round: Literal[True] = True
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
    s_min_uncond: Literal[0] | None = None
    s_churn: Literal[0] | None = None
    # Only together with `s_churn`.
    s_tmax: float | None = None
    s_tmin: float | None = None
    s_noise: Literal[0, 1] | None = None
    refiner_checkpoint: Nothing = None
    # Only together with `refiner_checkpoint`.
    refiner_switch_at: float | None = None
    firstpass_image: Nothing = None
    latent_mask: Nothing = None
    infotext: Nothing = None
    comments: Annotated[dict[str, Any], Field(max_length=0)] = {}
    force_task_id: str | None = None
    script_name: Nothing = None
    # Only together with `script_name`.
    script_args: list[Any] = []
    alwayson_scripts: dict[str, Script | None] = {}
    # About the server's disk and settings; ignored.
    override_settings_restore_afterwards: bool = True
    do_not_save_samples: bool = False
    do_not_save_grid: bool = False
    save_images: bool = False

    def without_images(self) -> Self:
        """Return the request without its images, which take the most memory."""
        return self.model_copy(update={"init_images": [], "mask": None})


def to_request(body: WebUIRequest, decoders: DecoderShare) -> Img2ImgRequest:
    """Convert a request of the web UI. Raises ParameterError, ImageError or RequestValidationError."""
    for name, script in body.alwayson_scripts.items():
        if script and not all(map(_is_off, script.args)):
            raise ParameterError(
                f"alwayson_scripts.{name}", "Scripts are not supported; `POST /img2img` has `controls`"
            )
    if body.batch_size * body.n_iter > MAX_IMAGES:
        raise ParameterError("n_iter", f"At most {MAX_IMAGES} images can be made by one request", got=body.n_iter)
    scheduler = find_scheduler(body.sampler_name or body.sampler_index, body.scheduler)
    if body.s_noise == 0 and (scheduler is None or scheduler in NOISY_SCHEDULERS):
        raise ParameterError("s_noise", "Input should be 1 or absent with a sampler that adds noise", got=0)
    fields: dict[str, Any] = {
        **_prompts(body),
        "image": _parse_image("init_images.0", body.init_images[0]),
        "strength": body.denoising_strength,
        "guidance_scale": body.cfg_scale,
        "num_inference_steps": body.steps,
        "scheduler": scheduler,
        "seed": body.seed,
        "num_images": body.batch_size * body.n_iter,
        "width": body.width,
        "height": body.height,
        "resize": RESIZES[body.resize_mode],
        "model": body.override_settings.sd_model_checkpoint or None,
        "clip_skip": body.override_settings.CLIP_stop_at_last_layers - 1,
    }
    if body.eta and (body.eta < 1 or scheduler is Scheduler.DDIM):
        fields["eta"] = body.eta
    if body.mask:
        image, mask = convert_mask(
            fields["image"],
            _parse_image("mask", body.mask),
            None if body.inpaint_full_res else (body.width, body.height, RESIZES[body.resize_mode]),
            invert=bool(body.inpainting_mask_invert),
            fill=body.inpainting_fill == 0,
            decoders=decoders,
        )
        fields |= {"image": image, "mask": mask, "mask_blur": _mask_blur(body), "resize": Resize.CROP}
        fields["mask_padding"] = body.inpaint_full_res_padding if body.inpaint_full_res else None
    return validated(Img2ImgRequest, fields)


def _prompts(body: WebUIRequest) -> dict[str, Any]:
    """Return the fields of both prompts. A model without weights or LoRAs refuses them later."""
    prompt = parse_prompt("prompt", body.prompt)
    negative = parse_prompt("negative_prompt", body.negative_prompt)
    if negative.loras:
        raise ParameterError("negative_prompt", "LoRA tags belong into `prompt`", got=body.negative_prompt)
    if len(prompt.loras) > MAX_LORAS:
        raise ParameterError("prompt", f"At most {MAX_LORAS} LoRAs can be applied", got=body.prompt)
    if prompt.is_weighted != negative.is_weighted:
        unweighted = negative if prompt.is_weighted else prompt
        if any(bracket in unweighted.text for bracket in "()"):
            raise ParameterError("prompt", "Brackets as characters cannot be combined with weights", got=body.prompt)
    loras = () if body.disable_extra_networks else prompt.loras
    return {
        "prompt": prompt.text,
        "negative_prompt": negative.text,
        "prompt_weighting": prompt.is_weighted or negative.is_weighted,
        "loras": [{"name": name, "scale": scale} for name, scale in loras],
    }


def _is_off(argument: Any) -> bool:
    if isinstance(argument, dict):
        return not argument or not argument.get("enabled", True) or argument.get("ad_model") == "None"
    return argument in (False, *NOTHING)


def _mask_blur(body: WebUIRequest) -> int:
    if body.mask_blur is not None:
        return body.mask_blur
    if body.mask_blur_x != body.mask_blur_y:
        message = "The blur is the same in both directions: input should equal `mask_blur_x`"
        raise ParameterError("mask_blur_y", message, got=body.mask_blur_y)
    return body.mask_blur_x


def _parse_image(name: str, text: str) -> bytes:
    try:
        return parse_image(text)
    except ValueError as error:
        raise ParameterError(name, str(error)) from None
