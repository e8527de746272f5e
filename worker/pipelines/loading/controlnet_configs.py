"""Configurations of ControlNets in one file: from names and shapes of its weights, and from the model's denoiser."""

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

import diffusers

from ...errors import StartupError
from .weight_kinds import examples

Shapes = Mapping[str, tuple[int, ...]]
Config = dict[str, Any]

# Prefix of the layout of the original ControlNet code, and a key that files in it have without the prefix.
ORIGINAL_PREFIX, ORIGINAL_KEY = "control_model.", "time_embed.0.weight"
_EMBEDDING = "controlnet_cond_embedding"
# Kinds of files that users give as ControlNets, by a pattern that one of the keys matches.
_OTHERS = (
    (r"^lora_controlnet$|\.(?:down|up)$", "a control-LoRA, which diffusers does not support"),
    (r"^lllite_", "a ControlNet-LLLite, which diffusers does not support"),
    (r"^(?:adapter\.)?body\.\d+\.|^adapter\.", "a T2I-Adapter, which is not supported"),
    (r"^(?:double_blocks|controlnet_blocks)\..*(?:img_attn|img_mod)|^double_blocks\.", "in the layout of XLabs"),
)


def layout_of(keys: Mapping[str, Any] | set[str], name: str) -> str:
    """Return the class of the ControlNet that weights with these keys belong to.

    Args:
        name: name of the file, for messages.

    Raises:
        StartupError: it is not a ControlNet in a layout that is known.
    """
    for pattern, kind in _OTHERS:
        if any(re.search(pattern, key) for key in keys):
            raise StartupError(f"{name} is {kind}; choose a ControlNet in diffusers' format")
    if is_original(keys):
        return "ControlNetModel"
    if f"{_EMBEDDING}.conv_in.weight" in keys:
        return "ControlNetUnionModel" if "task_embedding" in keys else "ControlNetModel"
    for key, class_name in (
        ("control_all_x_embedder.2-1.weight", "ZImageControlNetModel"),
        ("pos_embed_input.proj.weight", "SD3ControlNetModel"),
        ("txt_norm.weight", "QwenImageControlNetModel"),
        ("controlnet_x_embedder.weight", "FluxControlNetModel"),
    ):
        if key in keys:
            return class_name
    raise StartupError(f"{name} is not a ControlNet that is known (keys: {examples(list(keys))})")


def is_original(keys: Mapping[str, Any] | set[str]) -> bool:
    """Check whether weights have the keys of the original ControlNet code."""
    return ORIGINAL_PREFIX + ORIGINAL_KEY in keys or (ORIGINAL_KEY in keys and "input_hint_block.0.weight" in keys)


def config_of(class_name: str, shapes: Shapes, denoiser: Any, *, is_refined_by_layers: bool) -> Config:
    """Return the configuration of a ControlNet.

    Args:
        class_name: class of the ControlNet.
        denoiser: UNet or transformer of the model. What weights do not tell is as in the denoiser.
        is_refined_by_layers: of Z-Image, whether the blocks of the noise refiner are unused, which their values tell.
    """
    parameters = inspect.signature(getattr(diffusers, class_name).__init__).parameters
    config = {name: value for name, value in denoiser.config.items() if name in parameters}
    if class_name == "ZImageControlNetModel":
        config |= _z_image(shapes, denoiser, is_refined_by_layers=is_refined_by_layers)
    else:
        config |= _READERS[class_name](shapes, denoiser)
    return {**config, "_class_name": class_name}


def _unet(shapes: Shapes, denoiser: Any) -> Config:
    text = next((shape[1] for key, shape in shapes.items() if key.endswith("attn2.to_k.weight")), None)
    config: Config = {} if text is None else {"cross_attention_dim": text}
    if is_original(shapes):
        first = [f"input_hint_block.{index}.weight" for index in (0, 4, 8, 12)]
        hints = {key.removeprefix(ORIGINAL_PREFIX): shape for key, shape in shapes.items()}
        return {**config, "conditioning_embedding_out_channels": [hints[key][0] for key in first if key in hints]}
    blocks = _count(shapes, rf"{_EMBEDDING}\.blocks")
    wider = [shapes[f"{_EMBEDDING}.blocks.{index}.weight"][0] for index in range(1, blocks, 2)]
    config["conditioning_embedding_out_channels"] = [shapes[f"{_EMBEDDING}.conv_in.weight"][0], *wider]
    # Smaller ControlNets for SDXL have fewer transformer blocks than its UNet, or none, or attention without any.
    levels = [f"down_blocks.{level}" for level in range(len(denoiser.config.block_out_channels))]
    has_attention = [f"{level}.attentions.0.norm.weight" in shapes for level in levels]
    config["down_block_types"] = ["CrossAttnDownBlock2D" if has else "DownBlock2D" for has in has_attention]
    layers = [
        _count(shapes, rf"{re.escape(level)}\.attentions\.0\.transformer_blocks") if has else 1
        for level, has in zip(levels, has_attention, strict=True)
    ]
    if "mid_block.attentions.0.norm.weight" in shapes:
        # The middle block has as many as the last level.
        layers[-1] = _count(shapes, r"mid_block\.attentions\.0\.transformer_blocks")
    config["transformer_layers_per_block"] = layers if set(layers) != {1} else 1
    return config


