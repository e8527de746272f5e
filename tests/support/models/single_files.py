"""Checkpoints in one file: pipelines with the keys of the original implementations."""

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
from transformers import AutoConfig, T5EncoderModel

from img2img.worker.pipelines.loading.checkpoint_layouts import LAYOUTS
from img2img.worker.pipelines.loading.locations import components
from tests.support.models.transformer_files import flux_weights, sd3_weights

Weights = dict[str, torch.Tensor]

# Input channels of UNets that take an image beside the latents.
_IN_CHANNELS = {"inpainting": 9, "inpainting_v2": 9, "xl_inpaint": 9, "instruct-pix2pix": 8, "upscale": 7}

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
    "class_embedding": "label_emb",
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
_TEXT_ENCODERS = {"text_encoder": "clip_l", "text_encoder_2": "clip_g", "T5": "t5xxl"}
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
    weights = _prefixed("first_stage_model.", vae_weights(pipeline.vae))
    transformer = pipeline.components.get("transformer")
    if transformer is not None:
        keys = flux_weights if type(transformer).__name__.startswith("Flux") else sd3_weights
        weights |= _prefixed("model.diffusion_model.", keys(transformer))
        return weights | text_encoder_weights(pipeline)
    weights |= _prefixed("model.diffusion_model.", unet_weights(pipeline.unet))
    second = pipeline.components.get("text_encoder_2")
    if second is None:
        if pipeline.text_encoder.config.hidden_act == "gelu":
            return weights | _prefixed("cond_stage_model.model.", openclip_weights(pipeline.text_encoder))
        return weights | _prefixed("cond_stage_model.transformer.", clip_weights(pipeline.text_encoder))
    if pipeline.text_encoder is None:
        return weights | _prefixed("conditioner.embedders.0.model.", openclip_weights(second))
    weights |= _prefixed("conditioner.embedders.0.transformer.", clip_weights(pipeline.text_encoder))
    return weights | _prefixed("conditioner.embedders.1.model.", openclip_weights(second))


def text_encoder_weights(pipeline: DiffusionPipeline) -> Weights:
    """Return the weights of the text encoders of Stable Diffusion 3 and FLUX by their keys in files of all components.

    The first CLIP text encoder has no projection there.
    """
    weights = {}
    for name, encoder in pipeline.components.items():
        if not name.startswith("text_encoder") or encoder is None:
            continue
        prefix = _TEXT_ENCODERS["T5" if isinstance(encoder, T5EncoderModel) else name]
        weights |= _prefixed(f"text_encoders.{prefix}.transformer.", text_encoder_file_weights(encoder))
    weights.pop("text_encoders.clip_l.transformer.text_projection.weight", None)
    return weights


def text_encoder_file_weights(encoder: torch.nn.Module) -> Weights:
    """Return the weights of a text encoder as in a file of its own. T5 has its embeddings once."""
    if isinstance(encoder, T5EncoderModel):
        return {key: value for key, value in encoder.state_dict().items() if key != "encoder.embed_tokens.weight"}
    return {
        key if key.startswith(("text_model.", "text_projection.")) else f"text_model.{key}": value
        for key, value in encoder.state_dict().items()
    }


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


def empty_pipeline(kind: str, folder: Path) -> DiffusionPipeline:
    """Return a pipeline of full size with the packaged configurations of a kind, whose weights are on the meta device.

    Args:
        folder: folder to write the configurations to.
    """
    layout = LAYOUTS[kind]
    layout.write(folder, in_channels=_IN_CHANNELS.get(kind, 4))
    modules: dict[str, Any] = {}
    with torch.device("meta"):
        for name, (library, class_name) in components(json.loads((folder / "model_index.json").read_text())).items():
            if library == "transformers" and name in layout.text_encoders:
                config = AutoConfig.from_pretrained(folder / name)
                modules[name] = getattr(transformers, class_name)(config)
            elif library == "diffusers" and not name.endswith("scheduler"):
                config = json.loads((folder / name / "config.json").read_text())
                modules[name] = getattr(diffusers, class_name).from_config(config)
    return SimpleNamespace(**{"text_encoder": None, **modules}, components=modules)  # type: ignore[return-value]


def _prefixed(prefix: str, weights: Weights) -> Weights:
    return {prefix + key: tensor for key, tensor in weights.items()}


def _replaced(name: str, replacements: Mapping[str, str]) -> str:
    for old, new in replacements.items():
        name = re.sub(rf"(^|\.){re.escape(old)}(?=\.|$)", rf"\g<1>{new}", name)
    return name
