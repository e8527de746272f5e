"""Tiny random IP-Adapters of several layouts, with the keys of published files and an image encoder beside them."""

from pathlib import Path

import torch
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel
from diffusers.models.attention_processor import SD3IPAdapterJointAttnProcessor2_0
from diffusers.models.embeddings import (
    IPAdapterFullImageProjection,
    IPAdapterPlusImageProjection,
    IPAdapterTimeImageProjection,
)
from safetensors.torch import load_file, save_file
from transformers import SiglipVisionConfig, SiglipVisionModel

from tests.support.models.tiny_adapters import tiny_ip_adapter

FILE = "ip-adapter.safetensors"
RESAMPLER = (
    (".ln0.", ".0.norm1."),
    (".ln1.", ".0.norm2."),
    (".attn.to_q.", ".0.to_q."),
    (".attn.to_out.0.", ".0.to_out."),
)
# Names in diffusers, and those in the files of IP-Adapter Plus.
PLUS = (*RESAMPLER, (".ff.0.", ".1.0."), (".ff.1.net.0.proj.", ".1.1."), (".ff.1.net.2.", ".1.3."))
# The same for the adapter of InstantX for Stable Diffusion 3.
SD3 = (
    *RESAMPLER,
    (".attn.to_kv.", ".0.to_kv."),
    (".adaln_norm.", ".1.0."),
    (".ff.net.0.proj.", ".1.1."),
    (".ff.net.2.", ".1.3."),
    (".adaln_proj.", ".2.1."),
)


def ip_adapter_plus(model: Path, folder: Path) -> Path:
    """IP-Adapter Plus: a resampler of the hidden states of the image encoder."""
    tiny_ip_adapter(model, folder)
    across = UNet2DConditionModel.load_config(model, subfolder="unet")["cross_attention_dim"]
    projection = IPAdapterPlusImageProjection(
        embed_dims=32, output_dims=across, hidden_dims=64, heads=1, num_queries=4
    ).state_dict()
    weights = {}
    for key, tensor in projection.items():
        name = _renamed(key, PLUS)
        if ".attn.to_k." in name:
            both = [tensor, projection[key.replace(".to_k.", ".to_v.")]]
            weights[name.replace(".attn.to_k.", ".0.to_kv.")] = torch.cat(both)
        elif ".attn.to_v." not in name:
            weights[name] = tensor
    return _replace_projection(folder, weights)


def ip_adapter_full_face(model: Path, folder: Path) -> Path:
    """IP-Adapter full-face: a projection of every hidden state of the image encoder."""
    tiny_ip_adapter(model, folder)
    across = UNet2DConditionModel.load_config(model, subfolder="unet")["cross_attention_dim"]
    names = (("ff.net.0.proj", "proj.0"), ("ff.net.2", "proj.2"), ("norm", "proj.3"))
    projection = IPAdapterFullImageProjection(image_embed_dim=32, cross_attention_dim=across).state_dict()
    return _replace_projection(folder, {_renamed(key, names): tensor for key, tensor in projection.items()})


def ip_adapter_flux(model: Path, folder: Path) -> Path:
    """IP-Adapter of XLabs for FLUX.1."""
    from tests.support.models.tiny_models import tiny_sd

    # For its image encoder.
    tiny_ip_adapter(tiny_sd(folder / "sd"), folder)
    transformer = FluxTransformer2DModel.from_pretrained(model, subfolder="transformer")
    torch.manual_seed(0)
    across, tokens = transformer.config.joint_attention_dim, 4
    weights = {
        "ip_adapter_proj_model.proj.weight": torch.randn(tokens * across, 32),
        "ip_adapter_proj_model.proj.bias": torch.randn(tokens * across),
        "ip_adapter_proj_model.norm.weight": torch.ones(across),
        "ip_adapter_proj_model.norm.bias": torch.zeros(across),
    }
    for block in range(transformer.config.num_layers):
        for part in ("k", "v"):
            start = f"double_blocks.{block}.processor.ip_adapter_double_stream_{part}_proj"
            weights[f"{start}.weight"] = torch.randn(transformer.inner_dim, across)
            weights[f"{start}.bias"] = torch.randn(transformer.inner_dim)
    save_file(weights, folder / FILE)
    return folder


def ip_adapter_sd3(model: Path, folder: Path) -> Path:
    """IP-Adapter of InstantX for Stable Diffusion 3."""
    transformer = SD3Transformer2DModel.from_pretrained(model, subfolder="transformer")
    torch.manual_seed(0)
    width = transformer.config.attention_head_dim * transformer.config.num_attention_heads
    projection = IPAdapterTimeImageProjection(
        embed_dim=32, output_dim=width, hidden_dim=64, heads=1, num_queries=4, timestep_in_dim=32
    ).state_dict()
    weights = {f"image_proj.{_renamed(key, SD3)}": tensor for key, tensor in projection.items()}
    for block in range(len(transformer.attn_processors)):
        processor = SD3IPAdapterJointAttnProcessor2_0(
            hidden_size=width,
            ip_hidden_states_dim=width,
            head_dim=transformer.config.attention_head_dim,
            timesteps_emb_dim=64,
        )
        weights |= {f"ip_adapter.{block}.{key}": 3 * tensor for key, tensor in processor.state_dict().items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_file({key: tensor.contiguous() for key, tensor in weights.items()}, folder / FILE)
    config = SiglipVisionConfig(
        hidden_size=32,
        intermediate_size=37,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=32,
        patch_size=8,
    )
    SiglipVisionModel(config).save_pretrained(folder / "image_encoder")
    return folder


def _renamed(key: str, names: tuple[tuple[str, str], ...]) -> str:
    for old, new in names:
        key = key.replace(old, new)
    return key


def _replace_projection(folder: Path, projection: dict[str, torch.Tensor]) -> Path:
    weights = {key: tensor for key, tensor in load_file(folder / FILE).items() if not key.startswith("image_proj.")}
    weights |= {f"image_proj.{key}": tensor.contiguous() for key, tensor in projection.items()}
    save_file(weights, folder / FILE)
    return folder
