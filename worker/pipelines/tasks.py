"""From a job's spec and pixels to work for the engine: the stock pipeline and its arguments, one picture each."""

from typing import Any

import torch
from diffusers import DiffusionPipeline

from app.contract.spec import JobSpec
from worker.engine import Ticket
from worker.engine.engine import Work
from worker.pipelines.models import Model


def make_work(model: Model, spec: JobSpec, picture: torch.Tensor, index: int) -> Work:
    """The work of one result picture.

    picture: (1, 3, height, width), float32 in [0, 1]. The work returns a tensor of the same form.
    """
    if spec.strength == 0:
        return lambda _ticket: round_trip(model, picture)
    return lambda ticket: img2img(model, spec, picture, index, ticket)


def round_trip(model: Model, picture: torch.Tensor) -> torch.Tensor:
    """The picture through the autoencoder and back: what strength 0 means. No noise, no UNet."""
    encoded = model.vae.encode((2 * picture - 1).to(model.device, model.dtype))
    decoded: torch.Tensor = model.vae.decode(encoded.latent_dist.mode(), return_dict=False)[0]
    return (decoded / 2 + 0.5).clamp(0, 1)


def img2img(model: Model, spec: JobSpec, picture: torch.Tensor, index: int, ticket: Ticket) -> torch.Tensor:
    """The stock image-to-image pipeline, with a scheduler and a CPU generator of this picture's own."""
    pipeline = model.pipeline(spec.scheduler)
    order = getattr(pipeline.scheduler, "order", 1)

    def note_step(_pipeline: DiffusionPipeline, i: int, _t: Any, _kwargs: dict[str, Any]) -> dict[str, Any]:
        ticket.step = min(-(-(i + 1) // order), spec.steps_run)  # a second-order sampler calls twice a step
        return {}

    images: torch.Tensor = pipeline(
        prompt=spec.prompt,
        negative_prompt=spec.negative_prompt or None,  # None is what leaving it out means to a pipeline
        image=picture,
        strength=_strength_that_steps(spec),
        num_inference_steps=spec.num_inference_steps,
        guidance_scale=spec.guidance_scale,
        generator=torch.Generator("cpu").manual_seed(spec.seed + index),
        output_type="pt",
        callback_on_step_end=note_step,
    ).images
    return images


def _strength_that_steps(spec: JobSpec) -> float:
    """The strength, raised where `int(steps * strength)` is 0: pipelines fail on that, and we promise one step."""
    if int(spec.num_inference_steps * spec.strength) >= 1:
        return spec.strength
    return min(1.0, 1.5 / spec.num_inference_steps)  # in the middle of the values that give one step
