"""Engine tasks for job specs: the stock pipeline of the task and its arguments, for one result image each."""

from collections.abc import Container, Mapping
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img import retrieve_latents
from PIL import Image

from img2img.domain.conditioning import MaskContent
from img2img.domain.parameters import FLOW_SCHEDULERS, Speed
from img2img.domain.spec import (
    ControlMapSpec,
    ControlSpec,
    DenoisingSpec,
    EditSpec,
    Img2ImgSpec,
    InpaintSpec,
    JobSpec,
    MaskSpec,
    RefinedSpec,
    StrengthSpec,
)
from img2img.errors import JobError

from ..engine.task import EngineTask, TaskFunction
from ..images.inputs import Inputs, to_pixels, to_tensor
from .conditioning.adapters import JobAdapters
from .conditioning.denoiser_changes import change_denoiser, tiling_vae
from .conditioning.mask_content import replace_masked_latents
from .conditioning.prompt_embeddings import embed_prompts
from .conditioning.regions import attach_regions
from .conditioning.soft_inpainting import SoftMask
from .conditioning.upscalers import step_callback
from .deferred_steps import defer_steps
from .model import Model
from .parameters import call_parameters, optional_arguments
from .prepared_job import PreparedJob, prepare
from .schedulers import seed_noise
from .step_cache import attach_step_cache
from .uploads import upload

NO_ADAPTERS = JobAdapters()


def make_task_function(model: Model, spec: JobSpec, inputs: Inputs, index: int) -> TaskFunction:
    """Return the function that computes one result image: a (1, 3, height, width) tensor in [0, 1]."""
    if isinstance(spec, ControlMapSpec):
        return lambda _ticket: control_maps(model, spec, inputs)[0]
    if isinstance(spec, MaskSpec):
        return lambda _ticket: mask_image(model, spec, inputs)
    if spec.steps_run == 0:
        return lambda _ticket: encode_decode(model, inputs.image, fast_vae=spec.fast_vae, tiling=spec.seamless_tiling)
    # The LoRAs of the model can change before the task starts.
    adapters = model.adapters.for_job(spec, inputs)
    job = prepare(model, spec, inputs, spec.image_seed(index), spec.image_subseed(index))
    return lambda engine_task: denoise(model, spec, inputs, job, engine_task, adapters)


def encode_decode(model: Model, image: torch.Tensor | None, *, fast_vae: bool, tiling: bool = False) -> torch.Tensor:
    """Return an image, (1, 3, height, width) in [0, 1], after encoding and decoding it: the result at strength 0.

    The shift and scale that pipelines apply to latents are left out: they undo them before decoding.
    """
    assert image is not None
    if model.vae is None:
        return image.clone()
    pixels = (2 * image - 1).to(model.device, model.dtype)
    if model.is_video_vae:
        pixels = pixels.unsqueeze(2)  # one frame
    vae: Any = model.fast_vae if fast_vae else model.vae
    if tiling:
        vae = tiling_vae(vae)
    encoded = vae.encode(pixels)
    has_name = hasattr(encoded, "latent_dist") or hasattr(encoded, "latents")
    latents = retrieve_latents(encoded, sample_mode="argmax") if has_name else encoded[0]
    # Vector-quantised autoencoders quantise their input when they decode, by default.
    exact = {"force_not_quantize": True} if hasattr(vae, "quantize") else {}
    decoded: torch.Tensor = vae.decode(latents, return_dict=False, **exact)[0]
    if model.is_video_vae:
        decoded = decoded[:, :, 0]
    return (decoded / 2 + 0.5).clamp(0, 1)


def control_maps(model: Model, spec: JobSpec, inputs: Inputs) -> list[torch.Tensor]:
    """Return the job's control maps, (1, 3, height, width) in [0, 1]; runs the annotators that are models."""
    return [
        model.annotators[control.type].make_map(loaded, (spec.width, spec.height))
        if control.preprocess and control.type in model.annotators
        else loaded
        for control, loaded in zip(spec.control_maps, inputs.controls, strict=True)
    ]


def mask_image(model: Model, spec: MaskSpec, inputs: Inputs) -> torch.Tensor:
    """Return the mask that a job asks for, (1, 3, height, width): 1 where the thing is."""
    assert inputs.image is not None
    return to_tensor(model.segmenters.mask(Image.fromarray(to_pixels(inputs.image)), spec.find).convert("RGB"))


def denoise(
    model: Model,
    spec: DenoisingSpec,
    inputs: Inputs,
    job: PreparedJob,
    engine_task: EngineTask,
    adapters: JobAdapters = NO_ADAPTERS,
) -> torch.Tensor:
    """Run the stock pipeline of the task."""
    if model.turns is None:
        return _denoise(model, spec, inputs, job, engine_task, adapters)
    with model.turns.take():
        return _denoise(model, spec, inputs, job, engine_task, adapters)


