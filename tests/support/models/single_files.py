"""Checkpoints in one file: pipelines of Stable Diffusion 1, 2 and XL with the keys of the original implementations."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline
from safetensors.torch import save_file
from transformers import CLIPTextConfig

from img2img.worker.pipelines.loading.checkpoint_configs import LAYOUTS
from img2img.worker.pipelines.loading.locations import components

Weights = dict[str, torch.Tensor]

# Input channels of the UNets that have an image beside the latents.
_IN_CHANNELS = {"inpainting": 9, "inpainting_v2": 9, "xl_inpaint": 9, "instruct-pix2pix": 8}

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_UNET = {
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
_VAE_NAMES = {
    "mid_block.resnets.0": "mid.block_1",
    "mid_block.resnets.1": "mid.block_2",
    "mid_block.attentions.0": "mid.attn_1",
    "conv_norm_out": "norm_out",
    "conv_shortcut": "nin_shortcut",
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}
_OPENCLIP_NAMES = {
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}


def write_checkpoint(pipeline: DiffusionPipeline, file: Path, **more: torch.Tensor) -> Path:
    """Write a pipeline as one file."""
    weights = {key: tensor.contiguous() for key, tensor in original_weights(pipeline).items()}
    save_file({**weights, **more}, file, metadata={"format": "pt"})
    return file


def write_header(kind: str, file: Path, folder: Path, metadata: Mapping[str, str] | None = None, **more: int) -> None:
    """Write a file of full size, without its content: a sparse file of zeros.

    Args:
        folder: folder for the configurations.
        more: additional tensors with one integer each.
    """
    weights = original_weights(empty_pipeline(kind, folder))
    header: dict[str, Any] = {"__metadata__": dict(metadata or {})}
    for number, key in enumerate(more):
        header[key] = {"dtype": "I64", "shape": [], "data_offsets": [8 * number, 8 * number + 8]}
    offset = 8 * len(more)
    for key, tensor in weights.items():
        size = 2 * tensor.numel()
        header[key] = {"dtype": "F16", "shape": list(tensor.shape), "data_offsets": [offset, offset + size]}
        offset += size
    content = json.dumps(header).encode()
    with file.open("wb") as opened:
        opened.write(len(content).to_bytes(8, "little") + content)
        opened.write(b"".join(value.to_bytes(8, "little") for value in more.values()))
        opened.truncate(8 + len(content) + offset)


def original_weights(pipeline: DiffusionPipeline) -> Weights:
    """Return the weights of a pipeline by their original keys."""
    weights = _prefixed("model.diffusion_model.", unet_weights(pipeline.unet))
    weights |= _prefixed("first_stage_model.", vae_weights(pipeline.vae))
    second = pipeline.components.get("text_encoder_2")
    if second is None:
        if pipeline.text_encoder.config.hidden_act == "gelu":
            return weights | _prefixed("cond_stage_model.model.", openclip_weights(pipeline.text_encoder))
        return weights | _prefixed("cond_stage_model.transformer.", clip_weights(pipeline.text_encoder))
    if pipeline.text_encoder is None:
        return weights | _prefixed("conditioner.embedders.0.model.", openclip_weights(second))
    weights |= _prefixed("conditioner.embedders.0.transformer.", clip_weights(pipeline.text_encoder))
    return weights | _prefixed("conditioner.embedders.1.model.", openclip_weights(second))


def unet_weights(unet: torch.nn.Module) -> Weights:
    """Return the weights of a UNet: blocks of all levels are numbered in one sequence."""
    names, levels, layers = dict(_UNET), len(unet.config.block_out_channels), unet.config.layers_per_block
    number = 1
    for level in range(levels):
        for layer in range(layers):
            names[f"down_blocks.{level}.resnets.{layer}"] = f"input_blocks.{number}.0"
            names[f"down_blocks.{level}.attentions.{layer}"] = f"input_blocks.{number}.1"
            number += 1
        names[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{number}.0.op"
        number += 1
    number = 0
    for level, block in enumerate(getattr(unet, "up_blocks", ())):
        for layer in range(layers + 1):
            names[f"up_blocks.{level}.resnets.{layer}"] = f"output_blocks.{number}.0"
            names[f"up_blocks.{level}.attentions.{layer}"] = f"output_blocks.{number}.1"
            number += 1
        place = 2 if hasattr(block, "attentions") else 1
        names[f"up_blocks.{level}.upsamplers.0.conv"] = f"output_blocks.{number - 1}.{place}.conv"
    weights = {}
    for key, tensor in unet.state_dict().items():
        start = max((name for name in names if key.startswith(f"{name}.")), key=len, default=None)
        if start is None:
            continue
        rest = key.removeprefix(start)
        if "resnets" in start:
            rest = re.sub(r"^\.(\w+)", lambda match: f".{_RESNET[match[1]]}", rest)
        weights[names[start] + rest] = tensor
    return weights


def controlnet_weights(net: torch.nn.Module) -> Weights:
    """Return the weights of a ControlNet: those of half a UNet, and its own."""
    weights = unet_weights(net)
    blocks = len(net.controlnet_cond_embedding.blocks)
    own = {"conv_in": "0", "conv_out": "14", **{f"blocks.{block}": f"{2 * block + 2}" for block in range(blocks)}}
    for key, tensor in net.state_dict().items():
        name, part = key.rpartition(".")[::2]
        if name.startswith("controlnet_cond_embedding."):
            weights[f"input_hint_block.{own[name.partition('.')[2]]}.{part}"] = tensor
        elif name == "controlnet_mid_block":
            weights[f"middle_block_out.0.{part}"] = tensor
        elif name.startswith("controlnet_down_blocks."):
            weights[f"zero_convs.{name.rpartition('.')[2]}.0.{part}"] = tensor
    return _prefixed("control_model.", weights)


def vae_weights(vae: torch.nn.Module) -> Weights:
    """Return the weights of a VAE: levels of the decoder are numbered from the last, attention is a convolution."""
    last = len(vae.config.block_out_channels) - 1
    weights = {}
    for key, tensor in vae.state_dict().items():
        name = re.sub(r"down_blocks\.(\d+)\.resnets", r"down.\1.block", key)
        name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", name)
        name = re.sub(r"up_blocks\.(\d+)\.resnets", lambda match: f"up.{last - int(match[1])}.block", name)
        name = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda match: f"up.{last - int(match[1])}.upsample", name)
        name = _replaced(name, _VAE_NAMES)
        is_projection = "mid.attn_1" in name and tensor.ndim == 2
        weights[name] = tensor[:, :, None, None] if is_projection else tensor
    return weights


def clip_weights(encoder: torch.nn.Module) -> Weights:
    """Return the weights of OpenAI's CLIP, whose keys are those of transformers."""
    return {f"text_model.{key.removeprefix('text_model.')}": value for key, value in encoder.state_dict().items()}


