"""Runs the demo model through the stock diffusers pipeline, many pictures at a time, to evaluate and to show it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoPipelineForImage2Image, DPMSolverMultistepScheduler, StableDiffusionImg2ImgPipeline
from PIL import Image

from .dataset import Pictures

STEPS = 25
BATCH = 16


class Artist:
    """The pipeline with the dpmpp_2m scheduler; picture i of every call starts from noise seed i."""

    def __init__(self, weights: Path) -> None:
        pipeline: StableDiffusionImg2ImgPipeline = AutoPipelineForImage2Image.from_pretrained(
            weights, torch_dtype=torch.float32
        )
        pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
        pipeline.set_progress_bar_config(disable=True)
        self.pipeline = pipeline

    def change(self, pictures: Pictures, prompts: list[str], strength: float, guidance: float) -> Pictures:
        """(n, 128, 128, 3): each picture changed as its prompt asks."""
        changed = [
            self.pipeline(
                prompt=prompts[start : start + BATCH],
                image=[Image.fromarray(picture) for picture in pictures[start : start + BATCH]],
                strength=strength,
                guidance_scale=guidance,
                num_inference_steps=STEPS,
                generator=[
                    torch.Generator().manual_seed(start + i) for i in range(len(prompts[start : start + BATCH]))
                ],
                output_type="np",
            ).images
            for start in range(0, len(prompts), BATCH)
        ]
        return np.round(np.concatenate(changed) * 255).astype(np.uint8)

    @torch.inference_mode()
    def restore(self, pictures: Pictures) -> Pictures:
        """(n, 128, 128, 3): each picture through the autoencoder and back, nothing else."""
        pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1.0
        vae = self.pipeline.vae
        parts = [pixels[start : start + BATCH] for start in range(0, len(pixels), BATCH)]
        restored = [vae.decode(vae.encode(part).latent_dist.mode()).sample for part in parts]
        as_bytes = (torch.cat(restored).clamp(-1.0, 1.0) + 1.0) * 127.5
        return as_bytes.round().byte().permute(0, 2, 3, 1).numpy()
