"""Runs the demo model in the stock diffusers pipeline on batches of images, for evaluation and figures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoPipelineForImage2Image, DPMSolverMultistepScheduler, StableDiffusionImg2ImgPipeline
from PIL import Image

from .dataset import Images

STEPS = 25
BATCH = 16


class BatchPipeline:
    """The image-to-image pipeline with the dpmpp_2m scheduler. Image i of every call has seed i."""

    def __init__(self, weights: Path) -> None:
        pipeline: StableDiffusionImg2ImgPipeline = AutoPipelineForImage2Image.from_pretrained(
            weights, torch_dtype=torch.float32
        )
        pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
        pipeline.set_progress_bar_config(disable=True)
        self.pipeline = pipeline

    def change(self, images: Images, prompts: list[str], strength: float, guidance: float) -> Images:
        """Run image-to-image with one prompt per image. Returns (n, 128, 128, 3)."""
        changed = [
            self.pipeline(
                prompt=prompts[start : start + BATCH],
                image=[Image.fromarray(image) for image in images[start : start + BATCH]],
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
    def restore(self, images: Images) -> Images:
        """Encode and decode images with the autoencoder. Returns (n, 128, 128, 3)."""
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1.0
        vae = self.pipeline.vae
        parts = [pixels[start : start + BATCH] for start in range(0, len(pixels), BATCH)]
        restored = [vae.decode(vae.encode(part).latent_dist.mode()).sample for part in parts]
        as_bytes = (torch.cat(restored).clamp(-1.0, 1.0) + 1.0) * 127.5
        return as_bytes.round().byte().permute(0, 2, 3, 1).numpy()
