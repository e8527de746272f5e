"""Engine tasks for result images: one per image, or one per tile of an upscaled image."""

from collections.abc import Callable
from functools import partial

import torch

from img2img.domain.spec import ControlledSpec, JobSpec, UpscaleSpec

from ..engine.task import EngineTask, TaskFunction
from ..images.inputs import Inputs, to_pixels, to_tensor
from ..images.png import Pixels
from ..images.tiled_image import TiledImage
from .denoise import denoise, encode_decode, make_task_function
from .model import Model
from .prepared_job import prepare
from .refine import refined

# (inputs of a tile, seed, engine task) -> image of the tile.
MakeTile = Callable[[Inputs, int, EngineTask], torch.Tensor]


def make_task_functions(model: Model, spec: JobSpec, inputs: Inputs, index: int) -> list[TaskFunction]:
    """Return the functions that compute one result image: one per tile that returns `Pixels`, or a single one."""
    tiled = inputs.tiled_image
    if tiled is None:
        function = make_task_function(model, spec, inputs, index)
        if isinstance(spec, ControlledSpec) and spec.refine:
            function = refined(model, spec, inputs, index, function)
        return [function]
    assert isinstance(spec, UpscaleSpec)
    upscaler = model.upscalers[spec.upscale] if spec.tiling.upscaler else None
    make = partial(upscaler.upscale, spec) if upscaler else partial(_img2img, model, spec)
    scale = upscaler.latent_scale if upscaler else model.latent_scale
    channels = (upscaler or model).vae.config.latent_channels
    seeds, noise = _seeds_and_noise(tiled, spec.image_seed(index), channels, scale)
    return [partial(_tile, tiled, number, make, seeds[number], noise[number]) for number in range(len(seeds))]


def _tile(
    enlarged: TiledImage, number: int, make: MakeTile, seed: int, noise: torch.Tensor | None, engine_task: EngineTask
) -> Pixels:
    """Compute one tile. Returns bytes instead of floats, because a result can have hundreds of tiles in memory."""
    return to_pixels(make(Inputs(to_tensor(enlarged.tile(number)), noise=noise), seed, engine_task))


def _img2img(model: Model, spec: UpscaleSpec, inputs: Inputs, seed: int, engine_task: EngineTask) -> torch.Tensor:
    if spec.steps_run == 0:
        return encode_decode(model, inputs.image, fast_vae=spec.fast_vae)
    return denoise(model, spec, inputs, prepare(model, spec, inputs, seed), engine_task)


def _seeds_and_noise(
    enlarged: TiledImage, seed: int, channels: int, scale: int
) -> tuple[list[int], list[torch.Tensor] | list[None]]:
    """Return a seed and the initial noise for each tile; a single tile uses `seed` and samples its noise itself.

    Noise is sampled for the whole canvas, so tiles share it where they overlap and generate similar details there.
    Different details would be blurred by blending.

    Args:
        channels: latent channels.
        scale: pixels along a side of a latent.
    """
    grid = enlarged.grid
    if len(grid) == 1:
        return [seed], [None]
    generator = torch.Generator("cpu").manual_seed(seed)
    width, height = grid.canvas
    canvas = torch.randn((1, channels, height // scale, width // scale), generator=generator)
    seeds = torch.randint(2**63 - 1, (len(grid),), generator=generator).tolist()
    boxes = [[side // scale for side in box] for box in grid.boxes]
    return seeds, [canvas[:, :, top:bottom, left:right] for left, top, right, bottom in boxes]
