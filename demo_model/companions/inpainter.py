"""The inpainting companion: a UNet with the mask and the masked image as five more input channels."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch
from rich.progress import track

from ..autoencoder import as_pixels
from ..dataset import Images, rendered_images, sample
from ..diffusion import offset_noise
from ..stage import StageTrainer
from ..workers import is_first_worker, wait_for_workers, worker_rank
from .base import ENCODE_BATCH, Base, captions_of, encoded, save_half, timesteps_for, widened
from .masks import Mask, random_mask
from .recipe import CompanionRecipe

CAPTION_DROPOUT = 0.15
LEAN = 0.8
WEIGHT_INSIDE = 3.0
"""Loss weight of masked pixels, relative to the pixels that are kept."""


def train_inpainter(recipe: CompanionRecipe, base: Base, work_dir: Path, out: Path) -> None:
    torch.manual_seed(9)
    images = rendered_images(work_dir, recipe.images)
    latents = encoded(base, images, work_dir / f"companion-latents-{recipe.images}.pt")
    kept = masked_latents(base, images, work_dir / f"masked-latents-{recipe.images}.pt")
    unet = widened(base.unet, 2 * base.vae.config.latent_channels + 1).to(base.device).train()
    stage = recipe.stages["inpaint"]
    trainer = StageTrainer("inpaint", unet, stage, work_dir / "inpaint.pt", recipe.checkpoint_every_min)
    torch.manual_seed(1000 * trainer.steps + worker_rank())
    rng = random.Random(f"inpaint {trainer.steps} {worker_rank()}")
    with trainer.bar() as bar:
        while trainer.progress < 1.0:
            seeds = torch.randint(len(latents), (trainer.worker_batch,)).tolist()
            clean, stays = (some[seeds].to(base.device, torch.float32) for some in (latents, kept))
            masks = torch.from_numpy(np.stack([mask_of(seed) for seed in seeds])).to(base.device)
            mask = at_latents(masks)
            noise = offset_noise(clean)
            timesteps = timesteps_for(len(seeds), LEAN).to(base.device)
            noisy = base.schedule.add_noise(clean, noise, timesteps)
            words = base.words(captions_of(seeds, CAPTION_DROPOUT, rng))
            with torch.autocast(base.device.type, dtype=torch.bfloat16):
                velocity = unet(torch.cat([noisy, mask, stays], dim=1), timesteps, words).sample
            target = base.schedule.get_velocity(clean, noise, timesteps)
            weight = 1.0 + (WEIGHT_INSIDE - 1.0) * mask
            loss = ((velocity.float() - target).square() * weight).sum() / (weight.sum() * clean.shape[1])
            trainer.step(loss, bar)
    if is_first_worker():
        trainer.save()
    trainer.use_averaged_weights()
    save_half(unet, out / "inpaint")


def mask_of(seed: int) -> Mask:
    """Return the mask of a training image."""
    return random_mask(sample(seed), random.Random(f"mask {seed}"))


def at_latents(masks: torch.Tensor) -> torch.Tensor:
    """Reduce (n, 128, 128) masks to (n, 1, 32, 32): the corner pixel of each latent, as in the stock pipeline."""
    return masks[:, None, ::4, ::4].float()


def masked_latents(base: Base, images: Images, path: Path) -> torch.Tensor:
    """Return latents (n, 4, 32, 32) of images with grey under their masks, cached in a file."""
    if not path.exists() and is_first_worker():
        batches = []
        for start in track(range(0, len(images), ENCODE_BATCH), "encoding masked images"):
            pixels = as_pixels(images[start : start + ENCODE_BATCH], base.device)
            masks = np.stack([mask_of(start + index) for index in range(len(pixels))])
            stays = ~torch.from_numpy(masks).to(base.device)
            batches.append(base.encode_pixels(pixels * stays[:, None]).half().cpu())
        torch.save(torch.cat(batches), path.with_suffix(".part"))
        path.with_suffix(".part").rename(path)
    wait_for_workers()
    return torch.load(path, weights_only=True)  # type: ignore[no-any-return]
