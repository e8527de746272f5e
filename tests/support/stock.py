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


def guidance_off_after(steps: int, pipeline: DiffusionPipeline) -> dict[str, Any]:
    """Return the arguments that turn guidance off, as the documentation of diffusers does it."""
    names = pipeline._callback_tensor_inputs
    doubled = [name for name in names if name != "latents" and not name.startswith(("negative_", "add_neg_"))]

    def turn_off(pipeline: DiffusionPipeline, index: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if index + 1 != steps:
            return {}
        pipeline._guidance_scale = 0.0
        return {name: _with_prompt(tensors[name]) for name in doubled}

    return {"callback_on_step_end": turn_off, "callback_on_step_end_tensor_inputs": doubled}


def _with_prompt(rows: Any) -> Any:
    """Return the second half of the rows of a tensor, or of each in a list."""
    return [_with_prompt(one) for one in rows] if isinstance(rows, list) else rows.chunk(2)[-1]
