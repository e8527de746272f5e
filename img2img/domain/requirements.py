"""Requirements of the fields of requests, declared in their metadata: tasks, other fields, and the model."""

from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from img2img.domain.parameters import Task

ALL_TASKS = frozenset(Task)


@dataclass(frozen=True, kw_only=True)
class Requires:
    """Requirements of a request field, declared in its metadata. They hold if the field is given.

    Attributes:
        tasks: Tasks that take the field.
        excludes: Fields that it cannot be combined with.
        needs: Field without which it has no effect.
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
    needs: str = ""
    capability: str = ""
    lacking: str = ""
    tasks_of_model: str = ""
    guidance: bool = False
    by_scheduler: bool = False
    not_with_scheduler: str = "it has no effect"
    not_by_upscaler: str = ""
    neutral: Any = None


@dataclass(frozen=True, kw_only=True)
class OptionalParameter(Requires):
    """Marks a parameter that not every model takes. `parameters` of the model card lists the tasks that go with it."""


@dataclass(frozen=True, kw_only=True)
class PipelineParameter(OptionalParameter):
    """Marks a parameter that is passed by name to the `__call__` of pipelines whose signature has it.

    With `by_scheduler`, they pass it on to the scheduler's `step`, which must have it, too.
    """


def requirements(model: type[BaseModel]) -> dict[str, Requires]:
    """Return the requirements of the model's fields by name."""
    return {
        name: next((item for item in field.metadata if isinstance(item, Requires)), Requires())
        for name, field in model.model_fields.items()
    }
