"""Units of the ControlNet extension of the web UI, as `controls` and `image_prompts` of `POST /img2img`."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from img2img.domain.conditioning import ControlType
from img2img.domain.model_card import ModelCard
from img2img.domain.parameters import Resize
from img2img.errors import ParameterError
from img2img.imaging.decode import encode_png

from ...backends.decoder_share import DecoderShare
from ...submission.image_reader import error_field
from .images import parse_web_image

# Names of nothing.
NONE = ("", "none", "None", None)
# Starts of the extension's names of preprocessors, and words in file names of ControlNets. The first match counts.
KINDS: Mapping[str, ControlType] = {
    "canny": ControlType.CANNY,
    "depth": ControlType.DEPTH,
    "normal": ControlType.NORMAL,
    "openpose": ControlType.POSE,
    "dw_openpose": ControlType.POSE,
    "animal_openpose": ControlType.POSE,
    "densepose": ControlType.POSE,
    "pose": ControlType.POSE,
    "mlsd": ControlType.MLSD,
    "lineart": ControlType.LINEART,
    "softedge": ControlType.SOFTEDGE,
    "fake_scribble": ControlType.SCRIBBLE,
    "scribble": ControlType.SCRIBBLE,
    "hed": ControlType.SOFTEDGE,
    "pidinet": ControlType.SOFTEDGE,
    "segmentation": ControlType.SEGMENTATION,
    "seg": ControlType.SEGMENTATION,
    "oneformer": ControlType.SEGMENTATION,
    "shuffle": ControlType.SHUFFLE,
    "tile": ControlType.TILE,
    "ip2p": ControlType.IP2P,
    "blur": ControlType.BLUR,
    "gray": ControlType.GRAY,
    "recolor": ControlType.GRAY,
}
# Thresholds of our preprocessors. Others have none.
THRESHOLDS: Mapping[str, tuple[float, float]] = {ControlType.CANNY: (100, 200)}
# Values that clients send for the extension's default.
DEFAULT_THRESHOLDS = (None, -1, 0, 64)
RESIZES = {
    "just resize": Resize.STRETCH,
    "crop and resize": Resize.CROP,
    "scale to fit (inner fit)": Resize.CROP,
    "inner fit (scale to fit)": Resize.CROP,
    "resize and fill": Resize.PAD,
    "envelope (outer fit)": Resize.PAD,
    "outer fit (shrink to fit)": Resize.PAD,
    "0": Resize.STRETCH,
    "1": Resize.CROP,
    "2": Resize.PAD,
}
# Control modes: whether the controls are more important than the prompt.
CONTROL_MODES = {"balanced": False, "0": False, "controlnet is more important": True, "2": True}


def _as_text(value: Any) -> Any:
    return str(value) if isinstance(value, int | float) else value


class Unit(BaseModel):
    """A unit of the extension. Fields that only its user interface has are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    enabled: bool = True
    image: Annotated[str | None, Field(validation_alias=AliasChoices("image", "input_image"))] = None
    mask: Annotated[str | None, Field(validation_alias=AliasChoices("mask", "mask_image", "effective_region_mask"))] = (
        None
    )
    module: str | None = None
    model: str | None = None
    weight: Annotated[float, Field(ge=0, le=2)] = 1.0
    guidance_start: Annotated[float, Field(ge=0, le=1)] = 0.0
    guidance_end: Annotated[float, Field(ge=0, le=1)] = 1.0
    # Older names of the end of the guidance and of the control mode.
    guidance: Annotated[float, Field(ge=0, le=1)] = 1.0
    guessmode: bool = False
    control_mode: Annotated[str, BeforeValidator(_as_text)] = "Balanced"
    resize_mode: Annotated[str, BeforeValidator(_as_text)] = "Crop and Resize"
    threshold_a: float | None = None
    threshold_b: float | None = None

    @model_validator(mode="before")
    @classmethod
    def _normalized(cls, fields: Any) -> Any:
        """Leave out null, and take an image with its mask apart."""
        if not isinstance(fields, dict):
            return fields
        given = {name: value for name, value in fields.items() if value is not None}
        for name in ("image", "input_image"):
            if isinstance(given.get(name), dict):
                pair = given.pop(name)
                given |= {key: pair[key] for key in ("image", "mask") if pair.get(key)}
        return given


