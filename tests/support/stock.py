"""Calls stock pipelines of diffusers, for comparison."""

from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline

from img2img.domain.spec import DenoisingSpec


def call_stock(pipeline: DiffusionPipeline, spec: DenoisingSpec, **arguments: Any) -> np.ndarray:
    """Return the pixels of the first image of a pipeline with the steps, the guidance scale and the seed of a spec.

    Args:
        arguments: All other arguments of the pipeline.
    """
    image = pipeline(
        num_inference_steps=spec.num_inference_steps,
        guidance_scale=spec.guidance_scale,
        generator=torch.Generator().manual_seed(spec.seed),
        **arguments,
    ).images[0]
    return np.asarray(image)
