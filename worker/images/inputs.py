"""A job's blobs as the tensors and pictures that its pipeline takes.

Pixels are handled in NumPy and Pillow, as diffusers does itself: a torch operation of this size would start OpenMP
threads for the thread that calls it, and with more of those than cores the engine's own go to sleep between any two
operations.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from PIL import Image

from img2img.domain.conditioning import Control, ControlType
from img2img.domain.spec import ControlMapSpec, ControlSpec, InpaintSpec, JobSpec, UpscaleSpec
from img2img.errors import InvalidPixels, JobError

from .control_maps import PREPROCESSORS
from .inpaint_canvas import InpaintCanvas
from .png import Pixels, decode_png
from .tiled_image import TiledImage


@dataclass(frozen=True)
class Inputs:
    """What one job works on. Tensors are float32 in [0, 1], of the size at which the model works."""

    picture: torch.Tensor | None = None  # (1, 3, height, width); None for the control task
    mask: torch.Tensor | None = None  # (1, 1, height, width): 1 where it is painted anew
    canvas: InpaintCanvas | None = None  # where the result of an inpaint goes
    # By control, (1, 3, height, width): its map; where a model is to make that, what this model takes of the picture.
    controls: tuple[torch.Tensor, ...] = ()
    enlarged: TiledImage | None = None  # of an upscale, in place of the picture
    noise: torch.Tensor | None = None  # (1, channels, height, width) of latents: in place of what the seed would draw
    image_prompts: tuple[Image.Image, ...] = ()  # RGB, of any size


class Prepares(Protocol):
    """Makes control maps by a model, and so not here."""

    def prepare(self, picture: Image.Image) -> torch.Tensor: ...


def load_inputs(spec: JobSpec, pngs: Mapping[str, bytes], annotators: Mapping[ControlType, Prepares] = {}) -> Inputs:
    """Decodes the blobs of a job, by sha256. Raises JobError where one does not fit the spec."""
    size = (spec.width, spec.height)
    digest = None if isinstance(spec, ControlSpec) else spec.image
    picture = decode_png(pngs[digest]) if digest else None
    mask = canvas = None
    if isinstance(spec, InpaintSpec):
        assert picture is not None
        masked = decode_png(pngs[spec.region.mask]).convert("L") if spec.region.mask else None
        canvas = InpaintCanvas(picture, masked, spec.region)
        picture, mask = canvas.view(size)
    elif picture is not None:
        _check_size("the input image", picture, size)
    if isinstance(spec, UpscaleSpec):
        assert picture is not None
        return Inputs(enlarged=TiledImage(picture, spec))
    controls = [
        _control(control, _shown(control, pngs, picture, canvas, size), annotators) for control in spec.control_maps
    ]
    prompts = [] if isinstance(spec, ControlMapSpec) else spec.image_prompts
    return Inputs(
        to_tensor(picture) if picture is not None else None,
        to_tensor(mask) if mask is not None else None,
        canvas,
        tuple(controls),
        image_prompts=tuple(decode_png(pngs[prompt.image]).convert("RGB") for prompt in prompts if prompt.image),
    )


def _shown(
    control: Control,
    pngs: Mapping[str, bytes],
    picture: Image.Image | None,
    canvas: InpaintCanvas | None,
    size: tuple[int, int],
) -> Image.Image:
    """What a control is given, at the size at which the model works: a picture of its own, or the job's."""
    if control.image is None:
        if picture is None:
            raise JobError(f"the {control.type} control has no picture")
        return picture.convert("RGB")
    own = decode_png(pngs[control.image]).convert("RGB")
    if canvas is not None:
        return canvas.cut_along(own, size)
    _check_size(f"the picture of the {control.type} control", own, size)
    return own


def _control(control: Control, shown: Image.Image, annotators: Mapping[ControlType, Prepares]) -> torch.Tensor:
    if not control.preprocess:
        return to_tensor(shown)
    if control.type in PREPROCESSORS:
        return to_tensor(PREPROCESSORS[control.type](shown))
    if control.type not in annotators:
        raise JobError(f"no {control.type} maps can be made here; send the map, with `preprocess: false`")
    return annotators[control.type].prepare(shown)


def _check_size(name: str, picture: Image.Image, size: tuple[int, int]) -> None:
    if picture.size != size:
        raise JobError(f"{name} is {picture.width}x{picture.height}, not {size[0]}x{size[1]}")


def to_tensor(picture: Image.Image) -> torch.Tensor:
    """(1, channels, height, width), float32 in [0, 1]."""
    pixels = np.asarray(picture, dtype=np.float32) / 255
    channels_first = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    return torch.from_numpy(np.ascontiguousarray(channels_first[None]))


def to_pixels(image: torch.Tensor) -> Pixels:
    """(1, 3, height, width) in [0, 1] to (height, width, 3) bytes, rounded as diffusers' image processor rounds."""
    pixels = image[0].float().cpu().numpy()
    if not np.isfinite(pixels).all():
        raise InvalidPixels
    return np.ascontiguousarray((pixels * 255).round().astype(np.uint8).transpose(1, 2, 0))
