"""Sizes and training settings, for a CPU and for a GPU."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

LATENT_CHANNELS = 4
LATENT_SIZE = 32
TRAIN_TIMESTEPS = 1000
BETA_START, BETA_END = 0.00085, 0.03
"""Starts like the schedule of Stable Diffusion (0.00085 to 0.012) and ends with more noise. Otherwise the mean
brightness of these large latents is visible at every timestep, and the denoiser ignores words such as "at night"."""
OFFSET_NOISE = 0.15
OFFSET_GRIDS = (1, 2, 4)
"""Offset noise: shifts of whole regions with this deviation, on grids with these numbers of cells per side. White noise
averages out over a region and leaves its colour visible, so the denoiser would not need the prompt."""
FOREIGN_WORDS = (100, 250)
"""Captions are exchanged between images below the first of these timesteps, and never above the second. At low noise
the latents show the content; if the text has no effect there, guidance cannot change the colours."""
TEXT_WIDTH = 128
TEXT_LENGTH = 77
VOCABULARY = 800


@dataclass(frozen=True)
class Stage:
    """One training stage. The learning rate follows a cosine over `minutes` of training time."""

    minutes: float
    batch: int
    learning_rate: float
    ema_decay: float


@dataclass(frozen=True)
class Recipe:
    images: int
    crude_images: int
    autoencoder: Stage
    diffusion: Stage
    polish: Stage
    """Training of the decoder alone, at the end."""
    crop_share: float = 0.75
    """Share of the autoencoder's training time on crops of 64 pixels; whole images then adapt its GroupNorms."""
    caption_dropout: float = 0.1
    checkpoint_every_min: float = 1.0
    autoencoder_widths: tuple[int, ...] = field(default=(32, 64, 96))
    unet_widths: tuple[int, ...] = field(default=(48, 64, 128, 192))


CPU = Recipe(
    images=12_000,
    crude_images=1_500,
    autoencoder=Stage(minutes=7.8, batch=16, learning_rate=1.5e-3, ema_decay=0.995),
    diffusion=Stage(minutes=90, batch=32, learning_rate=1.2e-3, ema_decay=0.997),
    polish=Stage(minutes=6, batch=16, learning_rate=1.0e-3, ema_decay=0.995),
)
CUDA = Recipe(
    images=100_000,
    crude_images=5_000,
    autoencoder=Stage(minutes=8, batch=64, learning_rate=1.5e-3, ema_decay=0.999),
    diffusion=Stage(minutes=20, batch=256, learning_rate=1.0e-3, ema_decay=0.9995),
    polish=Stage(minutes=4, batch=64, learning_rate=1.0e-3, ema_decay=0.999),
)


def recipe_for(device: torch.device) -> Recipe:
    return CUDA if device.type == "cuda" else CPU
