"""Loads pipelines and UNets that a model's configuration lists. Safetensors only, no remote code."""

import inspect
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, DiffusionPipeline, UNet2DConditionModel

from ...errors import StartupError
from .model_config import ComponentSource
from .weights import first_line

# Settings of the low_res_scheduler of stabilityai/stable-diffusion-x4-upscaler.
LOW_RES_SCHEDULER = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "scaled_linear"}


def is_pipeline(source: ComponentSource) -> bool:
    """Check whether a source is a whole pipeline and not a single module."""
    if source.subfolder is not None:
        return False
    folder = Path(source.source).expanduser()
    if folder.exists():
        return (folder / "model_index.json").is_file()
    try:
        DiffusionPipeline.load_config(source.source, revision=source.revision)
    except OSError:
        return False
    return True


def load_pipeline(source: ComponentSource, device: torch.device, dtype: torch.dtype) -> DiffusionPipeline:
    """Load a pipeline of the class that its model_index.json names.

    Raises:
        StartupError: if it cannot be loaded.
    """
    try:
        pipeline: DiffusionPipeline = DiffusionPipeline.from_pretrained(
            resolve_source(source), dtype=dtype, use_safetensors=True, revision=source.revision
        )
    except (OSError, ValueError) as error:
        raise _load_error(source.source, error) from error
    return pipeline.to(device)


def load_unet(source: ComponentSource, device: torch.device, dtype: torch.dtype) -> UNet2DConditionModel:
    """Load a UNet.

    Raises:
        StartupError: if it cannot be loaded.
    """
    try:
        unet: UNet2DConditionModel = UNet2DConditionModel.from_pretrained(
            resolve_source(source),
            dtype=dtype,
            use_safetensors=True,
            revision=source.revision,
            subfolder=source.subfolder,
        )
    except (OSError, ValueError) as error:
        raise _load_error(source.source, error) from error
    return unet.to(device)


def load_low_res_scheduler(source: ComponentSource, levels: int) -> DDPMScheduler:
    """Load the scheduler that adds noise to the low-resolution image of an x4 upscaler.

    Args:
        source: location of the UNet; a folder `low_res_scheduler` in it is used if there is one.
        levels: noise levels of the default scheduler otherwise.

    Raises:
        StartupError: if the folder cannot be loaded.
    """
    folder = Path(source.source).expanduser() / "low_res_scheduler"
    if not folder.is_dir():
        return DDPMScheduler(num_train_timesteps=levels, **LOW_RES_SCHEDULER)
    try:
        scheduler: DDPMScheduler = DDPMScheduler.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise _load_error(str(folder), error) from error
    return scheduler


def resolve_source(source: ComponentSource) -> str:
    """Return a source for `from_pretrained`, with `~` expanded if it is a path."""
    path = Path(source.source).expanduser()
    return str(path) if path.exists() else source.source


def _load_error(source: str, error: Exception) -> StartupError:
    return StartupError(f"cannot load {source!r}: {first_line(error)}")


def build_pipeline(kind: type[DiffusionPipeline], base: DiffusionPipeline, **components: Any) -> DiffusionPipeline:
    """Build a pipeline of another class from the components and settings of `base`.

    Args:
        components: components to use in place of those of `base`.
    """
    known = {**base.config, **base.components, **components}
    parameters = inspect.signature(kind).parameters
    pipeline: DiffusionPipeline = kind(**{name: known.get(name, p.default) for name, p in parameters.items()})
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
