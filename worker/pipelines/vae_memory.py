"""Tiling and slicing of a VAE, as diffusers implements them: less memory for large images and for batches."""

import functools
from collections.abc import Callable
from typing import Any

import torch

from img2img.domain.model_config import ModelConfig

from ..errors import StartupError

# Pixels above which `vae_tiling = "auto"` tiles an image.
AUTO_PIXELS = 2 * 2**20


def limit_vae_memory(vae: Any, config: ModelConfig, scale: int) -> None:
    """Apply `vae_tiling` and `vae_slicing` to a VAE, before it gets its gates. Repeating it has no effect.

    Args:
        scale: pixels along a side of a latent.

    Raises:
        StartupError: VAEs of its class have no tiles or no slices.
    """
    if vae is None and not (config.vae_slicing or config.vae_tiling):
        return
    try:
        if config.vae_slicing:
            vae.enable_slicing()
        if config.vae_tiling:
            vae.enable_tiling()
    except (AttributeError, NotImplementedError):
        raise StartupError(
            f"`vae_tiling` and `vae_slicing` do not work with {type(vae).__name__}, the VAE of this model; remove them"
        ) from None
    # An instance attribute after the first time.
    if config.vae_tiling == "auto" and "encode" not in vars(vae):
        vae.encode = _tiling_above(AUTO_PIXELS, vae, vae.encode)
        vae.decode = _tiling_above(AUTO_PIXELS // scale**2, vae, vae.decode)


def _tiling_above(limit: int, vae: Any, run: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a method of a VAE: it tiles inputs of more than `limit` values per channel."""

    @functools.wraps(run)
    def call(x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        vae.use_tiling = x.shape[-2] * x.shape[-1] > limit
        return run(x, *args, **kwargs)

    return call
