"""Tiny ControlNets for the tiny models. Random where published ones start from zero, or they would do nothing."""

from pathlib import Path

import torch
from diffusers import ControlNetModel, UNet2DConditionModel


def tiny_controlnet(model: Path, folder: Path, *, seed: int) -> Path:
    """A ControlNet for a tiny model, whose residuals are about as large as what they are added to."""
    torch.manual_seed(seed)
    unet = UNet2DConditionModel.from_pretrained(model, subfolder="unet")
    net = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(16, 32))  # one halving, as of latents
    zeroed = [*net.controlnet_down_blocks, net.controlnet_mid_block, net.controlnet_cond_embedding.conv_out]
    for layer in zeroed:
        torch.nn.init.normal_(layer.weight, std=0.2)
    net.save_pretrained(folder)
    return folder
