"""The InstructPix2Pix companion: a UNet with the latents of the image as four more input channels."""

from __future__ import annotations

import random
from pathlib import Path

import torch

from ..diffusion import offset_noise
from ..stage import StageTrainer
from ..workers import is_first_worker, worker_rank
from .base import Base, encoded, save_half, timesteps_for, widened
from .instructions import before_and_after, sample_instruction
from .recipe import CompanionRecipe

DROP_BOTH, DROP_WORDS, DROP_IMAGE = 0.05, 0.05, 0.05
"""Share of samples without text, without image and without both, for the two guidance scales (Brooks et al., 2023)."""
LEAN = 0.7


def train_editor(recipe: CompanionRecipe, base: Base, work_dir: Path, out: Path) -> None:
    torch.manual_seed(8)
    before, after = before_and_after(work_dir, recipe.pairs)
    given = encoded(base, before, work_dir / f"latents-before-{recipe.pairs}.pt")
    wanted = encoded(base, after, work_dir / f"latents-after-{recipe.pairs}.pt")
    unet = widened(base.unet, 2 * base.vae.config.latent_channels).to(base.device).train()
    trainer = StageTrainer("edit", unet, recipe.stages["edit"], work_dir / "edit.pt", recipe.checkpoint_every_min)
    torch.manual_seed(1000 * trainer.steps + worker_rank())
    rng = random.Random(f"edit {trainer.steps} {worker_rank()}")
    with trainer.bar() as bar:
        while trainer.progress < 1.0:
            seeds = torch.randint(len(given), (trainer.worker_batch,)).tolist()
            clean, seen = (latents[seeds].to(base.device, torch.float32) for latents in (wanted, given))
            instructions = [sample_instruction(seed).words for seed in seeds]
            for index in range(len(seeds)):
                chance = rng.random()
                if chance < DROP_BOTH + DROP_WORDS:
                    instructions[index] = ""
                if chance < DROP_BOTH or DROP_BOTH + DROP_WORDS < chance < DROP_BOTH + DROP_WORDS + DROP_IMAGE:
                    seen[index] = 0.0
            noise = offset_noise(clean)
            timesteps = timesteps_for(len(seeds), LEAN).to(base.device)
            noisy = base.schedule.add_noise(clean, noise, timesteps)
            words = base.words(instructions)
            with torch.autocast(base.device.type, dtype=torch.bfloat16):
                velocity = unet(torch.cat([noisy, seen], dim=1), timesteps, words).sample
            target = base.schedule.get_velocity(clean, noise, timesteps)
            trainer.step((velocity.float() - target).square().mean(), bar)
    if is_first_worker():
        trainer.save()
    trainer.use_averaged_weights()
    save_half(unet, out / "edit")
