"""Optional parameters that are passed by name to the pipelines whose signatures have them."""

import inspect
from collections.abc import Container, Iterable, Mapping
from functools import cache
from typing import Any

from diffusers import DiffusionPipeline

from img2img.domain.generation_parameters import GenerationParameters
from img2img.domain.parameters import SPEED_SCHEDULERS, Scheduler, Task
from img2img.domain.requirements import PipelineParameter, requirements

from .scheduler_kinds import scheduler_class

PARAMETERS: Mapping[str, PipelineParameter] = {
    name: requires
    for name, requires in requirements(GenerationParameters).items()
    if isinstance(requires, PipelineParameter)
}


def call_parameters(pipeline: DiffusionPipeline) -> Container[str]:
    """Return the names of the arguments that the pipeline takes."""
    return _call_parameters(type(pipeline))  # type: ignore[arg-type]


@cache
def _call_parameters(kind: type[DiffusionPipeline]) -> Container[str]:
    return tuple(inspect.signature(kind.__call__).parameters)


def optional_arguments(parameters: GenerationParameters, takes: Container[str]) -> dict[str, Any]:
    """Return the optional parameters that are given, as arguments of a pipeline.

    Args:
        takes: Names of the arguments that the pipeline takes.
    """
    given = {name: getattr(parameters, name) for name in PARAMETERS if name in takes}
    defaults = GenerationParameters.model_fields
    return {name: value for name, value in given.items() if value != defaults[name].default}


def supported_parameters(pipelines: Mapping[Task, DiffusionPipeline]) -> dict[str, tuple[Task, ...]]:
    """Return each optional parameter with the tasks whose pipelines take it."""
    takes = {task: call_parameters(pipeline) for task, pipeline in pipelines.items()}
    supported = {
        name: tuple(task for task in takes if task in requires.tasks and name in takes[task])
        for name, requires in PARAMETERS.items()
    }
    return {name: tasks for name, tasks in supported.items() if tasks}


def scheduler_parameters(schedulers: Iterable[Scheduler]) -> dict[str, tuple[Scheduler, ...]]:
    """Return each optional parameter that goes with some schedulers only, with these schedulers."""
    schedulers = list(schedulers)
    steps = {
        scheduler: inspect.signature(scheduler_class(scheduler).step).parameters
        for scheduler in schedulers
        if scheduler is not Scheduler.MODEL
    }
    passed_on = {
        name: tuple(scheduler for scheduler, step in steps.items() if name in step)
        for name, requires in PARAMETERS.items()
        if requires.by_scheduler
    }
    return {**passed_on, "speed": tuple(scheduler for scheduler in schedulers if scheduler in SPEED_SCHEDULERS)}