def openclip_weights(encoder: torch.nn.Module) -> Weights:
    """Return the weights of OpenCLIP: projections of queries, keys and values are one tensor."""
    source = {key.removeprefix("text_model."): value for key, value in encoder.state_dict().items()}
    weights = {
        "positional_embedding": source["embeddings.position_embedding.weight"],
        "token_embedding.weight": source["embeddings.token_embedding.weight"],
        "ln_final.weight": source["final_layer_norm.weight"],
        "ln_final.bias": source["final_layer_norm.bias"],
    }
    if "text_projection.weight" in source:
        weights["text_projection"] = source["text_projection.weight"].T
    for key, tensor in source.items():
        match = re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)", key)
        if match is None or re.search(r"self_attn\.[qkv]_proj", key):
            continue
        weights[f"transformer.resblocks.{match[1]}.{_replaced(match[2], _OPENCLIP_NAMES)}"] = tensor
    for layer in range(encoder.config.num_hidden_layers):
        for part in ("weight", "bias"):
            parts = [source[f"encoder.layers.{layer}.self_attn.{letter}_proj.{part}"] for letter in "qkv"]
            weights[f"transformer.resblocks.{layer}.attn.in_proj_{part}"] = torch.cat(parts)
    return weights


_SD3 = {
    "pos_embed.pos_embed": "pos_embed",
    "pos_embed.proj": "x_embedder.proj",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
    "proj_out": "final_layer.linear",
}
_SD3_BLOCK = {
    "attn.to_out.0": "x_block.attn.proj",
    "attn.to_add_out": "context_block.attn.proj",
    "norm1.linear": "x_block.adaLN_modulation.1",
    "norm1_context.linear": "context_block.adaLN_modulation.1",
    "ff.net.0.proj": "x_block.mlp.fc1",
    "ff.net.2": "x_block.mlp.fc2",
    "ff_context.net.0.proj": "context_block.mlp.fc1",
    "ff_context.net.2": "context_block.mlp.fc2",
}


