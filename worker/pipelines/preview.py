"""Latents to a small picture without the decoder: each latent is one pixel, its colour a linear map of its channels."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch.nn.functional import interpolate

PICTURES, SIDE, CELLS = 4, 128, 8
QUALITY = 80


class LatentPreview:
    """A map fitted to one autoencoder by least squares."""

    def __init__(self, weights: npt.NDArray[Any]) -> None:
        """weights: (channels + 1, 3), the last row for a constant 1."""
        self._weights = weights

    @classmethod
    def fit(cls, vae: Any, device: torch.device, dtype: torch.dtype) -> LatentPreview | None:
        """Encodes a few pictures of soft colours; None for an autoencoder of another kind than (n, channels, h, w)."""
        generator = torch.Generator().manual_seed(0)
        coarse = torch.rand(PICTURES, 3, CELLS, CELLS, generator=generator)
        pictures = interpolate(coarse, size=(SIDE, SIDE), mode="bilinear")
        latents = vae.encode((2 * pictures - 1).to(device, dtype)).latent_dist.mode()
        if latents.dim() != 4:
            return None
        shift, scale = vae.config.get("shift_factor") or 0.0, vae.config.get("scaling_factor") or 1.0
        known = _rows(((latents.float() - shift) * scale).cpu().numpy())
        colours = interpolate(pictures, size=latents.shape[2:], mode="area").permute(0, 2, 3, 1).reshape(-1, 3)
        weights, *_ = np.linalg.lstsq(known, colours.numpy().astype(np.float64), rcond=None)
        return cls(weights)

    def jpeg(self, latents: torch.Tensor) -> bytes:
        """A JPEG of one pixel per latent. latents: (1, channels, height, width), noisy as they may be."""
        values = latents.detach().float().cpu().numpy()
        values = values / max(1.0, float(values.std()))  # some samplers let noise stand many times above the picture
        pixels = (_rows(values) @ self._weights).reshape(*values.shape[2:], 3)
        file = io.BytesIO()
        Image.fromarray((pixels.clip(0, 1) * 255).round().astype(np.uint8)).save(file, "JPEG", quality=QUALITY)
        return file.getvalue()


def _rows(latents: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """(n, channels, h, w) to (n * h * w, channels + 1)."""
    rows = latents.transpose(0, 2, 3, 1).reshape(-1, latents.shape[1]).astype(np.float64)
    return np.hstack([rows, np.ones((len(rows), 1))])
