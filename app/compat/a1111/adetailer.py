"""The extension ADetailer of the web UI, as `refine` of `POST /img2img`."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from img2img.domain.refinements import MAX_PARTS, MAX_REFINEMENTS
from img2img.errors import ParameterError

from .neutral import EMPTY

ADETAILER = "adetailer"
# Starts of the names of detectors, and the words for what they detect.
DETECTORS = {
    "face": "face",
    "mediapipe_face": "face",
    "hand": "hand",
    "person": "person",
    "deepfashion": "clothes",
}
WORLD = "yolov8x-world"
# Arguments that ask for something that the detail pass does not have, with the values that ask for nothing.
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "ad_mask_min_ratio": (0,),
    "ad_mask_max_ratio": (1,),
    "ad_x_offset": (0,),
    "ad_y_offset": (0,),
    "ad_mask_merge_invert": ("None",),
    "ad_inpaint_only_masked": (True,),
    "ad_use_inpaint_width_height": (False,),
    "ad_use_cfg_scale": (False,),
    "ad_use_checkpoint": (False,),
    "ad_use_vae": (False,),
    "ad_use_sampler": (False,),
    "ad_use_noise_multiplier": (False,),
    "ad_use_clip_skip": (False,),
    "ad_restore_face": (False,),
    "ad_controlnet_model": ("None", "Passthrough"),
}
# Marks of the extension within prompts.
MARKS = ("[SEP]", "[SKIP]", "[PROMPT]")


class Detailer(BaseModel):
    """The arguments for one detector. Those that depend on another one that is off are ignored."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)

    ad_model: str
    ad_model_classes: str = ""
    ad_tab_enable: bool = True
    ad_prompt: str = ""
    ad_negative_prompt: str = ""
    ad_confidence: Annotated[float, Field(ge=0, le=1)] = 0.3
    ad_mask_filter_method: str = "Area"
    ad_mask_k: Annotated[int, Field(ge=0)] = 0
    # The older name of `ad_mask_k`.
    ad_mask_k_largest: Annotated[int, Field(ge=0)] = 0
    ad_dilate_erode: int = 4
    ad_mask_blur: int = 4
    ad_denoising_strength: Annotated[float, Field(ge=0, le=1)] = 0.4
    ad_inpaint_only_masked_padding: int = 32
    ad_use_steps: bool = False
    ad_steps: int = 28

    @property
    def is_on(self) -> bool:
        return self.ad_tab_enable and self.ad_model not in EMPTY and self.ad_denoising_strength > 0


def refinements_of(scripts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the entries of `refine` that the scripts of a request ask for.

    Raises:
        ParameterError: They ask for something that cannot be done.
    """
    refinements: list[dict[str, Any]] = []
    for name, script in scripts.items():
        if name.lower() != ADETAILER or not script:
            continue
        field = f"alwayson_scripts.{name}.args"
        # Whether the extension is on, and whether it skips image-to-image, come before the detectors.
        flags = [one for one in script.args or () if isinstance(one, bool)]
        if flags[:1] == [False]:
            continue
        if flags[1:2] == [True]:
            message = "Image-to-image cannot be skipped: give `denoising_strength` 0"
            raise ParameterError(f"{field}.1", message, got=True)
        for index, argument in enumerate(script.args or ()):
            if argument in EMPTY or isinstance(argument, bool):
                continue
            detailer = _parsed(f"{field}.{index}", argument)
            if detailer.is_on:
                refinements.append(_refinement(f"{field}.{index}", detailer))
        if len(refinements) > MAX_REFINEMENTS:
            raise ParameterError(field, f"At most {MAX_REFINEMENTS} detectors can run")
    return refinements


def _parsed(field: str, argument: Any) -> Detailer:
    try:
        return Detailer.model_validate({"ad_model": "None", **argument} if isinstance(argument, dict) else argument)
    except ValidationError as error:
        [first, *_] = error.errors()
        raise ParameterError(".".join(map(str, (field, *first["loc"]))), first["msg"]) from None


def _refinement(field: str, detailer: Detailer) -> dict[str, Any]:
    for name, value in (detailer.model_extra or {}).items():
        if name in NEUTRAL and value not in (None, *NEUTRAL[name]):
            raise ParameterError(f"{field}.{name}", "The detail pass does not support it; leave it out", got=value)
    for name in ("ad_prompt", "ad_negative_prompt"):
        if any(mark in getattr(detailer, name) for mark in MARKS):
            raise ParameterError(f"{field}.{name}", f"Marks such as {MARKS[0]} are not supported; leave them out")
    most = detailer.ad_mask_k or detailer.ad_mask_k_largest
    if most and detailer.ad_mask_filter_method != "Confidence":
        message = "The most certain parts are taken here, and not the largest: give Confidence, or `ad_mask_k` 0"
        raise ParameterError(f"{field}.ad_mask_filter_method", message, got=detailer.ad_mask_filter_method)
    return {
        "detect": _words(field, detailer),
        "strength": detailer.ad_denoising_strength,
        "prompt": detailer.ad_prompt or None,
        "negative_prompt": detailer.ad_negative_prompt or None,
        "num_inference_steps": detailer.ad_steps if detailer.ad_use_steps else None,
        "padding": detailer.ad_inpaint_only_masked_padding,
        "blur": detailer.ad_mask_blur,
        "grow": detailer.ad_dilate_erode,
        "threshold": min(max(detailer.ad_confidence, 0.01), 0.99),
        "max": min(most, MAX_PARTS) or MAX_PARTS,
    }


def _words(field: str, detailer: Detailer) -> str:
    """Return the words for what a detector detects."""
    name = detailer.ad_model.lower()
    if name.startswith(WORLD) and detailer.ad_model_classes:
        return detailer.ad_model_classes
    words = next((words for start, words in DETECTORS.items() if name.startswith(start)), None)
    if words is None:
        known = ", ".join((*DETECTORS, f"{WORLD}v2 with `ad_model_classes`"))
        raise ParameterError(f"{field}.ad_model", f"Input should start with one of: {known}", got=detailer.ad_model)
    return words
