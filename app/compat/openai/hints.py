"""Fields of an edit that ask OpenAI's models for something: the ones that are applied here, and the others."""

from collections.abc import Mapping
from typing import Any

from img2img.domain.model_card import ModelCard
from img2img.domain.parameters import MAX_STEPS, Task
from img2img.errors import ParameterError

from ...progress.image_formats import NO_ALPHA
from ...schemas.responses import ImageFormat
from .requests import Edit

# Denoising steps, relative to the model's default.
STEPS = {"low": 0.5, "high": 1.5, "hd": 1.5}
# Of `input_fidelity=high`. The defaults are 0.8 and 1.5.
FAITHFUL_STRENGTH = 0.6
FAITHFUL_IMAGE_GUIDANCE = 2.0


def hinted_fields(body: Edit, fields: Mapping[str, Any], card: ModelCard) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the fields of `POST /img2img` that follow from hints, and the hints that are not applied, with reasons.

    Args:
        fields: The fields of the request so far. They take precedence.
    """
    more: dict[str, Any] = {}
    reasons: dict[str, str] = {}
    if body.quality in STEPS:
        if "num_inference_steps" in fields:
            reasons["quality"] = "`num_inference_steps` is given"
        elif not card.guidance:
            reasons["quality"] = f"{card.name} is made for {card.default_steps} steps"
        else:
            more["num_inference_steps"] = min(MAX_STEPS, max(1, round(card.default_steps * STEPS[body.quality])))
    if body.input_fidelity == "high":
        name, value = _fidelity(fields, card)
        if name is None:
            reasons["input_fidelity"] = "the model has no such setting for this kind of edit"
        elif name in fields:
            reasons["input_fidelity"] = f"`{name}` is given"
        else:
            more[name] = value
    if body.background == "transparent":
        if not card.matting:
            reasons["background"] = f"{card.name} cannot find backgrounds: its operator has to add `matting` to it"
        elif body.output_format is ImageFormat.JPEG:
            raise ParameterError("output_format", NO_ALPHA, got=body.output_format)
        else:
            more["background"] = body.background
    if body.moderation == "low":
        reasons["moderation"] = "the operator of the service chooses the moderation"
    if body.output_compression not in (None, 100) and body.output_format is ImageFormat.PNG:
        reasons["output_compression"] = "it belongs to `output_format` webp or jpeg"
    return more, reasons


def _fidelity(fields: Mapping[str, Any], card: ModelCard) -> tuple[str | None, float]:
    """Return the field that makes results more like the image, if there is one, and its value."""
    if "instruction" in fields:
        return ("image_guidance_scale" if card.image_guidance else None), FAITHFUL_IMAGE_GUIDANCE
    is_img2img = not fields.keys() & {"mask", "outpaint", "upscale"} and Task.IMG2IMG in card.tasks
    return ("strength" if is_img2img else None), FAITHFUL_STRENGTH
