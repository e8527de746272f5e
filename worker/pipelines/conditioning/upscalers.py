"""Super-resolution models: the stock pipelines that enlarge by 4 in pixels, and by 2 in latents."""

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DDPMScheduler, DiffusionPipeline, SchedulerMixin, StableDiffusionUpscalePipeline

from img2img.domain.model_card import UpscalerCard
from img2img.domain.spec import DIFFUSION_SCHEDULERS, JobSpec, Scheduler

from ...engine import EngineTask
from ...errors import StartupError
from ...images.inputs import Inputs
from ..families import Family
from ..loading.components import build, is_pipeline, load_pipeline, load_unet
from ..loading.model_config import ComponentSource, ModelConfig, UpscalerSource
from ..schedulers import make_scheduler, name_of

TIMES = {"StableDiffusionUpscalePipeline": 4, "StableDiffusionLatentUpscalePipeline": 2}
# How the published model by 4 was shown its small pictures: with noise of this kind on them.
LOW_RES_NOISE = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "scaled_linear"}
NOISE_LEVEL = 20  # of that noise, where nothing is said to the pipeline
SET_BY_PIPELINE = 0.08333  # in the place of any other scaling factor, with a warning


def load_upscalers(entry: ModelConfig, family: Family, base: DiffusionPipeline) -> dict[int, DiffusionPipeline]:
    """The pipelines of the parts `upscale`, by factor. Raises StartupError.

    base: the model's own, behind gates. A part that is a whole pipeline keeps its own modules; a UNet is given those.
    """
    return {times: _load(entry.name, family, part, base) for times, part in sorted(entry.upscale.items())}


def _load(model: str, family: Family, part: ComponentSource, base: DiffusionPipeline) -> DiffusionPipeline:
    if is_pipeline(part):
        return load_pipeline(part, base.device, base.dtype)
    if not family.unet_upscalers:
        raise StartupError(f"model {model!r}: a {family.name} takes an upscaler as a whole pipeline, not as a UNet")
    unet, vae = load_unet(part, base.device, base.dtype), base.vae
    channels = vae.config.latent_channels + 3  # of the latents, and of the small picture
    levels = unet.config.num_class_embeds
    if unet.config.in_channels != channels or (levels or 0) <= NOISE_LEVEL:
        raise StartupError(
            f"model {model!r}: the UNet at {part.source} is none that enlarges: one for this model has `in_channels` "
            f"{channels} and `num_class_embeds` over {NOISE_LEVEL}, not {unet.config.in_channels} and {levels}"
        )
    # The pipeline writes its published model's scaling factor into whatever autoencoder it is made with. So it gets an
    # object of its own over the same weights, and that has the factor of the model's latents again afterwards.
    own = copy.copy(vae)
    own.register_to_config(scaling_factor=SET_BY_PIPELINE)
    noise = _low_res_scheduler(part, levels)
    pipeline = build(StableDiffusionUpscalePipeline, base, unet=unet, vae=own, low_res_scheduler=noise)
    own.register_to_config(scaling_factor=vae.config.scaling_factor)
    return pipeline


def _low_res_scheduler(part: ComponentSource, levels: int) -> DDPMScheduler:
    """That of the part's folder `low_res_scheduler`, where it has one; else as of the published model."""
    folder = Path(part.source).expanduser() / "low_res_scheduler"
    if not folder.is_dir():
        return DDPMScheduler(num_train_timesteps=levels, **LOW_RES_NOISE)
    try:
        scheduler: DDPMScheduler = DDPMScheduler.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise StartupError(f"cannot load {str(folder)!r}: {str(error).strip().splitlines()[0]}") from error
    return scheduler


class Upscaler:
    """One factor of the upscale task. Its modules are behind gates already."""

    def __init__(self, times: int, pipeline: DiffusionPipeline, part: UpscalerSource, base: DiffusionPipeline) -> None:
        """Raises StartupError if the pipeline is none that enlarges by that factor. base: the model's own."""
        kind = type(pipeline).__name__
        if TIMES.get(kind) != times:
            known = ", ".join(f"{name} ({by} times)" for name, by in TIMES.items())
            raise StartupError(f"the upscaler for {times} times is a {kind}; this version serves {known}")
        if times == 4 and pipeline.vae_scale_factor != times:
            raise StartupError(
                f"the upscaler for {times} times enlarges by {pipeline.vae_scale_factor}: "
                "its autoencoder makes as many pixels of a latent"
            )
        pipeline.set_progress_bar_config(disable=True)
        self._pipeline = pipeline
        self.vae = pipeline.vae
        self.latent_scale: int = pipeline.vae_scale_factor  # pixels of the result along a side of a latent
        # Latents whose sides the UNet can halve as often as it does, and whole pixels to come from.
        multiple = self.latent_scale * math.lcm(2**pipeline.unet.num_upsamplers, times)
        self.card = UpscalerCard(
            times=times,
            native_size=pipeline.unet.config.sample_size * self.latent_scale,
            size_multiple=multiple,
            schedulers=DIFFUSION_SCHEDULERS if times == 4 else (Scheduler.EULER,),
            default_scheduler=(name_of(pipeline.scheduler) or Scheduler.DDIM) if times == 4 else Scheduler.EULER,
            default_steps=part.steps or (30 if times == 4 else 20),
            default_guidance_scale=part.guidance_scale or (9.0 if times == 4 else 1.0),
            work=(base.vae_scale_factor / self.latent_scale) ** 2,  # a denoiser works on latents, not on pixels
        )

    def enlarge(self, spec: JobSpec, inputs: Inputs, seed: int, ticket: EngineTask) -> torch.Tensor:
        """The stock pipeline, with a scheduler and a CPU generator of this tile's own."""
        pipeline = copy.copy(self._pipeline)
        pipeline.scheduler = self._scheduler(spec.scheduler)
        noise = inputs.noise
        image: torch.Tensor = pipeline(
            prompt=spec.prompt,
            negative_prompt=spec.negative_prompt or None,
            image=inputs.picture,
            num_inference_steps=spec.num_inference_steps,
            guidance_scale=spec.guidance_scale,
            generator=torch.Generator("cpu").manual_seed(seed),
            latents=None if noise is None else noise.to(pipeline.unet.dtype),
            output_type="pt",
            callback=count_steps(spec, ticket),
        ).images
        return image

    def _scheduler(self, name: Scheduler) -> SchedulerMixin:
        """The pipeline in latents works the sigmas of its own Euler scheduler into each step: that one, as it came."""
        base = self._pipeline.scheduler
        if isinstance(self._pipeline, diffusers.StableDiffusionLatentUpscalePipeline):
            return diffusers.EulerDiscreteScheduler.from_config(base.config)
        return make_scheduler(name, base)


def count_steps(spec: JobSpec, ticket: EngineTask) -> Callable[[int, Any, Any], None]:
    """A `callback` as older pipelines take it; it is called once a step."""

    def note_step(i: int, _t: Any, _latents: Any) -> None:
        ticket.step = min(i + 1, spec.steps_run)

    return note_step