def _denoise(
    model: Model,
    spec: DenoisingSpec,
    inputs: Inputs,
    job: PreparedJob,
    engine_task: EngineTask,
    adapters: JobAdapters,
) -> torch.Tensor:
    pipeline = job.pipeline
    if isinstance(spec, RefinedSpec) and spec.denoising_end is not None:
        images = _refine(model, spec, inputs, job, engine_task, adapters)
    else:
        adapters.activate(pipeline)
        if inputs.noise is not None:
            _start_from(inputs.noise, pipeline)
        controlled: dict[str, Any] = {}
        if spec.control_maps:
            maps = control_maps(model, spec, inputs)
            controlled = model.controlnets.attach(
                pipeline,
                spec.task,
                spec.control_maps,
                maps,
                generator=job.generator,
                guidance_scale=spec.guidance_scale,
            )
        images = _call(model, pipeline, spec, inputs, job, engine_task, adapters, controlled)
    # A schedule with `denoising_start` can have one step less.
    engine_task.step = engine_task.steps_before + spec.steps_run
    model.preparation.learn(job.kind, job.generator)
    if spec.subseed_strength and not job.generator.has_varied:
        raise JobError("the pipeline of this model draws no initial noise that `subseed` could vary; leave it out")
    return images


def _refine(
    model: Model,
    spec: Img2ImgSpec | InpaintSpec,
    inputs: Inputs,
    job: PreparedJob,
    engine_task: EngineTask,
    adapters: JobAdapters,
) -> torch.Tensor:
    """Run the base model up to `denoising_end`, and the refiner from there. One without a step is left out.

    Raises:
        JobError: the base model has no step, and the job has adapters, which only the base model takes.
    """
    assert spec.denoising_end is not None
    base, refiner = job.pipeline, model.refiner(spec.task, spec.scheduler, spec.sigmas, fast_vae=spec.fast_vae)
    base_steps = _steps_before(model.pipeline(spec.task, spec.scheduler, spec.sigmas), spec)
    if not base_steps:
        if adapters.modules:
            raise JobError(
                "all steps are after `denoising_end`, and the refiner that runs them takes no LoRAs and no image "
                "prompts; give a higher strength, or `denoising_end` 1 for no refiner"
            )
        return _call(model, refiner, spec, inputs, job, engine_task, NO_ADAPTERS)
    adapters.activate(base)
    if not _steps_before(model.refiner(spec.task, spec.scheduler, spec.sigmas), spec, after=True):
        return _call(model, base, spec, inputs, job, engine_task, adapters)
    until = {"denoising_end": spec.denoising_end, "output_type": "latent"}
    latents = _call(model, base, spec, inputs, job, engine_task, adapters, until)
    since = {"image": latents, "denoising_start": spec.denoising_end, "strength": None}
    return _call(model, refiner, spec, inputs, job, engine_task, NO_ADAPTERS, since, steps_done=base_steps)


