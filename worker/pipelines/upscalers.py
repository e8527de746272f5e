"""Super-resolution models: the stock pipelines that enlarge by 4 in pixels, and by 2 in latents."""

import copy
import math
from collections.abc import Callable
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline, SchedulerMixin

from app.contract.models import UpscalerCard
from app.contract.spec import JobSpec, Scheduler
from worker.engine import Ticket
from worker.errors import StartupError
from worker.inputs import Inputs
from worker.pipelines.schedulers import make_scheduler, name_of

TIMES = {"StableDiffusionUpscalePipeline": 4, "StableDiffusionLatentUpscalePipeline": 2}


class Upscaler:
    """One factor of the upscale task. Its modules are behind gates already."""

    def __init__(self, times: int, pipeline: DiffusionPipeline) -> None:
        """Raises StartupError if the pipeline is none that enlarges by that factor."""
        kind = type(pipeline).__name__
        if TIMES.get(kind) != times:
            known = ", ".join(f"{name} ({by} times)" for name, by in TIMES.items())
            raise StartupError(f"the upscaler for {times} times is a {kind}; this version serves {known}")
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
            schedulers=tuple(Scheduler) if times == 4 else (Scheduler.EULER,),
            default_scheduler=(name_of(pipeline.scheduler) or Scheduler.DDIM) if times == 4 else Scheduler.EULER,
            default_steps=30 if times == 4 else 20,
            default_guidance_scale=9.0 if times == 4 else 1.0,
        )

    def enlarge(self, spec: JobSpec, inputs: Inputs, seed: int, ticket: Ticket) -> torch.Tensor:
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


def count_steps(spec: JobSpec, ticket: Ticket) -> Callable[[int, Any, Any], None]:
    """A `callback` as older pipelines take it; it is called once a step."""

    def note_step(i: int, _t: Any, _latents: Any) -> None:
        ticket.step = min(i + 1, spec.steps_run)

    return note_step
