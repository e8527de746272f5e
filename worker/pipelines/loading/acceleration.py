"""Options of a loaded pipeline that change its speed: the layout of weights, and the kernels of attention."""

from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry

from img2img.domain.model_config import ModelConfig

from ...errors import StartupError, first_line


def accelerate_pipeline(config: ModelConfig, pipeline: DiffusionPipeline) -> None:
    """Apply `channels_last` and `attention` to a pipeline, before its modules are copied for adapters or get gates.

    Raises:
        StartupError: the attention backend is unknown, lacks its package, or is not for this denoiser.
    """
    denoiser = pipeline.components.get("unet") or pipeline.transformer
    if config.channels_last:
        for module in (denoiser, pipeline.vae):
            _put_channels_last(module)
    if config.attention is not None:
        _set_attention(denoiser, config.attention)


def _put_channels_last(module: torch.nn.Module) -> None:
    """Change the layout of the weights of two-dimensional convolutions."""
    for weight in module.parameters():
        if weight.dim() == 4:
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)


def _set_attention(denoiser: Any, backend: str) -> None:
    # The others download code from the hub and run it.
    known = [name.value for name in AttentionBackendName if "hub" not in name.value]
    if backend not in known:
        raise StartupError(f"`attention`: {backend!r} is unknown; choose one such as native, flash, _flash_3 or sage")
    processors = [getattr(module, "processor", None) for module in denoiser.modules()]
    if not any(hasattr(processor, "_attention_backend") for processor in processors):
        raise StartupError(
            f"`attention` does not work with a {type(denoiser).__name__}, which uses PyTorch's; remove it"
        )
    active, _ = _AttentionBackendRegistry.get_active_backend()
    try:
        denoiser.set_attention_backend(backend)
    except (RuntimeError, ValueError, ImportError) as error:
        raise StartupError(f"`attention`: {first_line(error)}") from error
    finally:
        # diffusers makes it the default of all models, too.
        _AttentionBackendRegistry.set_active_backend(active)