def _steps_before(pipeline: DiffusionPipeline, spec: Img2ImgSpec | InpaintSpec, *, after: bool = False) -> int:
    """Return how many steps of a job are before `denoising_end`, as the pipelines count them.

    Args:
        pipeline: a pipeline object with a scheduler that is not used otherwise.
        after: count the steps after it instead.
    """
    scheduler, end = pipeline.scheduler, spec.denoising_end
    assert end is not None
    scheduler.set_timesteps(spec.schedule_steps)
    # The pipelines do not count 0 as a start.
    start = spec.denoising_start or None
    timesteps, _ = pipeline.get_timesteps(spec.schedule_steps, _strength_that_steps(spec), "cpu", denoising_start=start)
    last = scheduler.config.num_train_timesteps
    cutoff = round(last - end * last)
    calls = int((timesteps < cutoff if after else timesteps >= cutoff).sum())
    return -(-calls // getattr(scheduler, "order", 1))


def _call(
    model: Model,
    pipeline: DiffusionPipeline,
    spec: DenoisingSpec,
    inputs: Inputs,
    job: PreparedJob,
    engine_task: EngineTask,
    adapters: JobAdapters,
    more: Mapping[str, Any] = {},
    *,
    steps_done: int = 0,
) -> torch.Tensor:
    """Call a pipeline object of a job and return its images or latents.

    Args:
        more: further arguments, which replace those of the spec; None removes one.
        steps_done: steps that another pipeline has done before.
    """
    seed = job.generator.initial_seed()
    seed_noise(pipeline.scheduler, seed)
    soft_mask = None
    if isinstance(spec, InpaintSpec) and "image" not in more:
        assert inputs.mask is not None
        if spec.region.is_soft:
            soft_mask = SoftMask(pipeline, inputs.mask)
        # At strength 1 pipelines start from pure noise.
        elif spec.strength < 1 and spec.region.content is not MaskContent.ORIGINAL:
            replace_masked_latents(pipeline, spec.region.content, inputs.mask, seed)
    change_denoiser(pipeline, spec)
    # After the changes, which the calls of all regions have.
    attach_regions(pipeline, spec, inputs.regions, model.embeddings, has_long_prompt=job.has_long_prompt)
    order = getattr(pipeline.scheduler, "order", 1)
    # Once, because they are calculated.
    steps_run, guided_steps, has_cutoff = spec.steps_run, spec.guided_steps, spec.guidance_until < 1
    if spec.speed is Speed.EXACT:
        defer_steps(pipeline)
    end_call = attach_step_cache(pipeline, spec, engine_task)

    def count_step(_pipeline: DiffusionPipeline, i: int, _t: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        end_call()
        changed = {"latents": soft_mask.blend(kwargs["latents"], i + 1)} if soft_mask else {}
        engine_task.latents = (kwargs | changed).get("latents")
        # A second-order scheduler calls back twice per step.
        step = min(steps_done - (-(i + 1) // order), steps_run)
        engine_task.step = engine_task.steps_before + step
        if has_cutoff and step >= guided_steps:
            engine_task.conditional = model.family.conditional
        return changed

    takes = call_parameters(pipeline)
    callbacks: dict[str, Any] = {"callback_on_step_end": count_step}
    if "callback_on_step_end" not in takes:
        # Older pipelines take `callback`, and some take none.
        callbacks = {"callback": step_callback(spec, engine_task)} if "callback" in takes else {}
    arguments = {
        "num_inference_steps": spec.schedule_steps,
        "generator": job.generator,
        # Pipelines that are not known may return other values than those in [0, 1] as tensors.
        "output_type": "pil" if model.family.is_generic else "pt",
        **callbacks,
        **adapters.add_images(pipeline, _arguments(model, pipeline, spec, inputs, job, takes)),
        **optional_arguments(spec, takes),
        **adapters.arguments,
        **more,
    }
    output = pipeline(**{name: value for name, value in arguments.items() if value is not None or name not in more})
    # Not by name, which differs.
    images: Any = output[0]
    return to_tensor(images[0].convert("RGB")) if model.family.is_generic else images


def _arguments(
    model: Model,
    pipeline: DiffusionPipeline,
    spec: DenoisingSpec,
    inputs: Inputs,
    job: PreparedJob,
    takes: Container[str],
) -> dict[str, Any]:
    arguments = model.family.adapt(spec, {**_text(model, spec), **_conditions(spec, inputs, takes)})
    if not model.family.clip_prompts:
        return arguments
    return embed_prompts(pipeline, spec, arguments, has_long_prompt=job.has_long_prompt)


def _text(model: Model, spec: DenoisingSpec) -> dict[str, Any]:
    return {
        "prompt": model.embeddings.expand(spec.prompt),
        # None means no negative prompt to a pipeline.
        "negative_prompt": model.embeddings.expand(spec.negative_prompt) or None,
        "guidance_scale": spec.guidance_scale,
    }


def _conditions(spec: DenoisingSpec, inputs: Inputs, takes: Container[str]) -> dict[str, Any]:
    """Return the arguments by which the pipelines of the tasks differ.

    Args:
        takes: Names of the pipeline's parameters.
    """
    size = {"width": spec.width, "height": spec.height}
    if isinstance(spec, EditSpec):
        guidance = {"image_guidance_scale": spec.image_guidance_scale}
        references = {"references": inputs.references} if inputs.references else {}
        return {"image": inputs.image, **references, **guidance, **(size if "width" in takes else {})}
    conditions: dict[str, Any] = {}
    if not isinstance(spec, ControlSpec):
        conditions |= {"image": inputs.image, "strength": _strength_that_steps(spec)}
    if isinstance(spec, InpaintSpec) and spec.region.is_soft:
        # It is made by image-to-image.
        return conditions
    if isinstance(spec, InpaintSpec):
        conditions |= {"mask_image": inputs.mask}
    if isinstance(spec, InpaintSpec | ControlSpec):
        conditions |= size
    return conditions


def _start_from(noise: torch.Tensor, pipeline: DiffusionPipeline) -> None:
    """Make the scheduler of a job's pipeline object add `noise` instead of the noise that the pipeline samples."""
    add_noise = pipeline.scheduler.add_noise

    def add_given_noise(latents: torch.Tensor, sampled: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        assert sampled.shape == noise.shape
        noised: torch.Tensor = add_noise(latents, upload(noise, sampled.device, sampled.dtype), timesteps)
        return noised

    pipeline.scheduler.add_noise = add_given_noise


def _strength_that_steps(spec: StrengthSpec) -> float:
    """Return the strength, raised where it gives no step: pipelines fail then, and a job promises at least one."""
    if spec.scheduler in FLOW_SCHEDULERS:
        # The pipelines of flow models round up, unless the strength is lost to rounding.
        return max(spec.strength, 1e-6)
    if int(spec.schedule_steps * spec.strength) >= 1:
        return spec.strength
    # The middle of the values that give one step.
    return min(1.0, 1.5 / spec.schedule_steps)
