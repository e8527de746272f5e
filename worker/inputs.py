"""A job's blobs as the tensors and pictures that its pipeline takes.

Pixels are handled in NumPy and Pillow, as diffusers does itself: a torch operation of this size would start OpenMP
threads for the thread that calls it, and with more of those than cores the engine's own go to sleep between any two
operations.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from app.contract.errors import JobError
from app.contract.spec import JobSpec
from worker.canvas import Canvas
from worker.png import open_png


@dataclass(frozen=True)
class Inputs:
    """What one job works on. Tensors are float32 in [0, 1], of the size at which the model works."""

    picture: torch.Tensor | None = None  # (1, 3, height, width); None for the control task
    mask: torch.Tensor | None = None  # (1, 1, height, width): 1 where it is painted anew
    canvas: Canvas | None = None  # where the result of an inpaint goes
    image_prompts: tuple[Image.Image, ...] = ()  # RGB, of any size


def load_inputs(spec: JobSpec, pngs: Mapping[str, bytes]) -> Inputs:
    """Decodes the blobs of a job, by sha256. Raises JobError where one does not fit the spec."""
    prompts = tuple(open_png(pngs[prompt.image]).convert("RGB") for prompt in spec.image_prompts)
    picture = open_png(pngs[spec.image]) if spec.image else None
    if picture is None:
        return Inputs(image_prompts=prompts)
    if spec.repaint is None:
        if picture.size != (spec.width, spec.height):
            raise JobError(f"the input picture is {picture.width}x{picture.height}, not {spec.width}x{spec.height}")
        return Inputs(to_tensor(picture), image_prompts=prompts)
    mask = open_png(pngs[spec.repaint.mask]).convert("L") if spec.repaint.mask else None
    canvas = Canvas(picture, mask, spec.repaint)
    seen, painted = canvas.view((spec.width, spec.height))
    return Inputs(to_tensor(seen), to_tensor(painted), canvas, prompts)


def to_tensor(picture: Image.Image) -> torch.Tensor:
    """(1, channels, height, width), float32 in [0, 1]."""
    pixels = np.asarray(picture, dtype=np.float32) / 255
    channels_first = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    return torch.from_numpy(np.ascontiguousarray(channels_first[None]))
