"""A model of the architecture of the demo model with random weights: equally fast, without training."""

from pathlib import Path

import torch

from img2img.demo_model.autoencoder import new_autoencoder
from img2img.demo_model.diffusion import new_denoiser
from img2img.demo_model.recipe import CPU
from img2img.demo_model.weights_folder import write_weights


def make_random_model(folder: Path) -> None:
    """Write the model to `folder` in diffusers format."""
    torch.manual_seed(0)
    write_weights(folder, new_autoencoder(CPU.autoencoder_widths), new_denoiser(CPU.unet_widths))
