"""Generation parameters: their enums and limits."""

from enum import StrEnum
from typing import Annotated

from pydantic import AfterValidator, Field


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
# Of the whole schedule, of which the last steps are run: the timesteps that models are trained with.
MAX_SCHEDULE = 1000
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
EXPECTED_SPEEDUP = {Speed.EXACT: 1.0, Speed.FAST: 2.0, Speed.TURBO: 2.4}


class WeightingMethod(StrEnum):
    """The arithmetic of weights in prompts."""

    # A weight scales the difference from the embedding of an empty prompt, as the library compel does it.
    COMPEL = "compel"
    # A weight scales the embeddings of its tokens, and the mean of each chunk of 75 tokens is restored, as the
    # AUTOMATIC1111 web UI does it.
    A1111 = "a1111"


class Resize(StrEnum):
    """How an image is brought to the size of the result."""

    CROP = "crop"
    PAD = "pad"
    STRETCH = "stretch"


class Background(StrEnum):
    """The background of a result."""

    KEEP = "keep"
    TRANSPARENT = "transparent"
