"""From a job's spec and inputs to work for the engine: the stock pipeline and its arguments, one picture each."""

from typing import Any

import torch
from diffusers import DiffusionPipeline

from app.contract.spec import FLOW_SCHEDULERS, JobSpec, Task
from worker.engine import Ticket
from worker.engine.engine import Work
from worker.inputs import Inputs
from worker.pipelines.models import Model
from worker.pipelines.prompts import embedded


def make_work(model: Model, spec: JobSpec, inputs: Inputs, index: int) -> Work:
    """The work of one result picture. It returns (1, 3, height, width) in [0, 1]."""
    if spec.strength == 0 and inputs.picture is not None:
        picture = inputs.picture
        return lambda _ticket: round_trip(model, picture)
    return lambda ticket: denoise(model, spec, inputs, index, ticket)


def round_trip(model: Model, picture: torch.Tensor) -> torch.Tensor:
    """The picture through the autoencoder and back: what strength 0 means. No noise, no denoiser.

    Latents stay as they are: whatever a pipeline shifts and scales them by, it takes back before it decodes.
    """
    pixels = (2 * picture - 1).to(model.device, model.dtype)
    if model.is_video_vae:
        pixels = pixels.unsqueeze(2)  # one frame
    encoded = model.vae.encode(pixels)
    decoded: torch.Tensor = model.vae.decode(encoded.latent_dist.mode(), return_dict=False)[0]
    if model.is_video_vae:
        decoded = decoded[:, :, 0]
    return (decoded / 2 + 0.5).clamp(0, 1)


def denoise(model: Model, spec: JobSpec, inputs: Inputs, index: int, ticket: Ticket) -> torch.Tensor:
    """The stock pipeline of the task, with a scheduler and a CPU generator of this picture's own."""
    pipeline = model.pipeline(spec.task, spec.scheduler)
    order = getattr(pipeline.scheduler, "order", 1)

    def note_step(_pipeline: DiffusionPipeline, i: int, _t: Any, _kwargs: dict[str, Any]) -> dict[str, Any]:
        ticket.step = min(-(-(i + 1) // order), spec.steps_run)  # a second-order sampler calls twice a step
        return {}

    images: torch.Tensor = pipeline(
        num_inference_steps=spec.num_inference_steps,
        generator=torch.Generator("cpu").manual_seed(spec.seed + index),
        output_type="pt",
        callback_on_step_end=note_step,
        **_arguments(model, pipeline, spec, inputs),
    ).images
    return images


def _arguments(model: Model, pipeline: DiffusionPipeline, spec: JobSpec, inputs: Inputs) -> dict[str, Any]:
    arguments = model.family.adapt(spec, {**_text(spec), **_conditions(spec, inputs)})
    return embedded(pipeline, spec, arguments) if model.family.clip_prompts else arguments


def _text(spec: JobSpec) -> dict[str, Any]:
    return {
        "prompt": spec.prompt,
        "negative_prompt": spec.negative_prompt or None,  # None is what leaving it out means to a pipeline
        "guidance_scale": spec.guidance_scale,
    }


def _conditions(spec: JobSpec, inputs: Inputs) -> dict[str, Any]:
    """The arguments by which the pipelines of the tasks differ."""
    conditions: dict[str, Any] = {"image": inputs.picture, "strength": _strength_that_steps(spec)}
    if spec.task is Task.INPAINT:
        conditions |= {"mask_image": inputs.mask, "width": spec.width, "height": spec.height}
    return conditions


def _strength_that_steps(spec: JobSpec) -> float:
    """The strength, raised where `int(steps * strength)` is 0: pipelines fail on that, and we promise one step."""
    if spec.scheduler in FLOW_SCHEDULERS:
        return max(spec.strength, 1e-6)  # such pipelines round up, unless it vanishes beside 1
    if int(spec.num_inference_steps * spec.strength) >= 1:
        return spec.strength
    return min(1.0, 1.5 / spec.num_inference_steps)  # in the middle of the values that give one step
