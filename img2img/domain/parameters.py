"""Generation parameters: their enums and limits, and the fields that requests and job specs share."""

from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

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
    UNIPC = "unipc"
    DEIS = "deis"
    LCM = "lcm"
    TCD = "tcd"
    FLOW_EULER = "flow_euler"
    FLOW_EULER_BETA = "flow_euler_beta"
    FLOW_HEUN = "flow_heun"


# A model is trained for diffusion or for flow matching and works only with schedulers of the same kind.
FLOW_SCHEDULERS = (Scheduler.FLOW_EULER, Scheduler.FLOW_EULER_BETA, Scheduler.FLOW_HEUN)
DIFFUSION_SCHEDULERS = tuple(scheduler for scheduler in Scheduler if scheduler not in FLOW_SCHEDULERS)
# Schedulers that draw new noise at every step. Tiles of one image would each draw different noise.
NOISY_SCHEDULERS = (Scheduler.DDPM, Scheduler.EULER_A, Scheduler.DPMPP_2M_SDE, Scheduler.LCM, Scheduler.TCD)

MAX_STEPS = 150
# Distilled samplers use a schedule that is fixed at training time and cannot take more steps than it has.
MAX_STEPS_OF: dict[Scheduler, int] = {Scheduler.LCM: 50, Scheduler.TCD: 50}

MAX_SEED = 2**63 - 1
MAX_IMAGES = 8
MAX_TEXT = 10_000  # characters

Text = Annotated[str, Field(max_length=MAX_TEXT, pattern=r"^[^\x00]*$")]


class Resize(StrEnum):
    """How an image is brought to the size of the result."""

    CROP = "crop"
    PAD = "pad"
    STRETCH = "stretch"


class GenerationParameters(BaseModel):
    """The parameters that a job takes from its request unchanged."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    negative_prompt: Annotated[Text, Field(description="What the result should not show.")] = ""
    prompt_weighting: Annotated[
        bool,
        Field(
            description="Read `(text:1.3)` in both prompts as that text with that weight. The default weight is 1; "
            "weights cannot be nested."
        ),
    ] = False
    num_images: Annotated[int, Field(ge=1, le=MAX_IMAGES, description="How many variants to make.")] = 1
    loras: Annotated[
        tuple[Lora, ...],
        Field(max_length=MAX_LORAS, description="LoRAs to apply, from `loras` of the model's entry in `GET /models`."),
    ] = ()
