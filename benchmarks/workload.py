"""The jobs of a benchmark: the same images, prompts and parameters for every side."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from img2img.domain.model_card import ModelCard
from img2img.domain.parameters import Scheduler
from img2img.domain.spec import Img2ImgSpec
from img2img.worker.images.png import encode_png

if TYPE_CHECKING:
    import httpx

# The form fields of an edit that OpenAI does not have.
OWN_FIELDS = ("strength", "num_inference_steps", "guidance_scale", "scheduler", "seed")
SCHEDULERS = (
    Scheduler.DDIM,
    Scheduler.EULER,
    Scheduler.EULER_A,
    Scheduler.HEUN,
    Scheduler.DPMPP_2M,
    Scheduler.DPMPP_2M_KARRAS,
    Scheduler.UNIPC,
    Scheduler.DEIS,
)
# At 1 a pipeline runs without guidance: one row per image instead of two.
GUIDANCE_SCALES = (1.0, 1.0, 2.0, 3.5, 5.0, 6.5, 8.0)
SUBJECTS = ("a house by a lake", "mountains", "the sea", "trees by a road", "a cottage with a garden")
STYLES = ("a photo of", "a watercolor painting of", "a pencil sketch of", "pixel art of", "an oil painting of")

MIXES = {
    "mixed": "strength 0.3-0.9, 15-30 steps, guidance 1-8, 8 schedulers",
    "uniform": "strength 0.6, 20 steps, guidance 5, dpmpp_2m; image, prompt and seed differ",
}


@dataclass(frozen=True)
class Job:
    """A request: parameters and a PNG."""

    spec: Img2ImgSpec
    png: bytes


Parameters = Callable[[random.Random], Mapping[str, Any]]


def jobs(
    mix: str,
    card: ModelCard,
    count: int,
    round_number: int,
    *,
    parameters: Parameters | None = None,
    side: int | None = None,
) -> list[Job]:
    """Return the jobs of one round.

    Rounds differ in images, prompts and seeds only: they cost the same, and no side remembers an image or a prompt.

    Args:
        parameters: returns those of a job, for models that take others than Stable Diffusion.
        side: of the images, in pixels; default: the native size of the model.
    """
    rng = random.Random(f"{mix} {count}")
    side = side or card.native_size
    made: list[Job] = []
    for i in range(count):
        chosen = parameters(rng) if parameters else mixed(rng) if mix == "mixed" else UNIFORM
        prompt = f"{rng.choice(STYLES)} {rng.choice(SUBJECTS)}, image {round_number} {i}"
        spec = Img2ImgSpec(
            model=card.name,
            image="0" * 64,
            prompt=prompt,
            seed=1000 * round_number + i,
            width=side,
            height=side,
            **chosen,
        )
        made.append(Job(spec, encode_png(_image(1000 * round_number + i, side), {})))
    return made


UNIFORM: dict[str, Any] = {
    "strength": 0.6,
    "num_inference_steps": 20,
    "guidance_scale": 5.0,
    "scheduler": Scheduler.DPMPP_2M,
}


def mixed(rng: random.Random) -> dict[str, Any]:
    return {
        "strength": round(rng.uniform(0.3, 0.9), 2),
        "num_inference_steps": rng.randint(15, 30),
        "guidance_scale": rng.choice(GUIDANCE_SCALES),
        "scheduler": rng.choice(SCHEDULERS),
    }


def _image(seed: int, size: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Return an image of smooth colours."""
    cells = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    return np.asarray(Image.fromarray(cells).resize((size, size), Image.Resampling.BICUBIC))


def can_share_a_call(jobs: Sequence[Job]) -> dict[tuple[Any, ...], list[int]]:
    """Group the indices of jobs by the parameters that one stock pipeline call cannot vary."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for index, job in enumerate(jobs):
        spec = job.spec
        key = (spec.strength, spec.num_inference_steps, spec.guidance_scale, spec.scheduler, spec.width, spec.height)
        groups.setdefault(key, []).append(index)
    return groups


def served_card(http: "httpx.Client") -> ModelCard:
    """Return the card of the only model of a service."""
    [model] = http.get("/models").raise_for_status().json()["models"]
    return ModelCard.model_validate({name: model[name] for name in ModelCard.model_fields if name in model})
