"""JobSpec: what a job is asked to do, with every default resolved. Blobs by key, never pixels."""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


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


# Distilled samplers walk a schedule that was fixed at training time; they cannot take more steps than it has.
MAX_STEPS_OF: dict[Scheduler, int] = {Scheduler.LCM: 50, Scheduler.TCD: 50}

MAX_SEED = 2**63 - 1
MAX_IMAGES = 8


class Resize(StrEnum):
    """How a picture is brought to the size of the result."""

    CROP = "crop"
    PAD = "pad"
    STRETCH = "stretch"


Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class JobSpec(BaseModel):
    """One image-to-image job. Frozen: the same spec gives the same pictures."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: Literal["img2img"] = "img2img"
    model: str
    image: Sha256  # input blob: an upright RGB PNG of exactly width x height pixels
    prompt: str
    negative_prompt: str
    strength: Annotated[float, Field(ge=0, le=1)]
    guidance_scale: Annotated[float, Field(ge=1)]
    num_inference_steps: Annotated[int, Field(ge=1, le=150)]
    scheduler: Scheduler
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)]  # image i uses seed + i
    num_images: Annotated[int, Field(ge=1, le=MAX_IMAGES)]
    width: Annotated[int, Field(gt=0)]
    height: Annotated[int, Field(gt=0)]
    resize: Resize

    @property
    def steps_run(self) -> int:
        """Denoising steps that each image really runs: 0 at strength 0, else at least 1."""
        if self.strength == 0:
            return 0
        return max(1, min(int(self.num_inference_steps * self.strength), self.num_inference_steps))

    @property
    def cost(self) -> float:
        """Work of the whole job, in megapixel-steps: a row is an image, or two with guidance; encode and decode count
        as one more step."""
        rows = self.num_images * (2 if self.guidance_scale > 1 else 1)
        return self.width * self.height * (self.steps_run + 1) * rows / 1e6


def input_key(sha256: str) -> str:
    """Store key of a job's input: a picture that a client sent, as the model sees it."""
    return f"inputs/{sha256}.png"


def upload_key(sha256: str) -> str:
    """Store key of a picture as a client sent it, before it is known what for."""
    return f"uploads/{sha256}"


def result_key(job_id: str, index: int) -> str:
    """Store key of a job's result; the first writer wins."""
    return f"results/{job_id}/{index}.png"


def result_keys(job_id: str) -> list[str]:
    """Store keys of all results that a job can have."""
    return [result_key(job_id, index) for index in range(MAX_IMAGES)]
