"""Lets the guidance and the steps of a job's pipeline be calculated together with those of other jobs.

The pipeline gets outputs of its denoiser as deferred tensors. What it does with them is noted, as far as it is a sum,
and calculated when the denoiser is called again, for all jobs of that call.
"""

from collections.abc import Callable
from copy import copy
from typing import Any

import torch
from diffusers import DiffusionPipeline

from ..engine.batching import is_half_on_cpu
from ..engine.deferred import Sum


def defer_steps(pipeline: DiffusionPipeline) -> None:
    """Change the pipeline object of a job, if steps of its scheduler are tables."""
    if getattr(pipeline.scheduler, "tables", None) is None:
        return
    for name in ("unet", "transformer"):
        module = getattr(pipeline, name, None)
        if module is not None:
            wrapped = copy(module)
            wrapped.forward = _deferring(module.forward)
            setattr(pipeline, name, wrapped)


def _deferring(forward: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        if type(output) is not tuple or not isinstance(output[0], torch.Tensor) or is_half_on_cpu(output[0]):
            return output
        return (Sum.of(output[0]), *output[1:])

    return call
