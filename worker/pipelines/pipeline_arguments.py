"""Converts Stable Diffusion pipeline arguments to the arguments of the pipelines of other families."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from img2img.domain.parameters import Task
from img2img.domain.spec import DenoisingSpec

Arguments = dict[str, Any]

# Pixels along a side of a token of FLUX.1.
TOKEN = 16


def add_size(spec: DenoisingSpec, arguments: Arguments) -> Arguments:
    """Add the output size, which Stable Diffusion pipelines derive from the image."""
    return {**arguments, "width": spec.width, "height": spec.height}


def flux(spec: DenoisingSpec, arguments: Arguments) -> Arguments:
    """FLUX.1: explicit size, no negative prompt."""
    return add_size(spec, _without(arguments, "negative_prompt"))


def flux_kontext(spec: DenoisingSpec, arguments: Arguments) -> Arguments:
    """FLUX.1 Kontext: like FLUX.1, with several images side by side, and without the pipeline's own resizing."""
    # The image is resized already, by default to one of the sizes that the pipeline would choose.
    given = _without_img2img(arguments) if spec.task is Task.EDIT else arguments
    if len(images := _images(arguments)) > 1:
        given = {**given, "image": stitched(images, spec.height)}
    return {**flux(spec, given), "max_area": spec.width * spec.height, "_auto_resize": False}


def flux2(spec: DenoisingSpec, arguments: Arguments) -> Arguments:
    """FLUX.2: like FLUX.1, with a list of PIL images as context of an edit."""
    if spec.task is Task.INPAINT:
        return flux(spec, arguments)
    return {**flux(spec, _without_img2img(arguments)), "image": _images(arguments)}


def qwen(spec: DenoisingSpec, arguments: Arguments) -> Arguments:
    """Qwen-Image: explicit size, and classifier-free guidance as `true_cfg_scale`."""
    given = _without(arguments, "guidance_scale", "negative_prompt")
    # The pipeline guides only if it gets a negative prompt; a blank one guides as well.
    guided = {"true_cfg_scale": spec.guidance_scale, "negative_prompt": spec.negative_prompt or " "}
    return add_size(spec, given | (guided if spec.guidance_scale > 1 else {}))


def qwen_edit(spec: DenoisingSpec, arguments: Arguments) -> Arguments:
    """Qwen-Image-Edit: like Qwen-Image, with a PIL image."""
    given = arguments if spec.task is Task.INPAINT else _without_img2img(arguments)
    return {**qwen(spec, given), "image": to_pil(arguments["image"])}


def qwen_edit_plus(spec: DenoisingSpec, arguments: Arguments) -> Arguments:
    """Qwen-Image-Edit Plus: like Qwen-Image-Edit, with a list of PIL images."""
    return {**qwen(spec, _without_img2img(arguments)), "image": _images(arguments)}


def z_image(spec: DenoisingSpec, arguments: Arguments) -> Arguments:
    """Z-Image: explicit size, and a guidance scale that is 0 without guidance."""
    # The scale counts from the prediction with the prompt, so 0 means no guidance, as 1 does elsewhere.
    scale = spec.guidance_scale if spec.guidance_scale > 1 else 0.0
    return add_size(spec, {**arguments, "guidance_scale": scale})


def _without(arguments: Arguments, *names: str) -> Arguments:
    return {name: value for name, value in arguments.items() if name not in names}


def _without_img2img(arguments: Arguments) -> Arguments:
    """Drop the arguments that instruction-based editing pipelines do not take."""
    return _without(arguments, "strength", "image_guidance_scale", "references")


def _images(arguments: Arguments) -> list[Image.Image]:
    return [to_pil(arguments["image"]), *arguments.get("references", ())]


def stitched(images: Sequence[Image.Image], height: int) -> Image.Image:
    """Return images side by side, in their aspect ratios, with widths that are multiples of a token."""
    widths = [max(TOKEN, TOKEN * round(image.width * height / image.height / TOKEN)) for image in images]
    whole = Image.new("RGB", (sum(widths), height))
    left = 0
    for image, width in zip(images, widths, strict=True):
        whole.paste(image.resize((width, height), Image.Resampling.LANCZOS), (left, 0))
        left += width
    return whole


def to_pil(image: torch.Tensor) -> Image.Image:
    """Convert an image of shape (1, 3, height, width) with values in [0, 1]."""
    converted: Image.Image
    [converted] = VaeImageProcessor.numpy_to_pil(image.permute(0, 2, 3, 1).numpy())
    return converted
