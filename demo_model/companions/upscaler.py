"""The upscaling companion: a UNet with the noised low-resolution image as three more input channels."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from PIL import Image

from ..autoencoder import as_pixels
from ..dataset import SIZE, Images, cached, sample
from ..recipe import TEXT_WIDTH
from ..stage import StageTrainer
from ..styles import render
from ..workers import is_first_worker, worker_rank
from .base import Base, captions_of, encoded, save_half, timesteps_for, with_plain_attention
from .recipe import CompanionRecipe

TIMES = 4
LARGE = TIMES * SIZE
WIDTHS = (32, 64, 96)
NOISE_LEVELS = 1000
MAX_NOISE_LEVEL = 350
PATCH = 32
"""Side of the low-resolution patches, and of their latents."""
CAPTION_DROPOUT = 0.3


def new_upscaler() -> UNet2DConditionModel:
    """Attention to the text on the smallest level only; the class label is the noise level of the small image."""
    unet = UNet2DConditionModel(
        sample_size=SIZE,
        in_channels=4 + 3,
        out_channels=4,
        down_block_types=("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        mid_block_type=None,
        block_out_channels=WIDTHS,
        layers_per_block=1,
        norm_num_groups=16,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
        num_class_embeds=NOISE_LEVELS,
    )
    return with_plain_attention(unet)


def low_res_schedule() -> DDPMScheduler:
    """Return the noise schedule of the low-resolution image, as in the published x4 upscaler."""
    return DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.0001, beta_end=0.02)


def large_images(work_dir: Path, count: int) -> Images:
    """Return a memory map of images, (count, 512, 512, 3)."""
    return cached(work_dir / f"large-{count}.npy", range(count), _render_large, (LARGE, LARGE, 3))


def small_images(work_dir: Path, count: int) -> Images:
    """Return a memory map of the same images in low resolution, (count, 128, 128, 3)."""
    return cached(work_dir / f"small-{count}.npy", range(count), _render_small)


def reduced(image: Images) -> Images:
    """Return an image at a quarter of its side."""
    small = Image.fromarray(image)
    return np.asarray(small.resize((small.width // TIMES, small.height // TIMES), Image.Resampling.LANCZOS))


def _render_large(seed: int) -> Images:
    drawn = sample(seed)
    return np.asarray(render(drawn.scene, drawn.style, LARGE))


def _render_small(seed: int) -> Images:
    return reduced(_render_large(seed))


def train_upscaler(recipe: CompanionRecipe, base: Base, work_dir: Path, out: Path) -> None:
    torch.manual_seed(10)
    count = recipe.large_images
    large, small = large_images(work_dir, count), small_images(work_dir, count)
    latents = encoded(base, large, work_dir / f"large-latents-{count}.pt", batch=2)
    unet = new_upscaler().to(base.device).train()
    stage, low_res = recipe.stages["upscaler"], low_res_schedule()
    trainer = StageTrainer("upscaler", unet, stage, work_dir / "upscaler.pt", recipe.checkpoint_every_min)
    torch.manual_seed(1000 * trainer.steps + worker_rank())
    rng = random.Random(f"upscaler {trainer.steps} {worker_rank()}")
    with trainer.bar() as bar:
        while trainer.progress < 1.0:
            seeds = torch.randint(count, (trainer.worker_batch,)).tolist()
            corners = [(rng.randrange(SIZE - PATCH + 1), rng.randrange(SIZE - PATCH + 1)) for _ in seeds]
            patches = [
                (latents[seed, :, top : top + PATCH, left : left + PATCH],
                 small[seed, top : top + PATCH, left : left + PATCH])
                for seed, (top, left) in zip(seeds, corners, strict=True)
            ]  # fmt: skip
            clean = torch.stack([patch for patch, _ in patches]).to(base.device, torch.float32)
            seen = as_pixels(np.stack([patch for _, patch in patches]), base.device)
            levels = (MAX_NOISE_LEVEL * torch.rand(len(seeds)).square()).long().to(base.device)
            seen = low_res.add_noise(seen, torch.randn_like(seen), levels)
            noise = torch.randn_like(clean)
            timesteps = timesteps_for(len(seeds)).to(base.device)
            noisy = base.schedule.add_noise(clean, noise, timesteps)
            words = base.words(captions_of(seeds, CAPTION_DROPOUT, rng))
            with torch.autocast(base.device.type, dtype=torch.bfloat16):
                velocity = unet(torch.cat([noisy, seen], dim=1), timesteps, words, class_labels=levels).sample
            target = base.schedule.get_velocity(clean, noise, timesteps)
            trainer.step((velocity.float() - target).square().mean(), bar)
    if is_first_worker():
        trainer.save()
    trainer.use_averaged_weights()
    save_half(unet, out / "upscaler")
