"""The models of the run: their size, dtype and jobs."""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.workload import Parameters, mixed
from img2img.domain.parameters import Scheduler


@dataclass(frozen=True)
class Shape:
    """A model of `benchmarks.model_shapes`.

    Attributes:
        name: its name there.
        dtype: in which it is served.
        side: of its images, in pixels.
        weight: its share of the time.
        uniform: parameters of jobs that differ in image, prompt and seed only.
        mixed: returns the parameters of a job among others of another kind.
        schedulers: those whose steps are looked at for waiting.
        speed_up: goal for mixed jobs, as a multiple of the stock pipeline one after another.
        images_per_s: goal for uniform jobs on an H100.
    """

    name: str
    dtype: str
    side: int
    weight: float
    uniform: Mapping[str, Any]
    mixed: Parameters
    schedulers: tuple[Scheduler, ...]
    speed_up: float | None = None
    images_per_s: float | None = None


def _few_steps(rng: random.Random) -> dict[str, Any]:
    return {
        "strength": rng.choice((0.5, 0.75, 1.0)),
        "num_inference_steps": rng.randint(2, 4),
        "guidance_scale": 1.0,
        "scheduler": rng.choice((Scheduler.EULER_A, Scheduler.EULER, Scheduler.LCM)),
    }


def _flow(rng: random.Random) -> dict[str, Any]:
    return {
        "strength": rng.choice((0.5, 0.75, 1.0)),
        "num_inference_steps": rng.randint(4, 8),
        "guidance_scale": 1.0,
        "scheduler": rng.choice((Scheduler.FLOW_EULER, Scheduler.FLOW_EULER_BETA)),
    }


def _uniform(steps: int, strength: float, guidance: float, scheduler: Scheduler) -> dict[str, Any]:
    return {
        "num_inference_steps": steps,
        "strength": strength,
        "guidance_scale": guidance,
        "scheduler": scheduler,
    }


COUNTED = (Scheduler.DDIM, Scheduler.DDPM, Scheduler.EULER_A, Scheduler.DPMPP_2M, Scheduler.UNIPC, Scheduler.LCM)
SHAPES = {
    shape.name: shape
    for shape in (
        Shape("sd15", "float16", 512, 90, _uniform(20, 0.6, 7.5, Scheduler.DPMPP_2M), mixed, COUNTED, speed_up=3.2),
        Shape("turbo", "float16", 512, 60, _uniform(2, 0.5, 1.0, Scheduler.EULER_A), _few_steps, (Scheduler.EULER_A,)),
        Shape(
            "sdxl",
            "float16",
            1024,
            120,
            _uniform(20, 0.6, 5.0, Scheduler.EULER),
            mixed,
            (Scheduler.EULER, Scheduler.DPMPP_2M),
            images_per_s=1.1,
        ),
        Shape(
            "flux", "bfloat16", 1024, 90, _uniform(4, 0.75, 1.0, Scheduler.FLOW_EULER), _flow, (Scheduler.FLOW_EULER,)
        ),
    )
}
