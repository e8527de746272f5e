"""Specs with defaults, for tests that care about few parameters."""

from typing import Any

from img2img.domain.spec import JobSpec


def make_spec(**changes: Any) -> JobSpec:
    parameters = {
        "model": "tiny",
        "image": "0" * 64,
        "prompt": "a red house",
        "negative_prompt": "",
        "strength": 1.0,
        "guidance_scale": 5.0,
        "num_inference_steps": 10,
        "scheduler": "ddim",
        "seed": 3,
        "num_images": 1,
        "width": 32,
        "height": 32,
        "resize": "crop",
    }
    return JobSpec.model_validate(parameters | changes)
