"""Tiny ControlNets for the tiny models. Zero convolutions are random, because the models are not trained."""

from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import ControlNetModel, ControlNetUnionModel, UNet2DConditionModel

# Two channels: halves the map once, as the VAE does.
EMBEDDING_CHANNELS = (16, 32)


def tiny_controlnet(model: Path, folder: Path, *, seed: int) -> Path:
    """Save a ControlNet whose residuals are about as large as the activations that they are added to."""
    torch.manual_seed(seed)
    unet = UNet2DConditionModel.from_pretrained(model, subfolder="unet")
    net = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=EMBEDDING_CHANNELS)
    _fill(net)
    net.save_pretrained(folder)
    return folder


def tiny_union(model: Path, folder: Path, *, types: int = 8, seed: int = 7) -> Path:
    """Save a union ControlNet for a tiny SDXL, with the modes of the published one."""
    torch.manual_seed(seed)
    config = UNet2DConditionModel.load_config(model, subfolder="unet")
    width = config["block_out_channels"][0]
    net = ControlNetUnionModel.from_config(
        {key: value for key, value in config.items() if not key.startswith("_")},
        conditioning_embedding_out_channels=EMBEDDING_CHANNELS,
        num_control_type=types,
        num_trans_channel=width,
        num_proj_channel=width,
    )
    _fill(net)
    torch.nn.init.normal_(net.task_embedding)
    for layer in (net.spatial_ch_projs, net.control_add_embedding.linear_2):
        torch.nn.init.normal_(layer.weight, std=0.2)
    net.save_pretrained(folder)
    return folder


def _fill(net: Any) -> None:
    for layer in (*net.controlnet_down_blocks, net.controlnet_mid_block, net.controlnet_cond_embedding.conv_out):
        torch.nn.init.normal_(layer.weight, std=0.2)


def tiny_sd3_controlnet(model: Path, folder: Path, *, seed: int, **changes: Any) -> Path:
    """Save a ControlNet for the tiny Stable Diffusion 3."""
    config = diffusers.SD3Transformer2DModel.load_config(model, subfolder="transformer")
    return _save_transformer(diffusers.SD3ControlNetModel, {**config, "num_layers": 1, **changes}, folder, seed)


def tiny_flux_controlnet(model: Path, folder: Path, *, seed: int, **changes: Any) -> Path:
    """Save a ControlNet for the tiny FLUX."""
    config = diffusers.FluxTransformer2DModel.load_config(model, subfolder="transformer")
    return _save_transformer(diffusers.FluxControlNetModel, {**config, **changes}, folder, seed)


def tiny_qwen_controlnet(model: Path, folder: Path, *, seed: int, **changes: Any) -> Path:
    """Save a ControlNet for the tiny Qwen-Image."""
    config = diffusers.QwenImageTransformer2DModel.load_config(model, subfolder="transformer")
    return _save_transformer(diffusers.QwenImageControlNetModel, {**config, **changes}, folder, seed)


def tiny_z_image_controlnet(model: Path, folder: Path, *, seed: int, **changes: Any) -> Path:
    """Save a ControlNet for the tiny Z-Image. It takes 4 channels of latents, and 5 that are for inpainting."""
    config = diffusers.ZImageTransformer2DModel.load_config(model, subfolder="transformer")
    own = {"control_layers_places": [0], "control_in_dim": 9, **changes}
    return _save_transformer(diffusers.ZImageControlNetModel, {**config, **own}, folder, seed)


def _save_transformer(kind: Any, config: dict[str, Any], folder: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    net = kind.from_config({key: value for key, value in config.items() if not key.startswith("_")})
    for parameter in net.parameters():
        # Zero layers as well.
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    net.save_pretrained(folder)
    return folder
