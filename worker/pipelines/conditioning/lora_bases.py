"""Refuses a LoRA that was trained for another kind of model, with the names of both."""

import re
from collections.abc import Mapping

import torch
from diffusers import DiffusionPipeline

from ...errors import StartupError

SD1, SD2, XL, REFINER = (f"Stable Diffusion {name}" for name in ("1", "2", "XL", "XL Refiner"))
# Stable Diffusion by the width of the text embeddings.
_BY_WIDTH = {768: SD1, 1024: SD2, 1280: REFINER, 2048: XL}
# FLUX.1 and FLUX.2 have layers of the same names.
FLUX = "FLUX"
# Pipelines of other kinds, by the start of their class names.
_BY_CLASS = {
    "StableDiffusion3": "Stable Diffusion 3",
    "Flux2": "FLUX.2",
    "Flux": "FLUX.1",
    "QwenImage": "Qwen-Image",
    "ZImage": "Z-Image",
}
# Base by a pattern of the metadata.
_ARCHITECTURES = (
    (r"stable-diffusion-xl-v\d-refiner", REFINER),
    (r"stable-diffusion-xl|sdxl", XL),
    (r"stable-diffusion-v1|sd_?v?1", SD1),
    (r"stable-diffusion-v2|sd_?v?2", SD2),
    (r"stable-diffusion-3|sd_?v?3", "Stable Diffusion 3"),
    (r"flux[-_.]?2", "FLUX.2"),
    (r"flux", "FLUX.1"),
    (r"qwen[-_]?image", "Qwen-Image"),
    (r"z[-_]?image", "Z-Image"),
    (r"chroma", "Chroma"),
    (r"lumina", "Lumina"),
    (r"hunyuan", "Hunyuan"),
    (r"wan", "Wan"),
)
# Of Stability AI's model specification, and of kohya's scripts.
_METADATA = ("modelspec.architecture", "ss_base_model_version")
# The weight of a LoRA whose second side is the width of the text embeddings.
_TEXT_LAYER = re.compile(r"attn2[._](?:processor[._])?to_[kv][._](?:lora[._])?(?:lora_)?(?:down|A)\.(?:\w+\.)?weight$")
_TEXT_LAYER_CHANGE = re.compile(r"attn2[._]to_[kv]\.(?:hada_w1_b|diff)$")


def check_base(
    pipeline: DiffusionPipeline, weights: Mapping[str, torch.Tensor], metadata: Mapping[str, str], label: str
) -> None:
    """Check that a LoRA is for the kind of the model, as far as both are known.

    Raises:
        StartupError: if it is for another one.
    """
    model, lora = base_of_model(pipeline), base_of_lora(weights, metadata)
    if model and lora and model != lora and not (lora == FLUX and model.startswith(FLUX)):
        raise StartupError(f"{label} is for {lora}; the model is {model}")


def base_of_model(pipeline: DiffusionPipeline) -> str | None:
    """Return the name of the kind of a model; None if it is not known."""
    name = type(pipeline).__name__
    by_class = next((base for start, base in _BY_CLASS.items() if name.startswith(start)), None)
    if by_class or not hasattr(pipeline, "unet"):
        return by_class
    if "XL" in name:
        return REFINER if pipeline.unet.config.cross_attention_dim == 1280 else XL
    return _BY_WIDTH.get(pipeline.unet.config.cross_attention_dim)


def base_of_lora(weights: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> str | None:
    """Return the name of the kind of model that a LoRA is for, by its shapes or its metadata; None if unknown.

    Shapes count more: tools that convert and merge LoRAs leave wrong metadata.
    """
    for key, tensor in weights.items():
        is_text_layer = _TEXT_LAYER.search(key) or _TEXT_LAYER_CHANGE.search(key)
        if is_text_layer and tensor.shape[1] in _BY_WIDTH:
            return _BY_WIDTH[tensor.shape[1]]
    if any("double_blocks" in key or "single_transformer_blocks" in key for key in weights):
        return _from_metadata(metadata) or FLUX
    return _from_metadata(metadata)


def _from_metadata(metadata: Mapping[str, str]) -> str | None:
    for name in _METADATA:
        value = metadata.get(name, "").lower()
        for pattern, base in _ARCHITECTURES:
            if re.match(pattern, value):
                return base
    return None
