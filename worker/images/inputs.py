"""Decodes the input images of a job into the tensors and images that its pipeline takes.

Pixels are processed in NumPy and Pillow, as in diffusers. A torch operation of this size would start OpenMP threads for
its thread, and with more of them than cores the engine's threads are suspended between operations.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from PIL import Image

from img2img.domain.conditioning import Control, ControlName
from img2img.domain.spec import ControlSpec, EditSpec, GenerationSpec, Img2ImgSpec, InpaintSpec, JobSpec, UpscaleSpec
from img2img.errors import InvalidPixels, JobError

from .control_maps import PREPROCESSORS
from .inpaint_canvas import InpaintCanvas
from .png import Pixels, decode_png
from .tiled_image import TiledImage


@dataclass(frozen=True)
class Inputs:
    """The decoded inputs of one job. Tensors are float32 in [0, 1], in the size at which the model works."""

    image: torch.Tensor | None = None  # (1, 3, height, width); None for the control and upscale tasks
    mask: torch.Tensor | None = None  # (1, 1, height, width): 1 where the image is regenerated; shares of a soft mask
    canvas: InpaintCanvas | None = None  # of an inpaint job: composites the result into the image
    # By control, (1, 3, height, width): its map, or the input of the model that makes the map.
    controls: tuple[torch.Tensor, ...] = ()
    tiled_image: TiledImage | None = None  # of an upscale job: replaces `image`
    noise: torch.Tensor | None = None  # (1, channels, height, width) of latents: replaces the noise from the seed
    image_prompts: tuple[Image.Image, ...] = ()  # RGB, of any size
    references: tuple[Image.Image, ...] = ()  # of an edit: RGB, of any size
    regions: tuple[torch.Tensor, ...] = ()  # masks of regions with own prompts, (1, 1, height, width)


class ImagePreprocessor(Protocol):
    """Prepares an image for a model that makes control maps."""

    def prepare(self, image: Image.Image) -> torch.Tensor: ...


def load_inputs(
    spec: JobSpec, pngs: Mapping[str, bytes], annotators: Mapping[ControlName, ImagePreprocessor] = {}
) -> Inputs:
    """Decode the inputs of a job.

    Args:
        spec: the job.
        pngs: its input images, by sha256.
        annotators: models that make control maps, by type.

    Raises:
        JobError: an image does not fit the job.
    """
    size = (spec.width, spec.height)
    digest = None if isinstance(spec, ControlSpec) else spec.image
    image = decode_png(pngs[digest]) if digest else None
    mask = canvas = None
    if isinstance(spec, InpaintSpec):
        assert image is not None
        canvas_mask = decode_png(pngs[spec.region.mask]).convert("L") if spec.region.mask else None
        canvas = InpaintCanvas(image, canvas_mask, spec.region)
        image, mask = canvas.model_input(size)
    elif image is not None:
        _check_size("the input image", image, size)
    if isinstance(spec, UpscaleSpec):
        assert image is not None
        return Inputs(tiled_image=TiledImage(image, spec))
    controls = [
        _preprocess(control, _control_image(control, pngs, image, canvas, size), annotators)
        for control in spec.control_maps
    ]
    prompts = spec.image_prompts if isinstance(spec, GenerationSpec) else []
    references = spec.references if isinstance(spec, EditSpec) else ()
    regions = spec.regions if isinstance(spec, Img2ImgSpec) else ()
    region_masks = [decode_png(pngs[region.mask]).convert("L") for region in regions if region.mask]
    for mask_image in region_masks:
        _check_size("the mask of a region", mask_image, size)
    return Inputs(
        to_tensor(image) if image is not None else None,
        to_tensor(mask) if mask is not None else None,
        canvas,
        tuple(controls),
        image_prompts=tuple(decode_png(pngs[prompt.image]).convert("RGB") for prompt in prompts if prompt.image),
        references=tuple(decode_png(pngs[other.image]).convert("RGB") for other in references if other.image),
        regions=tuple(map(to_tensor, region_masks)),
    )


def _control_image(
    control: Control,
    pngs: Mapping[str, bytes],
    image: Image.Image | None,
    canvas: InpaintCanvas | None,
    size: tuple[int, int],
) -> Image.Image:
    """Return the image of a control in the size at which the model works: its own, or the image of the job."""
    if control.image is None:
        if image is None:
            raise JobError(f"the {control.type} control has no image")
        return image.convert("RGB")
    own = decode_png(pngs[control.image]).convert("RGB")
    if canvas is not None:
        return canvas.crop_control(own, size)
    _check_size(f"the image of the {control.type} control", own, size)
    return own


def _preprocess(
    control: Control, image: Image.Image, annotators: Mapping[ControlName, ImagePreprocessor]
) -> torch.Tensor:
    if not control.preprocess:
        return to_tensor(image)
    if control.type in PREPROCESSORS:
        return to_tensor(PREPROCESSORS[control.type](image))
    if control.type not in annotators:
        raise JobError(f"this model cannot make {control.type} maps; send the map with `preprocess: false`")
    return annotators[control.type].prepare(image)


def _check_size(name: str, image: Image.Image, size: tuple[int, int]) -> None:
    if image.size != size:
        raise JobError(f"{name} is {image.width}x{image.height}, not {size[0]}x{size[1]}")


def to_tensor(image: Image.Image) -> torch.Tensor:
    """Convert an image to a tensor of shape (1, channels, height, width), float32 in [0, 1].

    The channels of a pixel are adjacent in memory, as in the tensors of diffusers' image processor: kernels choose
    their order of additions by it.
    """
    pixels = np.asarray(image, dtype=np.float32) / 255
    return torch.from_numpy(pixels.reshape(1, image.height, image.width, -1)).permute(0, 3, 1, 2)


def to_pixels(image: torch.Tensor) -> Pixels:
    """Convert a tensor of shape (1, 3, height, width) in [0, 1] to bytes, rounded like diffusers' image processor.

    Raises:
        InvalidPixels: a value is not finite.
    """
    pixels = image[0].float().cpu().numpy()
    if not np.isfinite(pixels).all():
        raise InvalidPixels
    return np.ascontiguousarray((pixels * 255).round().astype(np.uint8).transpose(1, 2, 0))
