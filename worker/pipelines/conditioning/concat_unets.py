"""UNets that take an image as extra channels beside the latents: InstructPix2Pix and inpainting UNets."""

from pathlib import Path

import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from safetensors import safe_open

from img2img.domain.model_config import ComponentSource, ModelConfig
from img2img.domain.parameters import Task

from ...errors import StartupError
from ..families import Family
from ..loading.components import build_pipeline, load_pipeline_of, load_unet
from ..loading.failures import reporting_failures
from ..loading.locations import is_pipeline
from ..loading.placement import Placement
from ..loading.single_file import load_file_of
from ..loading.weights import is_single_file, resolve_weights
from .embeddings import Embeddings

INPUT_LAYER = {"conv_in.weight", "conv_in.bias"}
"""The weights of a UNet's first convolution."""


def task_of_unet(unet: UNet2DConditionModel, latent_channels: int) -> Task:
    """Return the task of a UNet by its input channels: noisy latents, image latents, mask.

    Raises:
        StartupError: if no task has that number of channels.
    """
    tasks = {
        latent_channels: Task.IMG2IMG,
        2 * latent_channels: Task.EDIT,
        2 * latent_channels + 1: Task.INPAINT,
    }
    in_channels = unet.config.in_channels
    if in_channels not in tasks:
        supported = ", ".join(f"{channels} ({task})" for channels, task in tasks.items())
        raise StartupError(f"UNets with {in_channels} input channels are not supported; supported: {supported}")
    return tasks[in_channels]


def pipeline_classes(family: Family, base: DiffusionPipeline) -> dict[Task, type[DiffusionPipeline]]:
    """Return the stock pipelines that the denoiser of the model `base` was trained for, by task."""
    unet = base.components.get("unet")
    if unet is None or family.is_generic:
        return dict(family.pipelines)
    task = task_of_unet(unet, base.vae.config.latent_channels)
    if task is Task.IMG2IMG:
        return {other: kind for other, kind in family.pipelines.items() if other is not Task.EDIT}
    kind = _class_of(family, task)
    return {task: kind} if kind is not None else {}


def load_concat_pipelines(
    config: ModelConfig, family: Family, base: DiffusionPipeline, placement: Placement, embeddings: Embeddings
) -> dict[Task, DiffusionPipeline]:
    """Load the `edit` and `inpaint` components of a model, by task.

    Args:
        base: pipeline of the model; a component that is only a UNet uses its other modules.

    Raises:
        StartupError: if a component is not supported, cannot be loaded or is of another task.
    """
    pipelines = {}
    for task, source in ((Task.EDIT, config.edit), (Task.INPAINT, config.inpaint)):
        if source is None:
            continue
        kind = _class_of(family, task)
        if kind is None or "unet" not in base.components:
            raise StartupError(f"`{task}` is not supported for {family.name} models; remove the key")
        with reporting_failures(f"`{task}`"):
            pipeline = _load(task, source, kind, base, placement)
            embeddings.add_to(pipeline)
            placement.put_components(pipeline)
            pipelines[task] = pipeline
    return pipelines


def _class_of(family: Family, task: Task) -> type[DiffusionPipeline] | None:
    return family.instruct_pix2pix if task is Task.EDIT else family.pipelines.get(task)


def _load(
    task: Task, source: ComponentSource, kind: type[DiffusionPipeline], base: DiffusionPipeline, placement: Placement
) -> DiffusionPipeline:
    """Load a pipeline with its VAE and text encoder, or a UNet that uses those of `base`."""
    if is_single_file(source):
        file = resolve_weights(source, "`weight_name`")
        first = _input_layer(file)
        if first is None:
            pipeline = load_file_of(file, kind, base, placement.load_device)
        else:
            pipeline = build_pipeline(kind, base, unet=_with_input_layer(base.unet, first, source))
    elif is_pipeline(source):
        pipeline = build_pipeline(kind, load_pipeline_of(source, placement.load_device, base.dtype))
    else:
        pipeline = build_pipeline(kind, base, unet=load_unet(source, placement.load_device, base.dtype))
    unet_task = task_of_unet(pipeline.unet, pipeline.vae.config.latent_channels)
    if unet_task is not task:
        raise StartupError(f"the UNet of {source.source} is for `{unet_task}`, not for `{task}`")
    return pipeline


def _input_layer(file: Path) -> dict[str, torch.Tensor] | None:
    """Return the weights of a file that has only the first convolution of a UNet; None for other files."""
    with safe_open(file, "pt") as weights:
        if set(weights.keys()) != INPUT_LAYER:
            return None
        return {name: weights.get_tensor(name) for name in INPUT_LAYER}


def _with_input_layer(
    unet: UNet2DConditionModel, first: dict[str, torch.Tensor], source: ComponentSource
) -> UNet2DConditionModel:
    """Return a UNet with another first convolution. All other weights are shared with `unet`.

    Raises:
        StartupError: the convolution does not fit the UNet.
    """
    own, other = unet.conv_in.weight, first["conv_in.weight"]
    if other.ndim != own.ndim or (other.shape[0], *other.shape[2:]) != (own.shape[0], *own.shape[2:]):
        raise StartupError(
            f"{source.source} has a first convolution of shape {list(other.shape)}, which does not fit the UNet of the "
            f"model ({list(own.shape)})"
        )
    with torch.device("meta"):
        copied = UNet2DConditionModel.from_config({**unet.config, "in_channels": other.shape[1]})
    weights = dict(unet.state_dict())
    weights |= {name: weight.to(device=own.device, dtype=own.dtype) for name, weight in first.items()}
    copied.load_state_dict(weights, assign=True)
    return copied.requires_grad_(False).eval()
