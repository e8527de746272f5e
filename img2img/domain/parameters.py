"""Generation parameters: their enums and limits, and the fields that requests and job specs share."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from img2img.domain.conditioning import MAX_LORAS, Lora


class Task(StrEnum):
    """The kind of a job. The fields of a request decide it."""

    # Adds noise up to `strength`, then denoises; with or without controls.
    IMG2IMG = "img2img"
    # Regenerates the masked part of the image, or new margins.
    INPAINT = "inpaint"
    # Starts from pure noise, guided by controls alone.
    CONTROL = "control"
    # Follows an instruction; the latents of the image are extra channels or tokens of the denoiser.
    EDIT = "edit"
    # Enlarges the image.
    UPSCALE = "upscale"
    # Returns the map that a ControlNet gets for the image.
    CONTROL_MAP = "control_map"
    # Returns the mask of the thing that words, points or a box name.
    MASK = "mask"


class Scheduler(StrEnum):
    """The samplers that a request may name."""

    DDIM = "ddim"
    DDPM = "ddpm"
    PNDM = "pndm"
    LMS = "lms"
    EULER = "euler"
    EULER_A = "euler_a"
    HEUN = "heun"
    DPMPP_2M = "dpmpp_2m"
    DPMPP_2M_KARRAS = "dpmpp_2m_karras"
    DPMPP_2M_SDE = "dpmpp_2m_sde"
    DPMPP_2M_SDE_HEUN = "dpmpp_2m_sde_heun"
    DPMPP_3M_SDE = "dpmpp_3m_sde"
    DPMPP_SDE = "dpmpp_sde"
    DPMPP_2S = "dpmpp_2s"
    DPMPP_2S_A = "dpmpp_2s_a"
    DPM2 = "dpm2"
    DPM2_A = "dpm2_a"
    UNIPC = "unipc"
    DEIS = "deis"
    LCM = "lcm"
    TCD = "tcd"
    FLOW_EULER = "flow_euler"
    FLOW_EULER_BETA = "flow_euler_beta"
    FLOW_HEUN = "flow_heun"
    # The scheduler of the model with its own settings, if none of the others has them.
    MODEL = "model"


# A model is trained for diffusion or for flow matching and works only with schedulers of the same kind.
FLOW_SCHEDULERS = (Scheduler.FLOW_EULER, Scheduler.FLOW_EULER_BETA, Scheduler.FLOW_HEUN)
DIFFUSION_SCHEDULERS = tuple(
    scheduler for scheduler in Scheduler if scheduler not in (*FLOW_SCHEDULERS, Scheduler.MODEL)
)
# Schedulers that draw new noise at every step. Tiles of one image would each draw different noise.
NOISY_SCHEDULERS = (
    Scheduler.DDPM,
    Scheduler.EULER_A,
    Scheduler.DPMPP_2M_SDE,
    Scheduler.DPMPP_2M_SDE_HEUN,
    Scheduler.DPMPP_3M_SDE,
    Scheduler.DPMPP_SDE,
    Scheduler.DPMPP_2S_A,
    Scheduler.DPM2_A,
    Scheduler.LCM,
    Scheduler.TCD,
)


class Sigmas(StrEnum):
    """The noise levels of the steps: the schedule types that a request may name.

    The first three replace the noise levels of the timesteps; the others choose other timesteps.
    """

    KARRAS = "karras"
    EXPONENTIAL = "exponential"
    BETA = "beta"
    # Timesteps from the first to the last one, in equal steps.
    NORMAL = "normal"
    # Timesteps counted from the last one (`trailing`). Both names are in use.
    SIMPLE = "simple"
    SGM_UNIFORM = "sgm_uniform"
    # Timesteps counted from the first one (`leading`).
    DDIM_UNIFORM = "ddim_uniform"


# Names of a scheduler together with its sigmas.
COMBINED_SCHEDULERS: dict[Scheduler, tuple[Scheduler, Sigmas]] = {
    Scheduler.DPMPP_2M_KARRAS: (Scheduler.DPMPP_2M, Sigmas.KARRAS),
    Scheduler.FLOW_EULER_BETA: (Scheduler.FLOW_EULER, Sigmas.BETA),
}

# Schedulers with which outputs of the denoiser can be predicted: without new noise, and without the large factors by
# which `lms` and `pndm` combine the outputs of four steps. The loss of the others here was not measured.
_UNPREDICTABLE = (*NOISY_SCHEDULERS, Scheduler.LMS, Scheduler.PNDM, Scheduler.DPM2, Scheduler.DPMPP_2S)
SPEED_SCHEDULERS = tuple(scheduler for scheduler in Scheduler if scheduler not in _UNPREDICTABLE)

MAX_STEPS = 150
# Distilled samplers use a schedule that is fixed at training time and cannot take more steps than it has.
MAX_STEPS_OF: dict[Scheduler, int] = {Scheduler.LCM: 50, Scheduler.TCD: 50}

MAX_SEED = 2**63 - 1
MAX_IMAGES = 8
MAX_SIDE = 65_535  # pixels, as of input images
MAX_TEXT = 10_000  # characters
# The smallest CLIP text encoder of the supported models has 12 layers; SDXL skips one by default.
MAX_CLIP_SKIP = 10


def check_text(text: str) -> str:
    """Raise ValueError for a NUL, at which text encoders written in C would end the text."""
    if "\0" in text:
        raise ValueError("Input should not contain the character NUL (U+0000)")
    return text


Text = Annotated[
    str, Field(max_length=MAX_TEXT, json_schema_extra={"pattern": r"^[^\x00]*$"}), AfterValidator(check_text)
]


class Speed(StrEnum):
    """How many denoiser calls may be replaced by predictions from earlier ones."""

    EXACT = "exact"
    FAST = "fast"
    TURBO = "turbo"


# Denoiser calls without `speed`, per call with it: the figures of benchmarks/step_cache.py, which vary with the job.
EXPECTED_SPEEDUP = {Speed.EXACT: 1.0, Speed.FAST: 1.8, Speed.TURBO: 2.2}


class Resize(StrEnum):
    """How an image is brought to the size of the result."""

    CROP = "crop"
    PAD = "pad"
    STRETCH = "stretch"


class Background(StrEnum):
    """The background of a result."""

    KEEP = "keep"
    TRANSPARENT = "transparent"


ALL_TASKS = frozenset(Task)


@dataclass(frozen=True, kw_only=True)
class Requires:
    """Requirements of a request field, declared in its metadata. They hold if the field is given.

    Attributes:
        tasks: Tasks that take the field.
        excludes: Fields that it cannot be combined with.
        capability: Attribute of the model card that must be true.
        lacking: Completes "The model NAME ..." in the message if the capability is missing.
        tasks_of_model: Attribute of the model card that lists the tasks with which the model takes the field.
        guidance: Whether the field has no effect without guidance.
        by_scheduler: Whether only the schedulers that `scheduler_parameters` of the model card lists go with the field.
        not_with_scheduler: Reason why other schedulers do not; by default, the field has no effect with them.
        not_by_upscaler: Reason why super-resolution models do not take the field.
        neutral: Value that counts as not given, besides the default.
    """

    tasks: frozenset[Task] = ALL_TASKS
    excludes: tuple[str, ...] = ()
    capability: str = ""
    lacking: str = ""
    tasks_of_model: str = ""
    guidance: bool = False
    by_scheduler: bool = False
    not_with_scheduler: str = "it has no effect"
    not_by_upscaler: str = ""
    neutral: Any = None


@dataclass(frozen=True, kw_only=True)
class PipelineParameter(Requires):
    """Marks a parameter that is passed by name to the `__call__` of pipelines whose signature has it.

    The model card lists the tasks whose pipelines do. With `by_scheduler`, they pass it on to the scheduler's `step`,
    which must have it, too.
    """


def requirements(model: type[BaseModel]) -> dict[str, Requires]:
    """Return the requirements of the model's fields by name."""
    return {
        name: next((item for item in field.metadata if isinstance(item, Requires)), Requires())
        for name, field in model.model_fields.items()
    }


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
            "calls: about 1.8 and 2.2 times fewer calls at 30 steps, with a result that differs a little. "
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
