"""The body of the AUTOMATIC1111 web UI's `/sdapi/v1/img2img`, and its conversion to a request of `POST /img2img`.

Fields that are null or empty count as not given. Fields that this service does not have are accepted if their value
asks for nothing, and refused by name otherwise: see `neutral`.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from img2img.domain.conditioning import MAX_LORAS, MaskContent
from img2img.domain.model_card import ModelCard
from img2img.domain.parameters import (
    MAX_CLIP_SKIP,
    MAX_IMAGES,
    MAX_SEED,
    NOISY_SCHEDULERS,
    Resize,
    Scheduler,
    Task,
    Text,
    WeightingMethod,
)
from img2img.errors import ParameterError

from ...backends.decoder_share import DecoderShare
from ...http.request_body import validated
from ...schemas.requests import Img2ImgRequest
from .adetailer import refinements_of
from .always_on_scripts import Script, script_fields
from .controlnet_units import Unit, convert_units
from .images import fill_borders, parse_web_image
from .masks import convert_mask
from .neutral import check_unknown
from .prompt import parse_prompt
from .samplers import find_scheduler
from .scripts import check_scripts, units_of, upscale_of

# Resize and fill is like crop once its borders are filled; the latent upscale is refused if it resizes.
RESIZES = {0: Resize.STRETCH, 1: Resize.CROP, 2: Resize.CROP, 3: Resize.STRETCH}
FILL_BORDERS, LATENT_UPSCALE = 2, 3
# Prompts of an entry of `refine`.
PROMPTS = ("prompt", "negative_prompt")
# Masked content besides the colours around the mask.
CONTENTS = {0: MaskContent.ORIGINAL, 1: MaskContent.ORIGINAL, 2: MaskContent.NOISE, 3: MaskContent.NOTHING}
# Options that only concern the server's disk or the web UI.
IGNORED_OPTIONS = frozenset(
    ("samples_save", "samples_format", "grid_save", "save_images_add_number", "eta_noise_seed_delta")
)


class WebUIModel(BaseModel):
    """Takes null and empty text for any field as not given, as clients mean it."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _without_empty(cls, fields: Any) -> Any:
        if not isinstance(fields, dict):
            return fields
        return {name: value for name, value in fields.items() if value is not None and value != ""}

    @property
    def unknown(self) -> Mapping[str, Any]:
        """The fields that this service does not have."""
        return self.model_extra or {}


class OverrideSettings(WebUIModel):
    """The settings of the web UI that a request can override."""

    sd_model_checkpoint: str | None = None
    # Layer of the CLIP text encoder at which to stop, from the end: 1 is the last one.
    CLIP_stop_at_last_layers: Annotated[int, Field(ge=1, le=MAX_CLIP_SKIP + 1)] = 1
    sd_vae: str | None = None
    img2img_fix_steps: bool = False


class WebUIRequest(WebUIModel):
    """The body of `/sdapi/v1/img2img`."""

    init_images: Annotated[list[str], Field(min_length=1, max_length=1)]
    mask: str | None = None
    prompt: Text = ""
    negative_prompt: Text = ""
    # Whether to leave out what the prompt names by tags.
    disable_extra_networks: bool = False
    denoising_strength: Annotated[float, Field(ge=0, le=1)] = 0.75
    cfg_scale: Annotated[float, Field(ge=1)] = 7.0
    image_cfg_scale: Annotated[float, Field(ge=0)] | None = None
    steps: Annotated[int, Field(ge=1, le=150)] = 50
    sampler_name: str | None = None
    # The older name of `sampler_name`.
    sampler_index: str | None = None
    scheduler: str | None = None
    seed: Annotated[int, Field(ge=-1, le=MAX_SEED)] = -1
    subseed: Annotated[int, Field(ge=-1, le=MAX_SEED)] = -1
    subseed_strength: Annotated[float, Field(ge=0, le=1)] = 0.0
    tiling: bool = False
    batch_size: Annotated[int, Field(ge=1)] = 1
    n_iter: Annotated[int, Field(ge=1)] = 1
    # Not the web UI's default, 512, which is not a size of every model.
    width: Annotated[int, Field(ge=1)] | None = None
    height: Annotated[int, Field(ge=1)] | None = None
    resize_mode: Literal[0, 1, 2, 3] = 0
    # Sets both of the others.
    mask_blur: Annotated[int, Field(ge=0, le=256)] | None = None
    mask_blur_x: Annotated[int, Field(ge=0, le=256)] = 4
    mask_blur_y: Annotated[int, Field(ge=0, le=256)] = 4
    # Whether grey of a mask is rounded to black and white. Soft inpainting never does.
    mask_round: bool = True
    inpainting_fill: Literal[0, 1, 2, 3] = 0
    inpaint_full_res: bool = True
    inpaint_full_res_padding: Annotated[int, Field(ge=0, le=4096)] = 0
    inpainting_mask_invert: Annotated[int, Field(ge=0, le=1)] = 0
    include_init_images: bool = False
    send_images: bool = True
    # 0 and 1 are the defaults of the web UI's samplers.
    eta: Annotated[float, Field(ge=0, le=1)] | None = None
    s_noise: Annotated[float, Field(ge=0)] | None = None
    clip_skip: Annotated[int, Field(ge=0, le=MAX_CLIP_SKIP + 1)] | None = None
    override_settings: OverrideSettings = OverrideSettings()
    script_name: str | None = None
    script_args: list[Any] = []
    alwayson_scripts: dict[str, Script | None] = {}
    # Of `/controlnet/img2img`.
    controlnet_units: list[Unit] = []

    def without_images(self) -> Self:
        """Return the request without its images, which take the most memory."""
        return self.model_copy(update={"init_images": [], "mask": None, "alwayson_scripts": {}, "controlnet_units": []})

    @property
    def model(self) -> str | None:
        """The model that the request names."""
        return self.override_settings.sd_model_checkpoint or None


