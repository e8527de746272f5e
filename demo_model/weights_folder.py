"""Writes the trained components as a diffusers folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline

from .diffusion import Denoiser
from .recipe import BETA_END, BETA_START, TRAIN_TIMESTEPS


def write_weights(out: Path, vae: AutoencoderKL, denoiser: Denoiser) -> None:
    """Save in half precision as safetensors and replace the folder atomically."""
    for module in (vae, denoiser.unet, denoiser.text_encoder):
        module.to(device="cpu", dtype=torch.float16)
    pipeline = StableDiffusionPipeline(
        vae=vae,
        unet=denoiser.unet,
        text_encoder=denoiser.text_encoder,
        tokenizer=denoiser.tokenizer,
        scheduler=default_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    unfinished, previous = out.with_name(f"{out.name}.new"), out.with_name(f"{out.name}.old")
    for leftover in (unfinished, previous):
        shutil.rmtree(leftover, ignore_errors=True)
    pipeline.save_pretrained(unfinished, safe_serialization=True)
    if out.exists():
        out.rename(previous)
    unfinished.rename(out)
    shutil.rmtree(previous, ignore_errors=True)


def default_scheduler() -> DDIMScheduler:
    """Return the base scheduler config, without clipping, because latents exceed [-1, 1]."""
    return DDIMScheduler(
        num_train_timesteps=TRAIN_TIMESTEPS,
        beta_start=BETA_START,
        beta_end=BETA_END,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
