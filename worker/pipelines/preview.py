"""Previews of latents without the VAE: each latent becomes one pixel by a linear map of its channels."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch.nn.functional import interpolate

# Training images: how many, their side in pixels, and the random colours along a side.
IMAGES, SIDE, CELLS = 4, 128, 8
JPEG_QUALITY = 80


class LatentPreview:
    """Linear map from latents to RGB, fitted to one VAE by least squares."""

    def __init__(self, weights: npt.NDArray[Any]) -> None:
        """Create a preview from fitted weights, an array of shape (channels + 1, 3) whose last row is the bias."""
        self._weights = weights

    @classmethod
    def fit(cls, vae: Any, device: torch.device, dtype: torch.dtype) -> LatentPreview | None:
        """Fit the map to a few images of smooth colours.

        Returns:
            None if the latents of the VAE are not of shape (batch, channels, height, width).
        """
        generator = torch.Generator().manual_seed(0)
        cells = torch.rand(IMAGES, 3, CELLS, CELLS, generator=generator)
        images = interpolate(cells, size=(SIDE, SIDE), mode="bilinear")
        encoded = vae.encode((2 * images - 1).to(device, dtype))
        # AutoencoderTiny returns latents and not their distribution.
        latents = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents
        if latents.dim() != 4:
            return None
        shift, scale = vae.config.get("shift_factor") or 0.0, vae.config.get("scaling_factor") or 1.0
        inputs = _to_rows(((latents.float() - shift) * scale).cpu().numpy())
        colours = interpolate(images, size=latents.shape[2:], mode="area").permute(0, 2, 3, 1).reshape(-1, 3)
        weights, *_ = np.linalg.lstsq(inputs, colours.numpy().astype(np.float64), rcond=None)
        return cls(weights)

    def jpeg(self, latents: torch.Tensor) -> bytes:
        """Return a JPEG with one pixel per latent.

        Args:
            latents: tensor of shape (1, channels, height, width), with any amount of noise.
        """
        values = latents.detach().float().cpu().numpy()
        # Samplers with large sigmas have noise of many times the magnitude of the image.
        values = values / max(1.0, float(values.std()))
        pixels = (_to_rows(values) @ self._weights).reshape(*values.shape[2:], 3)
        file = io.BytesIO()
        Image.fromarray((pixels.clip(0, 1) * 255).round().astype(np.uint8)).save(file, "JPEG", quality=JPEG_QUALITY)
        return file.getvalue()


def _to_rows(latents: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Reshape (n, channels, height, width) to (n * height * width, channels + 1), with a last column of ones."""
    rows = latents.transpose(0, 2, 3, 1).reshape(-1, latents.shape[1]).astype(np.float64)
    return np.hstack([rows, np.ones((len(rows), 1))])
