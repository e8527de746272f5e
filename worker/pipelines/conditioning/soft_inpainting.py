"""Soft inpainting: differential diffusion (Levin and Fried, 2023) by the image-to-image pipeline of a model.

A mask says for each latent how much of it changes. After each step, latents that are not to change yet are replaced by
those of the image with the noise of the next step: the less a latent changes, the later its own steps begin.
"""

from typing import Any

import torch
from torch.nn.functional import interpolate

from ..uploads import upload


class SoftMask:
    """The mask of one job, for one call of its pipeline object."""

    def __init__(self, pipeline: Any, mask: torch.Tensor) -> None:
        """Learn the latents and the noise that the pipeline starts from, when it mixes them.

        Args:
            pipeline: has its own scheduler, and latents of shape (1, channels, height, width).
            mask: (1, 1, height, width) of pixels: 1 where all of the image changes, 0 where nothing does.
        """
        self._pipeline = pipeline
        self._mask = mask
        self._start: tuple[torch.Tensor, torch.Tensor] | None = None
        scheduler = pipeline.scheduler
        # Schedulers of flow matching take the noise last.
        self._is_flow = hasattr(scheduler, "scale_noise")
        name = "scale_noise" if self._is_flow else "add_noise"
        self._mix = getattr(scheduler, name)

        def mix(latents: torch.Tensor, second: torch.Tensor, third: torch.Tensor) -> torch.Tensor:
            self._start = (latents, third if self._is_flow else second)
            mixed: torch.Tensor = self._mix(latents, second, third)
            return mixed

        setattr(scheduler, name, mix)

    def blend(self, latents: torch.Tensor, calls: int) -> torch.Tensor:
        """Return the latents after a number of calls of the denoiser: those that are not to change yet are replaced."""
        total = self._pipeline.num_timesteps
        if calls >= total:
            return latents
        assert self._start is not None
        image, noise = self._start
        timestep = self._pipeline.scheduler.timesteps[-total:][calls : calls + 1]
        noised = self._mix(image, *((timestep, noise) if self._is_flow else (noise, timestep)))
        kept = 1 - interpolate(self._mask, size=latents.shape[-2:], mode="area") > calls / total
        return torch.where(upload(kept, latents.device), noised.to(latents.dtype), latents)
