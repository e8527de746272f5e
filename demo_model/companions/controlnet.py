"""ControlNets: copies of the demo model's encoder without attention, which read a map."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import ControlNetModel

from ..dataset import Images
from ..diffusion import offset_noise
from ..stage import StageTrainer
from ..workers import is_first_worker, worker_rank
from . import maps
from .base import Base, captions_of, save_half, timesteps_for
from .recipe import CompanionRecipe

CAPTION_DROPOUT = 0.3
"""Share of empty captions, so that the map alone determines the content."""
LEAN = 0.6
"""Prefers noisy timesteps: at low noise the latents already show the layout."""
MapMaker = Callable[[int, random.Random], maps.Bytes]


def new_controlnet(base: Base) -> ControlNetModel:
    """Start from the UNet's convolutions; three feature sizes reduce a map of 128 pixels to 32 latents."""
    config = base.unet.config
    net = ControlNetModel(
        block_out_channels=config.block_out_channels,
        down_block_types=("DownBlock2D",) * len(config.block_out_channels),
        mid_block_type="UNetMidBlock2D",
        layers_per_block=config.layers_per_block,
        norm_num_groups=config.norm_num_groups,
        cross_attention_dim=config.cross_attention_dim,
        attention_head_dim=config.attention_head_dim,
        conditioning_embedding_out_channels=(16, 32, 64),
    )
    own = net.state_dict()
    known = base.unet.state_dict()
    net.load_state_dict({name: known.get(name, value) for name, value in own.items()})
    return net


def train_controlnet(
    name: str,
    recipe: CompanionRecipe,
    base: Base,
    latents: torch.Tensor,
    make: MapMaker,
    work_dir: Path,
    out: Path,
    start: Path | None = None,
) -> None:
    """Train a ControlNet.

    Args:
        start: folder of a ControlNet to start from, instead of the UNet's encoder.
    """
    torch.manual_seed(7)
    net = new_controlnet(base) if start is None else ControlNetModel.from_pretrained(start, dtype=torch.float32)
    net = net.to(base.device).train()
    trainer = StageTrainer(name, net, recipe.stages[name], work_dir / f"{name}.pt", recipe.checkpoint_every_min)
    torch.manual_seed(1000 * trainer.steps + worker_rank())
    rng = random.Random(f"{name} {trainer.steps} {worker_rank()}")
    with trainer.bar() as bar:
        while trainer.progress < 1.0:
            seeds = torch.randint(len(latents), (trainer.worker_batch,)).tolist()
            clean = latents[seeds].to(base.device, torch.float32)
            drawn = np.stack([make(seed, rng) for seed in seeds])
            shown = torch.from_numpy(drawn).to(base.device).permute(0, 3, 1, 2).float().div(255)
            noise = offset_noise(clean)
            timesteps = timesteps_for(len(seeds), LEAN).to(base.device)
            noisy = base.schedule.add_noise(clean, noise, timesteps)
            words = base.words(captions_of(seeds, CAPTION_DROPOUT, rng))
            with torch.autocast(base.device.type, dtype=torch.bfloat16):
                down, middle = net(noisy, timesteps, words, shown, return_dict=False)
                velocity = base.unet(
                    noisy, timesteps, words, down_block_additional_residuals=down, mid_block_additional_residual=middle
                ).sample
            target = base.schedule.get_velocity(clean, noise, timesteps)
            trainer.step((velocity.float() - target).square().mean(), bar)
    if is_first_worker():
        trainer.save()
    trainer.use_averaged_weights()
    save_half(net, out / name)


def map_maker(name: str, images: Images, painted: Images) -> MapMaker:
    """Return the function that makes the map of a training image: random kinds of lines, depth or segmentation."""
    makers: dict[str, MapMaker] = {
        "lines": partial(_lines, images),
        "depth": partial(_depth, painted),
        "segmentation": partial(_segmentation, painted),
    }
    return makers[name]


def _lines(images: Images, seed: int, rng: random.Random) -> maps.Bytes:
    return maps.some_lines(images[seed], rng)


def _depth(painted: Images, seed: int, _rng: random.Random) -> maps.Bytes:
    return maps.depth_image(painted[seed, ..., 1].astype(np.float32))


def _segmentation(painted: Images, seed: int, _rng: random.Random) -> maps.Bytes:
    return maps.CLASS_COLOURS[painted[seed, ..., 0]]
