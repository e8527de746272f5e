"""Engine tasks for job specs: the stock pipeline of the task and its arguments, for one result image each."""

import inspect
from collections.abc import Container, Mapping
from typing import Any

import torch
from diffusers import DiffusionPipeline

from img2img.domain.spec import FLOW_SCHEDULERS, JobSpec, Task

from ..engine.task import EngineTask, TaskFunction
from ..images.inputs import Inputs
from .conditioning.controlnets import control_arguments
from .conditioning.prompt_embeddings import embed_prompts
from .conditioning.upscalers import step_callback
from .model import Model


def make_task_function(model: Model, spec: JobSpec, inputs: Inputs, index: int) -> TaskFunction:
    """The work of one result picture. It returns (1, 3, height, width) in [0, 1]."""
    if spec.task is Task.CONTROL_MAP:
        return lambda _ticket: control_maps(model, spec, inputs)[0]
    if spec.strength == 0 and inputs.picture is not None:
        picture = inputs.picture
        return lambda _ticket: encode_decode(model, picture)
    seen = model.adapters.image_prompt_kwargs(spec, inputs)
    return lambda ticket: denoise(model, spec, inputs, index, ticket, seen)


def encode_decode(model: Model, picture: torch.Tensor) -> torch.Tensor:
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


def control_maps(model: Model, spec: JobSpec, inputs: Inputs) -> list[torch.Tensor]:
    """The maps of the job's controls, (1, 3, height, width) in [0, 1]: those that need a model are made now."""
    return [
        model.annotators[control.type].make_map(loaded, (spec.width, spec.height))
        if control.preprocess and control.type in model.annotators
        else loaded
        for control, loaded in zip(spec.controls, inputs.controls, strict=True)
    ]


def denoise(
    model: Model, spec: JobSpec, inputs: Inputs, index: int, ticket: EngineTask, seen: Mapping[str, Any]
) -> torch.Tensor:
    """The stock pipeline of the task, with a scheduler and a CPU generator of this picture's own."""
    pipeline = model.pipeline(spec.task, spec.scheduler, [control.type for control in spec.controls])
    model.adapters.activate(pipeline, spec)
    order = getattr(pipeline.scheduler, "order", 1)

    def note_step(_pipeline: DiffusionPipeline, i: int, _t: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        ticket.latents = kwargs.get("latents")
        # A second-order scheduler calls back twice per step.
        ticket.step = min(-(-(i + 1) // order), spec.steps_run)
        return {}

    if inputs.noise is not None:
        _start_from(inputs.noise, pipeline)
    takes = inspect.signature(pipeline.__call__).parameters
    modern = "callback_on_step_end" in takes
    images: torch.Tensor = pipeline(
        num_inference_steps=spec.num_inference_steps,
        generator=torch.Generator("cpu").manual_seed(spec.seed + index),
        output_type="pt",
        **({"callback_on_step_end": note_step} if modern else {"callback": step_callback(spec, ticket)}),
        **_arguments(model, pipeline, spec, inputs, takes),
        **seen,
    ).images
    # A schedule with `denoising_start` can have one step less.
    ticket.step = spec.steps_run
    return images


def _arguments(
    model: Model, pipeline: DiffusionPipeline, spec: JobSpec, inputs: Inputs, takes: Container[str]
) -> dict[str, Any]:
    arguments = model.family.adapt(spec, {**_text(spec), **_conditions(model, spec, inputs, takes)})
    return embed_prompts(pipeline, spec, arguments) if model.family.clip_prompts else arguments


def _text(spec: JobSpec) -> dict[str, Any]:
    return {
        "prompt": spec.prompt,
        "negative_prompt": spec.negative_prompt or None,  # None is what leaving it out means to a pipeline
        "guidance_scale": spec.guidance_scale,
    }


def _conditions(model: Model, spec: JobSpec, inputs: Inputs, takes: Container[str]) -> dict[str, Any]:
    """The arguments by which the pipelines of the tasks differ. takes: what the pipeline at hand can be given."""
    if spec.task is Task.EDIT:
        size = {"width": spec.width, "height": spec.height} if "width" in takes else {}
        return {"image": inputs.picture, "image_guidance_scale": spec.image_guidance_scale, **size}
    conditions: dict[str, Any] = {}
    if spec.task is not Task.CONTROL:
        conditions |= {"image": inputs.picture, "strength": _strength_that_steps(spec)}
    if spec.denoising_start is not None:
        conditions |= {"denoising_start": spec.denoising_start}
    if spec.task is Task.INPAINT:
        conditions |= {"mask_image": inputs.mask}
    if spec.task in (Task.INPAINT, Task.CONTROL):
        conditions |= {"width": spec.width, "height": spec.height}
    if spec.controls:
        maps = control_maps(model, spec, inputs)
        scales = [control.scale for control in spec.controls]
        spans = [(control.start, control.end) for control in spec.controls]
        conditions |= control_arguments(spec.task, maps, scales, spans)
    return conditions


def _start_from(noise: torch.Tensor, pipeline: DiffusionPipeline) -> None:
    """Make the scheduler of a job's pipeline object add `noise` instead of the noise that the pipeline samples."""
    add_noise = pipeline.scheduler.add_noise

    def add_given_noise(latents: torch.Tensor, sampled: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        assert sampled.shape == noise.shape
        noised: torch.Tensor = add_noise(latents, noise.to(sampled), timesteps)
        return noised

    pipeline.scheduler.add_noise = add_given_noise


def _strength_that_steps(spec: JobSpec) -> float:
    """The strength, raised where `int(steps * strength)` is 0: pipelines fail on that, and we promise one step."""
    if spec.scheduler in FLOW_SCHEDULERS:
        return max(spec.strength, 1e-6)  # such pipelines round up, unless it vanishes beside 1
    if int(spec.num_inference_steps * spec.strength) >= 1:
        return spec.strength
    return min(1.0, 1.5 / spec.num_inference_steps)  # in the middle of the values that give one step
