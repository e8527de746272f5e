"""Training settings of each companion, for a CPU and for a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ..recipe import Stage


@dataclass(frozen=True)
class CompanionRecipe:
    images: int
    """Images of the demo model's training set, for ControlNets, inpainting and image prompts."""
    pairs: int
    """Pairs of images before and after an instruction."""
    large_images: int
    """Images of 512 x 512 pixels, for the upscaler."""
    blueprints: int
    """Images of a new style, for a LoRA."""
    stages: Mapping[str, Stage]
    checkpoint_every_min: float = 1.0


CPU = CompanionRecipe(
    images=12_000,
    pairs=4_000,
    large_images=700,
    blueprints=1_000,
    stages={
        "lines": Stage(minutes=18, batch=16, learning_rate=1.0e-3, ema_decay=0.995),
        "depth": Stage(minutes=10, batch=16, learning_rate=1.0e-3, ema_decay=0.995),
        "segmentation": Stage(minutes=12, batch=16, learning_rate=1.0e-3, ema_decay=0.995),
        "edit": Stage(minutes=26, batch=16, learning_rate=5.0e-4, ema_decay=0.995),
        "inpaint": Stage(minutes=18, batch=16, learning_rate=5.0e-4, ema_decay=0.995),
        "upscaler": Stage(minutes=18, batch=16, learning_rate=1.0e-3, ema_decay=0.995),
        "lora": Stage(minutes=4, batch=16, learning_rate=2.0e-3, ema_decay=0.99),
        "segmenter": Stage(minutes=5, batch=32, learning_rate=2.0e-3, ema_decay=0.99),
        "depth_estimator": Stage(minutes=6, batch=8, learning_rate=2.0e-3, ema_decay=0.99),
        "image_encoder": Stage(minutes=4, batch=64, learning_rate=1.0e-3, ema_decay=0.99),
        "image_prompt": Stage(minutes=8, batch=16, learning_rate=1.0e-3, ema_decay=0.995),
    },
)
CUDA = CompanionRecipe(
    images=50_000,
    pairs=30_000,
    large_images=4_000,
    blueprints=2_000,
    stages={
        name: Stage(minutes=6, batch=128, learning_rate=stage.learning_rate, ema_decay=0.999)
        for name, stage in CPU.stages.items()
    },
)


def recipe_for(device: torch.device) -> CompanionRecipe:
    return CUDA if device.type == "cuda" else CPU