def to_request(body: WebUIRequest, card: ModelCard, decoders: DecoderShare) -> Img2ImgRequest:
    """Convert a request of the web UI for a model.

    Raises:
        ParameterError, ImageError, RequestValidationError: The request cannot be served.
    """
    check_unknown(body.unknown)
    _check_options(body.override_settings)
    check_scripts(body.alwayson_scripts)
    if body.batch_size * body.n_iter > MAX_IMAGES:
        raise ParameterError("n_iter", f"At most {MAX_IMAGES} images can be made by one request", got=body.n_iter)
    scheduler, sigmas = find_scheduler(body.sampler_name or body.sampler_index, body.scheduler, card)
    _check_noise(body, scheduler)
    scripts = script_fields(body.alwayson_scripts, is_masked=bool(body.mask))
    is_soft = scripts.get("soft_inpainting", False)
    if not body.mask_round and not is_soft:
        message = "Grey of a mask is rounded except by the script `Soft inpainting`: input should be true or absent"
        raise ParameterError("mask_round", message, got=False)
    upscale = upscale_of(body.script_name, body.script_args, card)
    image = parse_web_image("init_images.0", body.init_images[0])
    refine = refinements_of(body.alwayson_scripts)
    fields: dict[str, Any] = {
        **_prompts(body, refine),
        **_variation(body),
        **scripts,
        "strength": body.denoising_strength,
        "guidance_scale": body.cfg_scale,
        "num_inference_steps": body.steps,
        "scheduler": scheduler,
        "sigmas": sigmas,
        "seed": body.seed,
        "seamless_tiling": body.tiling,
        "num_images": body.batch_size * body.n_iter,
        "model": card.name,
        "clip_skip": _clip_skip(body),
        "exact_steps": body.override_settings.img2img_fix_steps and body.denoising_strength > 0,
    }
    if card.prompt_weighting:
        fields["weighting_method"] = WeightingMethod.A1111
    if body.eta and (body.eta < 1 or scheduler is Scheduler.DDIM):
        fields["eta"] = body.eta
    units = (*body.controlnet_units, *units_of(body.alwayson_scripts))
    resize = RESIZES[body.resize_mode]
    fields |= convert_units(units, card, (body.width, body.height, resize), decoders)
    if upscale:
        return validated(Img2ImgRequest, {**fields, **_upscale(body, card, upscale), "image": image})
    fields |= {"width": body.width, "height": body.height, "resize": resize}
    if Task.EDIT in card.tasks and Task.IMG2IMG not in card.tasks and not body.mask:
        fields |= _edit(body, fields)
    elif body.image_cfg_scale is not None and body.image_cfg_scale not in (0, 1, 1.5):
        message = f"The model {card.name} takes no guidance by the image; leave it out"
        raise ParameterError("image_cfg_scale", message, got=body.image_cfg_scale)
    if body.mask:
        return validated(Img2ImgRequest, {**fields, **_masked(body, image, resize, decoders, is_soft=is_soft)})
    return validated(Img2ImgRequest, {**fields, "image": _resized(body, image, decoders)})


def _check_options(options: OverrideSettings) -> None:
    unknown = {name: value for name, value in options.unknown.items() if name not in IGNORED_OPTIONS}
    check_unknown(unknown, "override_settings.")
    if options.sd_vae not in (None, "None", "Automatic"):
        message = "A model has its VAE; leave it out, or give Automatic"
        raise ParameterError("override_settings.sd_vae", message, got=options.sd_vae)


def _variation(body: WebUIRequest) -> dict[str, Any]:
    """Return the fields of a variation. A seed of it without a strength asks for nothing, as in the web UI."""
    if not body.subseed_strength:
        return {}
    return {"subseed": body.subseed, "subseed_strength": body.subseed_strength}


def _check_noise(body: WebUIRequest, scheduler: Scheduler | None) -> None:
    if body.s_noise in (None, 1):
        return
    if body.s_noise != 0 or scheduler is None or scheduler in NOISY_SCHEDULERS:
        message = "The noise of a sampler cannot be scaled: input should be 1 or absent"
        raise ParameterError("s_noise", message, got=body.s_noise)