def convert_units(
    units: Sequence[Unit], card: ModelCard, size: tuple[int | None, int | None, Resize], decoders: DecoderShare
) -> dict[str, Any]:
    """Return the fields for the units that are on.

    Args:
        size: Width and height of the result, where they are given, and how its image is resized.

    Raises:
        ParameterError, ImageError: A unit asks for something that cannot be done.
    """
    controls: list[dict[str, Any]] = []
    modes: list[bool] = []
    prompts: list[dict[str, Any]] = []
    for index, unit in enumerate(units):
        if not unit.enabled:
            continue
        field = f"controlnet.{index}"
        _check(field, unit)
        image = {"image": _image(field, unit, size, decoders)} if unit.image else {}
        if (unit.module or "").startswith(("ip-adapter", "ip_adapter")) or "ip-adapter" in (unit.model or ""):
            prompts.append({**_image_prompt(field, unit), **image})
            continue
        end = min(unit.guidance_end, unit.guidance)
        kind = control_type(field, unit, card)
        weight = {"scale": unit.weight, "start": unit.guidance_start, "end": end}
        modes.append(unit.guessmode or CONTROL_MODES[unit.control_mode.lower()])
        if modes[-1] is not modes[0]:
            message = "All units of a request have the same control mode here: give that of the first unit"
            raise ParameterError(f"{field}.control_mode", message, got=unit.control_mode)
        controls.append({"type": kind, "preprocess": unit.module not in NONE, **weight, **image})
    return {"controls": controls, "image_prompts": prompts, "guess_mode": any(modes)}


def _check(field: str, unit: Unit) -> None:
    if unit.mask not in NONE:
        raise ParameterError(f"{field}.mask", "Masks of single units are not supported; leave it out")
    if unit.guidance_start >= min(unit.guidance_end, unit.guidance):
        message = "Input should be more than `guidance_start`"
        raise ParameterError(f"{field}.guidance_end", message, got=min(unit.guidance_end, unit.guidance))
    if unit.control_mode.lower() not in CONTROL_MODES:
        message = "Input should be Balanced or ControlNet is more important; for the prompt, give a lower `weight`"
        raise ParameterError(f"{field}.control_mode", message, got=unit.control_mode)
    if unit.resize_mode.lower() not in RESIZES:
        message = "Input should be one of: Just Resize, Crop and Resize, Resize and Fill"
        raise ParameterError(f"{field}.resize_mode", message, got=unit.resize_mode)
    fixed = THRESHOLDS.get(kind_of(unit.module) or "", ())
    for name, given, own in zip(
        ("threshold_a", "threshold_b"), (unit.threshold_a, unit.threshold_b), fixed, strict=False
    ):
        if given not in (*DEFAULT_THRESHOLDS, own):
            message = f"It is {own:g} here. For another one, make the map and send it with the module `none`"
            raise ParameterError(f"{field}.{name}", message, got=given)


def _image_prompt(field: str, unit: Unit) -> dict[str, Any]:
    if (unit.guidance_start, unit.guidance_end) != (0, 1):
        message = "Image prompts act in all steps: input should be 0 to 1"
        raise ParameterError(f"{field}.guidance_start", message, got=unit.guidance_start)
    if not unit.image:
        raise ParameterError(f"{field}.image", "Field required")
    return {"scale": unit.weight}


def _image(field: str, unit: Unit, size: tuple[int | None, int | None, Resize], decoders: DecoderShare) -> bytes:
    """Return the image of a unit, resized as the unit says if that differs from the request."""
    assert unit.image is not None
    image = parse_web_image(f"{field}.image", unit.image)
    width, height, request_resize = size
    resize = RESIZES[unit.resize_mode.lower()]
    if width is None or height is None or resize is request_resize:
        return image
    with error_field(f"{field}.image"), decoders.open(image) as opened:
        if opened.size == (width, height):
            return image
        return encode_png(opened.fit(width, height, resize, is_map=unit.module in NONE))


def control_type(field: str, unit: Unit, card: ModelCard) -> str:
    """Return the control type of a unit: of its model, or else of its preprocessor. Raises ParameterError."""
    made = kind_of(unit.module, card.preprocessors)
    if unit.module not in NONE and made is None:
        known = ", ".join(("none", *card.preprocessors))
        raise ParameterError(f"{field}.module", f"Input should be one of: {known}", got=unit.module)
    wanted = kind_of(unit.model, card.controls)
    if wanted is None and unit.model not in NONE:
        known = ", ".join(card.controls) or "absent: the model has no ControlNet"
        raise ParameterError(f"{field}.model", f"Input should be one of: {known}", got=unit.model)
    if wanted and made and wanted != made:
        message = f"This preprocessor makes {made} maps, and the ControlNet is for {wanted} maps"
        raise ParameterError(f"{field}.module", message, got=unit.module)
    if wanted is None and made is None:
        known = ", ".join(card.controls) or "none: the model has no ControlNet"
        raise ParameterError(f"{field}.model", f"Field required; there are: {known}")
    return wanted or made or ""


def kind_of(name: str | None, known: Iterable[str] = ()) -> str | None:
    """Return the control type of a preprocessor or a ControlNet by its name in the web UI; None if it has none."""
    if name in NONE:
        return None
    assert name is not None
    # File names end with a hash: `control_v11p_sd15_canny [d14c016b]`.
    plain = re.sub(r"\s*\[[0-9a-f]*\]$", "", name.strip()).lower()
    if plain in known:
        return plain
    return next((kind for word, kind in KINDS.items() if re.search(rf"(^|[_ .-]){re.escape(word)}", plain)), None)
