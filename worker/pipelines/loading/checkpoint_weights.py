"""The weights of checkpoints in single files: their keys and shapes without the values, and the values."""

import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open

from ...errors import StartupError

Weights = dict[str, torch.Tensor]

# Prefix of the denoiser in files with other components. Files with the denoiser only often lack it.
DENOISER = "model.diffusion_model."
# Keys of the other components.
_OTHERS = ("first_stage_model.", "vae.", "cond_stage_model.", "conditioner.", "text_encoders.")
_UNET = ("input_blocks.", "middle_block.", "output_blocks.", "out.", "time_embed.", "label_emb.")
_UNET_INPUTS = (f"{DENOISER}input_blocks.0.0.weight", "conv_in.weight")
_SDXL_INPUTS = (f"{DENOISER}label_emb.0.0.weight", "add_embedding.linear_1.weight")
_TEXT_INPUT = re.compile(r"\.attn2\.to_k\.weight$")
# Widths of the text that UNets take: Stable Diffusion 2, the refiner of Stable Diffusion XL.
_SD2_WIDTH, _REFINER_WIDTH = 1024, 1280
_UPSCALER_CHANNELS, _EDIT_CHANNELS, _INPAINT_CHANNELS = 7, 8, 9

# The scale of a weight in 8 bits, as two generations of ComfyUI name it, and tensors beside it without values of use.
_SCALE = re.compile(r"\.(?:scale_weight|weight_scale)$")
_SCALE_HINT = re.compile(r"(?:^|\.)(?:scaled_fp8|scale_input|input_scale|comfy_quant)$")
_FLOAT8 = ("float8_e4m3fn", "float8_e5m2")


@dataclass(frozen=True)
class WeightFile:
    """A safetensors file, and the key in a checkpoint for each of its keys; None for those that are left out."""

    file: Path
    rename: Callable[[str], str | None] = lambda key: key

    def header(self) -> tuple[Weights, Mapping[str, str]]:
        """Return tensors without values, and the metadata."""
        with safe_open(self.file, framework="pt") as opened:
            shapes = {key: opened.get_slice(key).get_shape() for key in opened.keys()}  # noqa: SIM118  # not a dict
            metadata = opened.metadata() or {}
        named = {self.rename(key): torch.empty(shape, device="meta") for key, shape in shapes.items()}
        return {key: tensor for key, tensor in named.items() if key is not None}, metadata

    def read(self, keys: Callable[[str], bool], dtype: torch.dtype) -> Weights:
        """Return the weights of some keys of the checkpoint.

        Args:
            dtype: of weights that are stored in 8 bits with a scale, and are multiplied by it.

        Raises:
            StartupError: they are quantised in another way.
        """
        weights = {}
        with safe_open(self.file, framework="pt") as opened:
            for key in opened.keys():  # noqa: SIM118  # not a dict
                name = self.rename(key)
                if name is not None and keys(name):
                    weights[name] = opened.get_tensor(key)
        return _dequantised(weights, self.file, dtype)


def with_prefix(key: str) -> str:
    """Return a key of a UNet with the prefix that it has in files with other components."""
    return DENOISER + key if key.startswith(_UNET) else key


def is_denoiser(key: str) -> bool:
    """Return whether a key is of the denoiser."""
    return not key.startswith(_OTHERS)


def is_vae(key: str) -> bool:
    """Return whether a key is of the VAE."""
    return key.startswith(("first_stage_model.", "vae."))


def is_text_encoder(key: str) -> bool:
    """Return whether a key is of a text encoder."""
    return key.startswith(("cond_stage_model.", "conditioner.", "text_encoders."))


def unet_channels(weights: Weights) -> int | None:
    """Return the input channels of a UNet; None if there is no UNet."""
    return next((weights[key].shape[1] for key in _UNET_INPUTS if key in weights), None)


def unet_type(weights: Weights) -> str:
    """Return the type of a UNet without text encoders, by the names that diffusers has for types of checkpoints."""
    channels = unet_channels(weights)
    width = next((tensor.shape[-1] for key, tensor in weights.items() if _TEXT_INPUT.search(key)), 0)
    if any(key in weights for key in _SDXL_INPUTS):
        if width == _REFINER_WIDTH:
            return "xl_refiner"
        return "xl_inpaint" if channels == _INPAINT_CHANNELS else "xl_base"
    if channels == _UPSCALER_CHANNELS:
        return "upscale"
    if channels == _INPAINT_CHANNELS:
        return "inpainting_v2" if width == _SD2_WIDTH else "inpainting"
    if width == _SD2_WIDTH:
        return "v2"
    return "instruct-pix2pix" if channels == _EDIT_CHANNELS else "v1"


def lacking(module: torch.nn.Module) -> list[str]:
    """Return the parameters of a module without values."""
    return sorted(name for name, parameter in module.named_parameters() if parameter.is_meta)


def _dequantised(weights: Weights, file: Path, dtype: torch.dtype) -> Weights:
    """Return weights without scales: those with a scale are multiplied by it in 32 bits."""
    for key in [key for key in weights if key.endswith("comfy_quant")]:
        name = json.loads(bytes(weights[key].tolist())).get("format")
        if name not in _FLOAT8:
            raise StartupError(f"{file.name} is quantised in the format {name}, which is not supported; choose another")
    scales = {key: weights.pop(key) for key in list(weights) if _SCALE.search(key)}
    for key, scale in scales.items():
        weight = _SCALE.sub(".weight", key)
        if weight not in weights or scale.numel() != 1:
            raise StartupError(
                f"{file.name} has scales per block ({key}), which are not supported; choose another file"
            )
        weights[weight] = (weights[weight].float() * scale.float()).to(dtype)
    return {key: tensor for key, tensor in weights.items() if not _SCALE_HINT.search(key)}


def unknown_quantisation(keys: Collection[str]) -> str | None:
    """Return the library that quantised weights are for, if they are in no format that is loaded from a single file."""
    for pattern, library in (
        (r"\.quant_state\.|\.weight\.absmax$", "bitsandbytes"),
        (r"\.(?:wscales|qweight|smooth_factor)$", "Nunchaku or GPTQ"),
    ):
        if any(re.search(pattern, key) for key in keys):
            return library
    return None
