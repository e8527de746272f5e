"""The demo model's shape with random weights: as fast as the trained one, and made in seconds."""

from pathlib import Path

import torch

from img2img.demo_model.autoencoder import new_autoencoder
from img2img.demo_model.diffusion import new_denoiser
from img2img.demo_model.recipe import CPU
from img2img.demo_model.weights_folder import write_weights


def make_random_model(folder: Path) -> None:
    """Writes it as a diffusers folder."""
    torch.manual_seed(0)
    write_weights(folder, new_autoencoder(CPU.autoencoder_widths), new_denoiser(CPU.unet_widths))
