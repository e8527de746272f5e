"""A LoRA for blueprints, a style that the demo model was not trained on."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from torch import nn

from ..captions import subject
from ..dataset import SIZE, Images, cached
from ..diffusion import offset_noise
from ..scenes import sample_scene
from ..stage import StageTrainer
from ..styles import render
from ..workers import is_first_worker, worker_rank
from .base import Base, encoded, timesteps_for
from .recipe import CompanionRecipe

RANK = 8
LAYERS = ["to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2", "conv_shortcut"]
PAPER, INK = np.array([24, 62, 138]), np.array([232, 240, 252])
TRIGGER = "a blueprint of"


def train_lora(recipe: CompanionRecipe, base: Base, work_dir: Path, out: Path) -> None:
    torch.manual_seed(14)
    images = cached(work_dir / f"blueprints-{recipe.blueprints}.npy", range(recipe.blueprints), draw_blueprint)
    latents = encoded(base, images, work_dir / f"blueprint-latents-{recipe.blueprints}.pt")
    base.unet.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, init_lora_weights="gaussian", target_modules=LAYERS))
    learning = nn.ParameterList([weight for weight in base.unet.parameters() if weight.requires_grad])
    trainer = StageTrainer("lora", learning, recipe.stages["lora"], work_dir / "lora.pt", recipe.checkpoint_every_min)
    torch.manual_seed(1000 * trainer.steps + worker_rank())
    rng = random.Random(f"lora {trainer.steps} {worker_rank()}")
    with trainer.bar() as bar:
        while trainer.progress < 1.0:
            seeds = torch.randint(len(latents), (trainer.worker_batch,)).tolist()
            clean = latents[seeds].to(base.device, torch.float32)
            noise = offset_noise(clean)
            timesteps = timesteps_for(len(seeds)).to(base.device)
            noisy = base.schedule.add_noise(clean, noise, timesteps)
            words = base.words([f"{TRIGGER} {subject(sample_scene(seed), rng)}" for seed in seeds])
            with torch.autocast(base.device.type, dtype=torch.bfloat16):
                velocity = base.unet(noisy, timesteps, words).sample
            target = base.schedule.get_velocity(clean, noise, timesteps)
            trainer.step((velocity.float() - target).square().mean(), bar)
    if is_first_worker():
        trainer.save()
    trainer.use_averaged_weights()
    if is_first_worker():
        layers = get_peft_model_state_dict(base.unet)
        StableDiffusionPipeline.save_lora_weights(
            out,
            unet_lora_layers={name: weight.half() for name, weight in layers.items()},
            weight_name="blueprint.safetensors",
        )


def draw_blueprint(seed: int) -> Images:
    """Return the pencil sketch of a scene in white on blue, (128, 128, 3)."""
    sketch = np.asarray(render(sample_scene(seed), "pencil", SIZE).convert("L"), np.float32)[..., None] / 255
    return np.round(INK + (PAPER - INK) * sketch).astype(np.uint8)
