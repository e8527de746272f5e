"""Counts how often the engine's thread waits for the device: in a step, and in the rest of a job."""

from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from img2img.domain.parameters import Scheduler
from img2img.domain.spec import Img2ImgSpec
from img2img.worker.engine.engine import Engine
from img2img.worker.engine.task import EngineTask
from img2img.worker.images.inputs import Inputs
from img2img.worker.pipelines.denoise import make_task_function
from img2img.worker.pipelines.model import Model

# Counts, by what waits and where.
Counts = Counter[tuple[str, str]]
Counting = Callable[[], AbstractContextManager[Counts]]
JOBS, SHORT, LONG = 2, 5, 10


@dataclass(frozen=True)
class Waits:
    per_step: float
    per_job: float
    places: tuple[str, ...]


def count_waits(model: Model, scheduler: Scheduler, counting: Counting, side: int) -> Waits:
    """Run jobs with few and with more steps: the difference is that of the steps.

    Args:
        counting: counts what waits meanwhile.
        side: of the images, in pixels.
    """
    (short, short_steps), (long, long_steps) = (run(model, scheduler, n, counting, side) for n in (SHORT, LONG))
    per_step = (long.total() - short.total()) / (long_steps - short_steps)
    per_job = (short.total() - per_step * short_steps) / JOBS
    return Waits(per_step, per_job, tuple(dict.fromkeys(place for _, place in long)))


def run(model: Model, scheduler: Scheduler, steps: int, counting: Counting, side: int) -> tuple[Counts, int]:
    """Run two jobs together. Return what waited, and the steps of both.

    The engine compares rows when it merges calls for the first time, which waits: run jobs before that do not count.
    """
    engine = Engine(slots=JOBS)
    image = torch.rand(1, 3, side, side)
    specs = [
        Img2ImgSpec(
            model="tiny",
            image="0" * 64,
            prompt=f"house {'abc'[i]} {'x' * steps}",
            negative_prompt="blurry" if model.card.negative_prompt else "",
            seed=i,
            width=side,
            height=side,
            strength=1.0,
            num_inference_steps=steps,
            guidance_scale=3.0,
            scheduler=scheduler,
        )
        for i in range(JOBS)
    ]
    tasks = [EngineTask(make_task_function(model, spec, Inputs(image), 0), lambda _task: None) for spec in specs]
    engine.submit(tasks)
    with counting() as counts:
        while engine.is_busy:
            engine.step()
    for task in tasks:
        if task.error is not None:
            raise task.error
    return counts, sum(task.step for task in tasks)
