"""Super-resolution pipelines: Stable Diffusion x4 (pixels) and x2 (latents)."""

import copy
import math
from collections.abc import Callable
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline, SchedulerMixin, StableDiffusionUpscalePipeline

from img2img.domain.model_card import UpscalerCard
from img2img.domain.model_config import ComponentSource, ModelConfig, UpscalerSource
from img2img.domain.parameters import DIFFUSION_SCHEDULERS, Scheduler, Sigmas, Task
from img2img.domain.spec import DenoisingSpec, UpscaleSpec

from ...engine.task import EngineTask
from ...errors import StartupError
from ...images.inputs import Inputs
from ..families import Family
from ..host_schedulers import on_host
from ..job_noise import JobGenerator
from ..loading.components import build_pipeline, load_low_res_scheduler, load_pipeline_of, load_unet
from ..loading.failures import reporting_failures
from ..loading.locations import is_pipeline
from ..loading.placement import Placement
from ..loading.single_file import load_file_of
from ..loading.weights import is_single_file, resolve_weights
from ..parameters import call_parameters, optional_arguments, supported_parameters
from ..scheduler_kinds import sigmas_of
from ..schedulers import make_scheduler, names_of, seed_noise
from .prompt_embeddings import add_text_model

FACTORS = {"StableDiffusionUpscalePipeline": 4, "StableDiffusionLatentUpscalePipeline": 2}
# Default `noise_level` of StableDiffusionUpscalePipeline.
NOISE_LEVEL = 20
# Value that StableDiffusionUpscalePipeline writes over any other VAE scaling factor, with a warning.
PIPELINE_SCALING_FACTOR = 0.08333


def load_upscalers(
    config: ModelConfig, family: Family, base: DiffusionPipeline, placement: Placement
) -> dict[int, DiffusionPipeline]:
    """Load the `upscale` components of a model, by factor.

    Args:
        base: pipeline of the model, with gates; a component that is only a UNet uses its other modules.

    Raises:
        StartupError: if a component is not supported or cannot be loaded.
    """
    upscalers = {}
    for factor, source in sorted(config.upscale.items()):
        with reporting_failures(f"upscale.{factor}"):
            upscalers[factor] = _load(family, source, base, placement)
            placement.put_components(upscalers[factor])
    return upscalers


def _load(family: Family, source: ComponentSource, base: DiffusionPipeline, placement: Placement) -> DiffusionPipeline:
    if is_single_file(source):
        file = resolve_weights(source, "`weight_name`")
        return load_file_of(file, StableDiffusionUpscalePipeline, base, placement.load_device)
    if is_pipeline(source):
        return load_pipeline_of(source, placement.load_device, base.dtype)
    if not family.unet_upscalers:
        raise StartupError(f"a {family.name} model needs a whole pipeline as upscaler; {source.source} is only a UNet")
    unet, vae = load_unet(source, placement.load_device, base.dtype), base.vae
    # Latents, and the low-resolution image in RGB.
    channels = vae.config.latent_channels + 3
    levels = unet.config.num_class_embeds
    if unet.config.in_channels != channels or (levels or 0) <= NOISE_LEVEL:
        raise StartupError(
            f"the UNet of {source.source} is not an upscaler for this model: it needs `in_channels` "
            f"{channels} and `num_class_embeds` over {NOISE_LEVEL}, not {unet.config.in_channels} and {levels}"
        )
    # The pipeline overwrites the scaling factor of the VAE that it is built with. It gets a copy that shares the
    # weights; the copy gets the scaling factor of the model's latents back afterwards.
    copied = copy.copy(vae)
    copied.register_to_config(scaling_factor=PIPELINE_SCALING_FACTOR)
    scheduler = load_low_res_scheduler(source, levels)
    pipeline = build_pipeline(StableDiffusionUpscalePipeline, base, unet=unet, vae=copied, low_res_scheduler=scheduler)
    copied.register_to_config(scaling_factor=vae.config.scaling_factor)
    return pipeline