def sd3_weights(transformer: torch.nn.Module) -> Weights:
    """Return the weights of a transformer of Stable Diffusion 3."""
    source, weights = transformer.state_dict(), {}
    last = transformer.config.num_layers - 1
    for key, tensor in source.items():
        match = re.fullmatch(r"transformer_blocks\.(\d+)\.(.+)\.(weight|bias)", key)
        if match is None:
            name = _replaced(key, _SD3)
        elif match[2] in _SD3_BLOCK:
            name = f"joint_blocks.{match[1]}.{_SD3_BLOCK[match[2]]}.{match[3]}"
        else:
            continue
        # Shift and scale of the last normalisation are in the other order.
        is_swapped = "norm_out.linear" in key or f"transformer_blocks.{last}.norm1_context" in key
        weights[name] = torch.cat(tensor.chunk(2)[::-1]) if is_swapped else tensor
    for block in range(last + 1):
        for part in ("weight", "bias"):
            for target, names in (("x", "to_q to_k to_v"), ("context", "add_q_proj add_k_proj add_v_proj")):
                parts = [source[f"transformer_blocks.{block}.attn.{name}.{part}"] for name in names.split()]
                weights[f"joint_blocks.{block}.{target}_block.attn.qkv.{part}"] = torch.cat(parts)
    return weights


def empty_pipeline(kind: str, folder: Path) -> DiffusionPipeline:
    """Return a pipeline of full size with the packaged configurations of a kind, whose weights are on the meta device.

    Args:
        folder: folder to write the configurations to.
    """
    layout = LAYOUTS[kind]
    layout.write(folder, in_channels=_IN_CHANNELS.get(kind, 4), prediction_type=None, zero_snr=False)
    modules: dict[str, Any] = {}
    with torch.device("meta"):
        for name, (library, class_name) in components(json.loads((folder / "model_index.json").read_text())).items():
            if library == "transformers" and name in layout.text_encoders:
                config = CLIPTextConfig.from_pretrained(folder / name)
                modules[name] = getattr(transformers, class_name)(config)
            elif library == "diffusers" and name != "scheduler":
                config = json.loads((folder / name / "config.json").read_text())
                modules[name] = getattr(diffusers, class_name).from_config(config)
    return SimpleNamespace(**{"text_encoder": None, **modules}, components=modules)  # type: ignore[return-value]


def _prefixed(prefix: str, weights: Weights) -> Weights:
    return {prefix + key: tensor for key, tensor in weights.items()}


def _replaced(name: str, replacements: Mapping[str, str]) -> str:
    for old, new in replacements.items():
        name = re.sub(rf"(^|\.){re.escape(old)}(?=\.|$)", rf"\g<1>{new}", name)
    return name
