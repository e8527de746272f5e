"""Weights that a model's entry names beside its own: pipelines and single modules. Safetensors only, no remote code."""

import inspect
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel

from ...errors import StartupError
from .model_config import ComponentSource


def is_pipeline(part: ComponentSource) -> bool:
    """Whether the part is a whole pipeline; else it is a single module."""
    if part.subfolder is not None:
        return False
    folder = Path(part.source).expanduser()
    if folder.exists():
        return (folder / "model_index.json").is_file()
    try:
        DiffusionPipeline.load_config(part.source, revision=part.revision)
    except OSError:
        return False
    return True


def load_pipeline(part: ComponentSource, device: torch.device, dtype: torch.dtype) -> DiffusionPipeline:
    """Raises StartupError."""
    try:
        pipeline: DiffusionPipeline = DiffusionPipeline.from_pretrained(
            _path(part), dtype=dtype, use_safetensors=True, revision=part.revision
        )
    except (OSError, ValueError) as error:
        raise _unloadable(part, error) from error
    return pipeline.to(device)


def load_unet(part: ComponentSource, device: torch.device, dtype: torch.dtype) -> UNet2DConditionModel:
    """Raises StartupError."""
    try:
        unet: UNet2DConditionModel = UNet2DConditionModel.from_pretrained(
            _path(part), dtype=dtype, use_safetensors=True, revision=part.revision, subfolder=part.subfolder
        )
    except (OSError, ValueError) as error:
        raise _unloadable(part, error) from error
    return unet.to(device)


def _path(part: ComponentSource) -> str:
    path = Path(part.source).expanduser()
    return str(path) if path.exists() else part.source


def _unloadable(part: ComponentSource, error: Exception) -> StartupError:
    return StartupError(f"cannot load {part.source!r}: {str(error).strip().splitlines()[0]}")


def build(kind: type[DiffusionPipeline], base: DiffusionPipeline, **parts: Any) -> DiffusionPipeline:
    """A pipeline of that kind, of the parts and settings of another one; `parts` in the place of its own."""
    known = {**base.config, **base.components, **parts}
    arguments = inspect.signature(kind).parameters
    pipeline: DiffusionPipeline = kind(**{name: known.get(name, a.default) for name, a in arguments.items()})
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