def _plain_unet(shapes: Shapes, denoiser: Any) -> Config:
    config = _unet(shapes, denoiser)
    has_attention = is_original(shapes) or any(key.startswith("mid_block.attentions.") for key in shapes)
    return {**config, "mid_block_type": "UNetMidBlock2DCrossAttn" if has_attention else "UNetMidBlock2D"}


def _union(shapes: Shapes, denoiser: Any) -> Config:
    types, width = shapes["task_embedding"]
    return {
        **_unet(shapes, denoiser),
        "num_control_type": types,
        "num_trans_channel": width,
        "num_trans_layer": _count(shapes, "transformer_layes"),
        "num_proj_channel": shapes["spatial_ch_projs.weight"][0],
    }


def _flux(shapes: Shapes, _denoiser: Any) -> Config:
    hint = shapes.get("input_hint_block.conv_out.weight")
    modes = shapes.get("controlnet_mode_embedder.weight")
    return {
        "num_layers": _count(shapes, "transformer_blocks"),
        "num_single_layers": _count(shapes, "single_transformer_blocks"),
        "guidance_embeds": "time_text_embed.guidance_embedder.linear_1.weight" in shapes,
        "num_mode": None if modes is None else modes[0],
        "conditioning_embedding_channels": None if hint is None else hint[0],
        "patch_size": 1 if hint is None else 2,
    }


def _sd3(shapes: Shapes, denoiser: Any) -> Config:
    layers = _count(shapes, "transformer_blocks")
    text, positions = shapes.get("context_embedder.weight"), shapes.get("pos_embed.pos_embed")
    return {
        "num_layers": layers,
        "joint_attention_dim": None if text is None else text[1],
        "use_pos_embed": positions is not None,
        "pos_embed_type": "sincos" if positions is not None else None,
        **({} if positions is None else {"pos_embed_max_size": round(positions[1] ** 0.5)}),
        "extra_conditioning_channels": shapes["pos_embed_input.proj.weight"][1] - denoiser.config.in_channels,
        "qk_norm": "rms_norm" if "transformer_blocks.0.attn.norm_q.weight" in shapes else None,
        "dual_attention_layers": [
            index for index in range(layers) if f"transformer_blocks.{index}.attn2.to_q.weight" in shapes
        ],
        # Those of Stable Diffusion 3.5, which share the position embedding, were trained with the pooled prompt.
        "force_zeros_for_pooled_projection": positions is not None,
    }


def _qwen(shapes: Shapes, denoiser: Any) -> Config:
    return {
        "num_layers": _count(shapes, "transformer_blocks"),
        "extra_condition_channels": shapes["controlnet_x_embedder.weight"][1] - denoiser.config.in_channels,
    }


def _z_image(shapes: Shapes, denoiser: Any, *, is_refined_by_layers: bool) -> Config:
    count, layers = _count(shapes, "control_layers"), denoiser.config.n_layers
    refiner: str | None = "control_noise_refiner"
    if is_refined_by_layers or not _count(shapes, "control_noise_refiner"):
        refiner = "control_layers"
    elif "control_noise_refiner.0.after_proj.weight" not in shapes:
        refiner = None
    return {
        "control_layers_places": list(range(0, layers, layers // count))[:count],
        "control_refiner_layers_places": None if refiner is None else list(range(denoiser.config.n_refiner_layers)),
        "control_in_dim": shapes["control_all_x_embedder.2-1.weight"][1] // 4,
        "add_control_noise_refiner": refiner,
    }


_READERS: Mapping[str, Callable[[Shapes, Any], Config]] = {
    "ControlNetModel": _plain_unet,
    "ControlNetUnionModel": _union,
    "FluxControlNetModel": _flux,
    "SD3ControlNetModel": _sd3,
    "QwenImageControlNetModel": _qwen,
}


def _count(shapes: Shapes, prefix: str) -> int:
    """Return how many numbers follow a prefix (a regular expression) in the keys."""
    pattern = re.compile(rf"{prefix}\.(\d+)\.")
    return len({match[1] for key in shapes if (match := pattern.match(key))})
