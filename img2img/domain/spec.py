"""JobSpec: what a job is asked to do, with every default resolved. Blobs by key, never pixels."""

import math
import re
from enum import StrEnum
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field

from img2img.domain.conditioning import Control, ImagePrompt, InpaintRegion, Lora, Sha256
from img2img.domain.tiling import Grid, Tiling


class Task(StrEnum):
    """How the picture conditions the result. Chosen by what a request carries."""

    IMG2IMG = "img2img"  # noise up to `strength`, then denoising; with or without controls
    INPAINT = "inpaint"  # the same within a mask or on new margins; the rest of the picture stays
    CONTROL = "control"  # from pure noise, shaped by controls alone
    EDIT = "edit"  # by an instruction; the picture's latents are channels of the denoiser
    UPSCALE = "upscale"  # more pixels
    CONTROL_MAP = "control_map"  # what the one control would be given as its map, as a picture


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


# A model was trained for diffusion or for flow matching, and can be sampled by schedulers of its own kind only.
FLOW_SCHEDULERS = (Scheduler.FLOW_EULER, Scheduler.FLOW_EULER_BETA, Scheduler.FLOW_HEUN)
DIFFUSION_SCHEDULERS = tuple(scheduler for scheduler in Scheduler if scheduler not in FLOW_SCHEDULERS)

MAX_STEPS = 150
# Distilled samplers walk a schedule that was fixed at training time; they cannot take more steps than it has.
MAX_STEPS_OF: dict[Scheduler, int] = {Scheduler.LCM: 50, Scheduler.TCD: 50}

MAX_SEED = 2**63 - 1
MAX_IMAGES = 8


# These draw new noise at every step, each tile of a picture its own.
NOISY_SCHEDULERS = (Scheduler.DDPM, Scheduler.EULER_A, Scheduler.DPMPP_2M_SDE, Scheduler.LCM, Scheduler.TCD)


class Resize(StrEnum):
    """How a picture is brought to the size of the result."""

    CROP = "crop"
    PAD = "pad"
    STRETCH = "stretch"


class JobSpec(BaseModel):
    """One image-to-image job. Frozen: the same spec gives the same pictures."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: Task = Task.IMG2IMG
    model: str
    # Input blob: an upright RGB PNG, of width x height pixels unless the task is inpaint. None for the control task.
    image: Sha256 | None
    prompt: str  # of the edit task: the instruction
    negative_prompt: str
    prompt_weighting: bool = False  # whether `(text:1.3)` in the prompts is a weight
    strength: Annotated[float, Field(ge=0, le=1)]
    # Instead of a strength: share of the schedule that counts as done. No noise is added.
    denoising_start: Annotated[float | None, Field(ge=0, lt=1)] = None
    guidance_scale: Annotated[float, Field(ge=1)]
    guidance_rows: Annotated[int, Field(ge=1, le=2)] = 2  # of a pass with guidance; 1 where it is an input of the model
    image_guidance_scale: Annotated[float | None, Field(ge=1)] = None  # of the edit task
    num_inference_steps: Annotated[int, Field(ge=1, le=MAX_STEPS)]
    scheduler: Scheduler
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)]  # image i uses seed + i
    num_images: Annotated[int, Field(ge=1, le=MAX_IMAGES)]
    width: Annotated[int, Field(gt=0)]  # at which the model works; of the upscale task: the input picture's
    height: Annotated[int, Field(gt=0)]
    resize: Resize
    repaint: InpaintRegion | None = None  # of the inpaint task
    upscale: Annotated[int | None, Field(ge=2, le=4)] = None  # of the upscale task: how many times the width and height
    tiling: Tiling | None = None  # of the upscale task
    controls: tuple[Control, ...] = ()
    image_prompts: tuple[ImagePrompt, ...] = ()
    loras: tuple[Lora, ...] = ()

    @property
    def steps_run(self) -> int:
        """Denoising steps that each image, or each tile of it, really runs: 0 at strength 0, else at least 1."""
        if self.strength == 0 or self.task is Task.CONTROL_MAP:
            return 0
        steps = self.num_inference_steps
        if self.denoising_start is not None:  # by the timesteps of the model's own schedule, which may be one off
            return max(1, min(math.ceil(steps * (1 - self.denoising_start)), steps))
        if self.scheduler in FLOW_SCHEDULERS:  # the pipelines of such models round up, and those of the others down
            return max(1, steps - int(max(steps - min(steps * self.strength, steps), 0)))
        return max(1, min(int(steps * self.strength), steps))

    @property
    def grid(self) -> Grid | None:
        """The tiles that an image is made in; None where it is made as a whole."""
        return self.tiling.grid(self.result_size) if self.tiling else None

    @property
    def passes(self) -> int:
        """How often the job goes through the model: once per image, or per tile of it."""
        return self.num_images * (len(self.grid) if self.grid else 1)

    @property
    def total_steps(self) -> int:
        """Denoising steps of the whole job."""
        return self.steps_run * self.passes

    @property
    def cost(self) -> float:
        """Work of the whole job, in megapixel-steps: a row is an image or tile, or two with guidance (three where
        the picture guides as well, one where guidance is an input of the model); encode and decode count as one more
        step, a control as a third of the denoiser. A tile of an upscaler counts by the latents that it has."""
        guided_rows = 3 if self.image_guidance_scale else self.guidance_rows
        rows = self.passes * (guided_rows if self.guidance_scale > 1 else 1)
        width, height = self.grid.tile if self.grid else (self.width, self.height)
        work = self.tiling.work if self.tiling else 1.0
        return width * height * work * (self.steps_run + 1) * rows * (1 + len(self.controls) / 3) / 1e6

    @property
    def result_size(self) -> tuple[int, int]:
        """Width and height of the pictures that it makes."""
        if self.repaint is not None:
            return self.repaint.canvas
        times = self.upscale or 1
        return self.width * times, self.height * times

    @property
    def inputs(self) -> tuple[Sha256, ...]:
        """The blobs that it needs, each once."""
        pictures = [self.image, self.repaint.mask if self.repaint else None]
        pictures += [control.image for control in self.controls]
        pictures += [prompt.image for prompt in self.image_prompts]
        return tuple(dict.fromkeys(picture for picture in pictures if picture))

    def without_inputs(self) -> Self:
        """The same parameters without the hashes of the blobs, for what leaves the service."""
        nothing = {"image": None}
        return self.model_copy(
            update={
                "image": None,
                "repaint": self.repaint and self.repaint.model_copy(update={"mask": None}),
                "controls": tuple(control.model_copy(update=nothing) for control in self.controls),
                "image_prompts": tuple(prompt.model_copy(update=nothing) for prompt in self.image_prompts),
            }
        )


def input_key(sha256: str) -> str:
    """Store key of a job's input: a picture that a client sent, as the model sees it."""
    return f"inputs/{sha256}.png"


def upload_key(sha256: str) -> str:
    """Store key of a picture as a client sent it, before it is known what for."""
    return f"uploads/{sha256}"


def without_input_keys(text: str) -> str:
    """The text, with the hash left out of every store key of an input in it."""
    return _INPUT_KEY.sub(r"\1/...", text)


_INPUT_KEY = re.compile(r"\b(inputs|uploads)/[0-9a-f]{64}")


def result_key(job_id: str, index: int) -> str:
    """Store key of a job's result; the first writer wins."""
    return f"results/{job_id}/{index}.png"


def result_keys(job_id: str) -> list[str]:
    """Store keys of all results that a job can have."""
    return [result_key(job_id, index) for index in range(MAX_IMAGES)]
