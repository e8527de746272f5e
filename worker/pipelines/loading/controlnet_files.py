"""Loads ControlNets in diffusers' format, and checks that they fit the model."""

from typing import Any

import diffusers
from diffusers import DiffusionPipeline

from img2img.domain.model_config import ComponentSource

from ...errors import StartupError
from ..families import Family
from .components import load_component
from .locations import component_class, component_folder

# Values of the configuration in which a ControlNet and the denoiser of its model agree, unless the ControlNet has none.
_COMMON = (
    *("cross_attention_dim", "attention_head_dim", "num_attention_heads", "joint_attention_dim"),
    *("pooled_projection_dim", "in_channels", "dim", "n_heads"),
)
# UNets for inpainting have more input channels than their ControlNets, and heads by block.
_NOT_OF_UNETS = ("attention_head_dim", "in_channels", "num_attention_heads")


def load_controlnet(source: ComponentSource, family: Family, base: DiffusionPipeline) -> Any:
    """Load a ControlNet in the dtype and on the device of the model. Safetensors only.

    Args:
        base: pipeline of the model.

    Raises:
        StartupError: it cannot be loaded, or does not fit the model.
    """
    folder = component_folder(source)
    class_name = component_class(folder)
    if class_name not in family.controlnet_classes:
        supported = " and ".join(family.controlnet_classes)
        raise StartupError(
            f"{folder} is a {class_name or 'component without `_class_name`'}; only {supported} is supported"
        )
    denoiser = base.components.get("unet") or base.transformer
    net = load_component(getattr(diffusers, class_name), folder, denoiser.dtype).to(base.device)
    _check_fit(net, denoiser)
    return net.eval()


def _check_fit(net: Any, denoiser: Any) -> None:
    unchecked = _NOT_OF_UNETS if "cross_attention_dim" in denoiser.config else ()
    for key in _COMMON:
        value, expected = net.config.get(key), denoiser.config.get(key)
        if value is not None and expected is not None and value != expected and key not in unchecked:
            raise StartupError(f"it does not fit the model: its {key} is {value}, that of the model is {expected}")
    if net.config.get("extra_conditioning_channels") or net.config.get("extra_condition_channels"):
        raise StartupError("ControlNets for inpainting, which take a mask, are not supported; remove it")
