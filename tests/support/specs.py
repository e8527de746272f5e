"""Specs with default values for tests."""

from typing import Any

from pydantic import TypeAdapter

from img2img.domain.parameters import Task
from img2img.domain.spec import (
    ControlMapSpec,
    ControlSpec,
    EditSpec,
    Img2ImgSpec,
    InpaintSpec,
    JobSpec,
    MaskSpec,
    UpscaleSpec,
)

CLASSES = {
    Task.IMG2IMG: Img2ImgSpec,
    Task.INPAINT: InpaintSpec,
    Task.CONTROL: ControlSpec,
    Task.EDIT: EditSpec,
    Task.UPSCALE: UpscaleSpec,
    Task.CONTROL_MAP: ControlMapSpec,
    Task.MASK: MaskSpec,
}
DEFAULTS = {
    "model": "tiny",
    "image": "0" * 64,
    "prompt": "a red house",
    "strength": 1.0,
    "guidance_scale": 5.0,
    "num_inference_steps": 10,
    "scheduler": "ddim",
    "seed": 3,
    "width": 32,
    "height": 32,
    "find": {"text": "the house"},
}
SPEC = TypeAdapter(JobSpec)


def make_spec(task: Task = Task.IMG2IMG, **changes: Any) -> JobSpec:
    """Return a spec of the task. Ignores fields that the task does not have, so that a test can vary the task."""
    fields = {**DEFAULTS, **changes}
    fields.setdefault("instruction", fields["prompt"])
    fields = {name: value for name, value in fields.items() if name in CLASSES[task].model_fields}
    return SPEC.validate_python({**fields, "task": task})