class Upscaler:
    """An upscaling pipeline of one factor, with gates."""

    def __init__(
        self, factor: int, pipeline: DiffusionPipeline, source: UpscalerSource, base: DiffusionPipeline
    ) -> None:
        """Wrap a loaded pipeline.

        Args:
            base: pipeline of the model.

        Raises:
            StartupError: if the pipeline does not upscale by `factor`.
        """
        class_name = type(pipeline).__name__
        if FACTORS.get(class_name) != factor:
            supported = ", ".join(f"{name} (factor {by})" for name, by in FACTORS.items())
            raise StartupError(f"upscale.{factor}: {class_name} does not upscale by {factor}; supported: {supported}")
        if factor == 4 and pipeline.vae_scale_factor != factor:
            raise StartupError(
                f"upscale.{factor}: the pipeline upscales by {pipeline.vae_scale_factor}, the scale factor of its VAE"
            )
        pipeline.set_progress_bar_config(disable=True)
        self.pipeline = pipeline
        self.vae = pipeline.vae
        # Pixels of the result along a side of a latent.
        self.latent_scale: int = pipeline.vae_scale_factor
        # The UNet must be able to halve the latents at each level, and the low-resolution image has whole pixels.
        multiple = self.latent_scale * math.lcm(2**pipeline.unet.num_upsamplers, factor)
        own, own_sigmas = names_of(pipeline.scheduler)
        self.card = UpscalerCard(
            times=factor,
            native_size=pipeline.unet.config.sample_size * self.latent_scale,
            size_multiple=multiple,
            schedulers=DIFFUSION_SCHEDULERS if factor == 4 else (Scheduler.EULER,),
            default_scheduler=(own or Scheduler.DDIM) if factor == 4 else Scheduler.EULER,
            default_sigmas=own_sigmas if factor == 4 else None,
            scheduler_sigmas=sigmas_of(DIFFUSION_SCHEDULERS) if factor == 4 else {},
            default_steps=source.steps or (30 if factor == 4 else 20),
            default_guidance_scale=source.guidance_scale or (9.0 if factor == 4 else 1.0),
            parameters=tuple(supported_parameters({Task.UPSCALE: pipeline})),
            # Relative to the model, per pixel of the result: the cost of a denoiser depends on latents.
            work=(base.vae_scale_factor / self.latent_scale) ** 2,
        )

    def upscale(self, spec: UpscaleSpec, inputs: Inputs, seed: int, engine_task: EngineTask) -> torch.Tensor:
        """Run the stock pipeline on one tile, with a new scheduler and a CPU generator for `seed`.

        Returns:
            Image of shape (1, 3, height, width) with values in [0, 1].
        """
        pipeline = copy.copy(self.pipeline)
        pipeline.scheduler = self._scheduler(spec.scheduler, spec.sigmas)
        seed_noise(pipeline.scheduler, seed)
        if spec.clip_skip:
            add_text_model(pipeline)
        noise = inputs.noise
        image: torch.Tensor = pipeline(
            prompt=spec.prompt,
            negative_prompt=spec.negative_prompt or None,
            image=inputs.image,
            num_inference_steps=spec.num_inference_steps,
            guidance_scale=spec.guidance_scale,
            generator=JobGenerator(seed),
            latents=None if noise is None else noise.to(pipeline.unet.dtype),
            output_type="pt",
            callback=step_callback(spec, engine_task),
            **optional_arguments(spec, call_parameters(pipeline)),
        ).images
        return image

    def _scheduler(self, name: Scheduler, sigmas: Sigmas | None) -> SchedulerMixin:
        base = self.pipeline.scheduler
        # The latent upscaler reads `scheduler.sigmas` in its loop, so it works with its Euler scheduler only.
        if isinstance(self.pipeline, diffusers.StableDiffusionLatentUpscalePipeline):
            return diffusers.EulerDiscreteScheduler.from_config(base.config)
        return on_host(make_scheduler(name, base, sigmas))


def step_callback(spec: DenoisingSpec, engine_task: EngineTask) -> Callable[[int, Any, Any], None]:
    """Return a `callback` for pipelines without `callback_on_step_end` that counts the steps of a job."""

    def count(i: int, _timestep: Any, _latents: Any) -> None:
        engine_task.step = engine_task.steps_before + min(i + 1, spec.steps_run)

    return count