def _clip_skip(body: WebUIRequest) -> int:
    """Return the number of skipped layers. Clients send it as a field, as an option, or as both."""
    given = {body.clip_skip or 1, body.override_settings.CLIP_stop_at_last_layers}
    if len(given - {1}) > 1:
        message = "It differs from `clip_skip`; leave one of the two out"
        field = "override_settings.CLIP_stop_at_last_layers"
        raise ParameterError(field, message, got=body.override_settings.CLIP_stop_at_last_layers)
    return max(given) - 1


def _edit(body: WebUIRequest, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of an edit by instruction: the prompt is the instruction, as in the web UI."""
    scale = body.image_cfg_scale
    return {
        "instruction": fields["prompt"] or None,
        "prompt": "",
        # Full strength, which an edit has.
        "strength": None,
        "image_guidance_scale": scale if scale and scale >= 1 else None,
    }


def _upscale(body: WebUIRequest, card: ModelCard, factor: int) -> dict[str, Any]:
    """Return the fields of the script `sd upscale`. Super-resolution models start from noise, without a strength."""
    if body.mask:
        raise ParameterError("mask", "The script `sd upscale` takes no mask")
    strength = {} if card.upscaler(factor) is None else {"strength": None}
    return {"upscale": factor, **strength}


def _masked(
    body: WebUIRequest, image: bytes, resize: Resize, decoders: DecoderShare, *, is_soft: bool
) -> dict[str, Any]:
    assert body.mask is not None
    converted, mask = convert_mask(
        image if body.inpaint_full_res else _resized(body, image, decoders),
        parse_web_image("mask", body.mask),
        None if body.inpaint_full_res else (body.width, body.height, resize),
        invert=bool(body.inpainting_mask_invert),
        fill=body.inpainting_fill == 0,
        is_soft=is_soft,
        decoders=decoders,
    )
    return {
        "image": converted,
        "mask": mask,
        "mask_blur": _mask_blur(body),
        "mask_content": CONTENTS[body.inpainting_fill],
        "mask_padding": body.inpaint_full_res_padding if body.inpaint_full_res else None,
        "resize": Resize.CROP,
    }


def _resized(body: WebUIRequest, image: bytes, decoders: DecoderShare) -> bytes:
    """Return the image, with filled borders in the mode `Resize and fill`."""
    if body.resize_mode not in (FILL_BORDERS, LATENT_UPSCALE):
        return image
    with decoders.open(image) as opened:
        size = (body.width or opened.size[0], body.height or opened.size[1])
        if size == opened.size:
            return image
        if body.resize_mode == LATENT_UPSCALE:
            message = "Latents cannot be resized: give the image in the size of the result, or another mode"
            raise ParameterError("resize_mode", message, got=body.resize_mode)
        return fill_borders(opened, size)


def _prompts(body: WebUIRequest, refine: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the fields of all prompts. A model without weights or LoRAs refuses them later.

    Args:
        refine: The entries of the detail pass, with their prompts as the web UI has them.
    """
    prompt = parse_prompt("prompt", body.prompt)
    negative = parse_prompt("negative_prompt", body.negative_prompt)
    parts = [
        {name: parse_prompt(f"alwayson_scripts.ADetailer.{name}", entry[name]) for name in PROMPTS if entry[name]}
        for entry in refine
    ]
    others = [parsed for entry in parts for parsed in entry.values()]
    if any(parsed.loras for parsed in others):
        raise ParameterError("alwayson_scripts.ADetailer", "LoRA tags belong into `prompt`")
    if negative.loras:
        raise ParameterError("negative_prompt", "LoRA tags belong into `prompt`", got=body.negative_prompt)
    if len(prompt.loras) > MAX_LORAS:
        raise ParameterError("prompt", f"At most {MAX_LORAS} LoRAs can be applied", got=body.prompt)
    is_weighted = any(parsed.is_weighted for parsed in (prompt, negative, *others))
    loras = () if body.disable_extra_networks else prompt.loras
    no_negative = {"negative_prompt": None} if body.cfg_scale == 1 else {}
    return {
        "prompt": prompt.text(weighted=is_weighted),
        # Without guidance, in the web UI too, a negative prompt has no effect.
        "negative_prompt": "" if body.cfg_scale == 1 else negative.text(weighted=is_weighted),
        "prompt_weighting": is_weighted,
        "loras": [{"name": name, "scale": scale} for name, scale in loras],
        "refine": [
            {**entry, **{name: one.text(weighted=is_weighted) for name, one in parsed.items()}, **no_negative}
            for entry, parsed in zip(refine, parts, strict=True)
        ],
    }


def _mask_blur(body: WebUIRequest) -> int:
    if body.mask_blur is not None:
        return body.mask_blur
    if body.mask_blur_x != body.mask_blur_y:
        message = "The blur is the same in both directions: input should equal `mask_blur_x`"
        raise ParameterError("mask_blur_y", message, got=body.mask_blur_y)
    return body.mask_blur_x
