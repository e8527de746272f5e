"""Tiny ControlNets for the tiny models. Zero convolutions are random, because the models are not trained."""

from pathlib import Path

import torch
from diffusers import ControlNetModel, UNet2DConditionModel


def tiny_controlnet(model: Path, folder: Path, *, seed: int) -> Path:
    """Save a ControlNet whose residuals are about as large as the activations that they are added to."""
    torch.manual_seed(seed)
    unet = UNet2DConditionModel.from_pretrained(model, subfolder="unet")
    # Two channels: halves the map once, as the VAE does.
    net = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(16, 32))
    zeroed = [*net.controlnet_down_blocks, net.controlnet_mid_block, net.controlnet_cond_embedding.conv_out]
    for layer in zeroed:
        torch.nn.init.normal_(layer.weight, std=0.2)
    net.save_pretrained(folder)
    return folder
