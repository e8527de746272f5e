"""The generation parameters that requests and job specs share."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from img2img.domain.conditioning import MAX_LORAS, FreeU, Lora
from img2img.domain.parameters import MAX_CLIP_SKIP, MAX_IMAGES, Background, Speed, Task, Text, WeightingMethod
from img2img.domain.requirements import ALL_TASKS, OptionalParameter, PipelineParameter, Requires


class GenerationParameters(BaseModel):
    """The parameters that a job takes from its request unchanged."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    negative_prompt: Annotated[
        Text,
        Field(description="What the result should not show."),
        Requires(capability="negative_prompt", lacking="takes no negative prompt; leave it out", guidance=True),
    ] = ""
    prompt_weighting: Annotated[
        bool,
        Field(
            description="Read `(text:1.3)` in both prompts as that text with that weight, `BREAK` as the begin of a "
            "new chunk of 77 tokens, and `\\(` as a bracket. The default weight is 1; weights cannot be nested."
        ),
        Requires(capability="prompt_weighting", lacking="does not support weights in prompts; leave it out"),
    ] = False
    weighting_method: Annotated[
        WeightingMethod,
        Field(
            description="Arithmetic of weights and of long prompts. `compel`: a weight scales the difference from an "
            "empty prompt. `a1111`: that of the AUTOMATIC1111 web UI, with chunks of 75 tokens that end at a comma."
        ),
        Requires(capability="prompt_weighting", lacking="does not support weights in prompts; leave it out"),
    ] = WeightingMethod.COMPEL
    clip_skip: Annotated[
        int,
        Field(
            ge=0,
            le=MAX_CLIP_SKIP,
            description="Layers of the CLIP text encoder to skip for `prompt`: 1 is `Clip skip: 2` of the "
            "AUTOMATIC1111 web UI. For models with `clip_skip` in `parameters`.",
        ),
        PipelineParameter(lacking="does not support `clip_skip`; leave it out"),
    ] = 0
    denoising_start: Annotated[
        float | None,
        Field(
            ge=0,
            lt=1,
            description="Replaces `strength` for SDXL and its refiner: the image counts as denoised up to this share "
            "of the schedule. No noise is added, and only the rest of the steps is run.",
        ),
        PipelineParameter(
            tasks=frozenset({Task.IMG2IMG}),
            excludes=("strength", "controls"),
            lacking="does not support `denoising_start`, which is for SDXL and its refiner; give a `strength`",
        ),
    ] = None
    eta: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            description="Noise that the scheduler adds at each step: 0 is deterministic DDIM, 1 is like DDPM. For the "
            "schedulers in `scheduler_parameters` of the model's entry in `GET /models`.",
        ),
        # Not for upscaling: overlapping tiles would get different noise.
        PipelineParameter(
            tasks=ALL_TASKS - {Task.UPSCALE}, by_scheduler=True, lacking="does not support `eta`; leave it out"
        ),
    ] = 0.0
    guidance_rescale: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            description="Rescales the guided prediction to reduce overexposure: 0 is off, 0.7 is usual "
            "(https://arxiv.org/abs/2305.08891, section 3.4). For models with `guidance_rescale` in `parameters`.",
        ),
        PipelineParameter(guidance=True, lacking="does not support `guidance_rescale`; leave it out"),
    ] = 0.0
    speed: Annotated[
        Speed,
        Field(
            description="`fast` and `turbo` predict some outputs of the denoiser from earlier ones and skip these "
            "calls: about 2.0 and 2.4 times fewer calls at 30 steps, with a result that differs a little. "
            "For the schedulers in `scheduler_parameters` of the model's entry in `GET /models`."
        ),
        Requires(
            excludes=("eta",),
            by_scheduler=True,
            not_with_scheduler="denoiser calls cannot be skipped without harm to the image",
            not_by_upscaler="`speed` is for the model's own denoiser",
        ),
    ] = Speed.EXACT
    guidance_until: Annotated[
        float,
        Field(
            gt=0,
            le=1,
            description="Share of the steps that run with guidance: the others, at the end, run without it, which "
            "halves their work. For models with `guidance_until` in `GET /models`.",
        ),
        Requires(
            tasks=ALL_TASKS - {Task.EDIT},
            capability="guidance_until",
            lacking="cannot stop guidance at a step; leave it out",
            guidance=True,
            not_by_upscaler="all of its steps have guidance",
        ),
    ] = 1.0
    fast_vae: Annotated[
        bool,
        Field(
            description="Encode and decode with the small VAE of the model (TAESD): faster, with slightly other "
            "details. For models with `fast_vae` in `GET /models`."
        ),
        Requires(
            capability="fast_vae",
            lacking="has no `fast_vae`; leave it out",
            not_by_upscaler="it works with its own VAE",
        ),
    ] = False
    deterministic: Annotated[
        bool,
        Field(
            description="Make the same image to the last bit whatever other jobs the worker runs: the calls of the "
            "model are not merged with those of other jobs, which takes longer on a busy worker."
        ),
    ] = False
    guess_mode: Annotated[
        bool,
        Field(
            description="Let `controls` act in the prediction with the prompt only, which makes them stronger than the "
            "prompt: `ControlNet is more important` of the AUTOMATIC1111 web UI. For models with `guess_mode` in "
            "`control_parameters`."
        ),
        PipelineParameter(
            tasks=frozenset({Task.IMG2IMG, Task.INPAINT, Task.CONTROL}),
            lacking="takes `guess_mode` only with `controls` of Stable Diffusion and SDXL; leave it out",
        ),
    ] = False
    background: Annotated[
        Background,
        Field(
            description="`transparent` makes the background of the result transparent: the PNG has an alpha channel, "
            "and so has its conversion to WebP. For models with `matting` in `GET /models`."
        ),
        Requires(capability="matting", lacking="cannot find backgrounds: its operator has to add `matting` to it"),
    ] = Background.KEEP
    exact_steps: Annotated[
        bool,
        Field(
            description="Run `num_inference_steps` steps at any `strength`, of a schedule that is longer in "
            "proportion. Without it, about `strength` times as many are run."
        ),
        Requires(excludes=("denoising_start",)),
    ] = False
    subseed_strength: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            description="Share of the noise of `subseed` in the initial noise: small values give variations of the "
            "image of `seed`. Image i then uses `seed` and subseed + i.",
        ),
        OptionalParameter(
            tasks=ALL_TASKS - {Task.UPSCALE},
            lacking="does not support variation seeds; leave it out, and `subseed` too",
        ),
    ] = 0.0
    freeu: Annotated[
        FreeU | None,
        Field(description="Scale parts of the UNet's features for more detail (FreeU, arXiv 2309.11497)."),
        OptionalParameter(
            lacking="does not support `freeu`, which is for the UNets of Stable Diffusion and SDXL; leave it out",
            not_by_upscaler="`freeu` is for the model's own denoiser",
        ),
    ] = None
    pag_scale: Annotated[
        float,
        Field(
            ge=0,
            le=100,
            description="Scale of perturbed-attention guidance (https://arxiv.org/abs/2403.17377): 0 is off, 3 is "
            "usual. Each step takes half as long again, and is not shared with other jobs.",
        ),
        PipelineParameter(
            excludes=("controls", "speed", "guidance_until", "regions"),
            lacking="does not support perturbed-attention guidance; leave it out",
        ),
    ] = 0.0
    pag_adaptive_scale: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            description="By how much `pag_scale` is less for each timestep that the noise is from its largest: 0 keeps "
            "it the same in all steps.",
        ),
        PipelineParameter(needs="pag_scale", lacking="does not support perturbed-attention guidance; leave it out"),
    ] = 0.0
    seamless_tiling: Annotated[
        bool,
        Field(
            description="Let opposite edges of the result fit each other, so that it can be repeated as a texture. For "
            "models with `seamless_tiling` in `parameters`."
        ),
        OptionalParameter(
            tasks=frozenset({Task.IMG2IMG, Task.CONTROL}),
            lacking="cannot make seamless tiles, which is for Stable Diffusion and SDXL; leave `seamless_tiling` out",
        ),
    ] = False
    num_images: Annotated[int, Field(ge=1, le=MAX_IMAGES, description="How many variants to make.")] = 1
    loras: Annotated[
        tuple[Lora, ...],
        Field(max_length=MAX_LORAS, description="LoRAs to apply, from `loras` of the model's entry in `GET /models`."),
        Requires(
            lacking="has no LoRA; leave them out",
            tasks_of_model="adapter_tasks",
            not_by_upscaler="LoRAs are for the model's own denoiser",
        ),
    ] = ()
