"""Transformers in single files: weights with the keys of the original implementations."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

Weights = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Keys:
    """Keys of an original implementation.

    Attributes:
        names: (pattern of a key of diffusers, original key), tried in order.
        fused: original key of a tensor -> keys of diffusers whose tensors it has, one after the other.
        swapped: keys of diffusers whose two halves (scale and shift) are in the other order.
    """

    names: Sequence[tuple[str, str]]
    fused: Mapping[str, Sequence[str]] = field(default_factory=dict)
    swapped: str = r"norm_out\.linear"

    def weights(self, transformer: torch.nn.Module) -> Weights:
        """Return the weights of a transformer by their original keys."""
        source = transformer.state_dict()
        weights = {}
        for key, tensor in source.items():
            if any(part in key for parts in self.fused.values() for part in parts):
                continue
            name = key
            for pattern, replacement in self.names:
                name = re.sub(pattern, replacement, name)
            weights[name] = torch.cat(tensor.chunk(2)[::-1]) if re.search(self.swapped, key) else tensor
        return {**weights, **self._fused(source)}

    def _fused(self, source: Mapping[str, torch.Tensor]) -> Weights:
        weights = {}
        for target, parts in self.fused.items():
            for key in source:
                if parts[0] in key:
                    tensors = [source[key.replace(parts[0], part)] for part in parts]
                    name = key.replace(parts[0], target)
                    for pattern, replacement in self.names:
                        name = re.sub(pattern, replacement, name)
                    weights[name] = torch.cat(tensors)
        return weights


_QKV, _ADDED = ("attn.to_q.", "attn.to_k.", "attn.to_v."), ("attn.add_q_proj.", "attn.add_k_proj.", "attn.add_v_proj.")


def sd3_keys(layers: int) -> Keys:
    """Return the keys of Stable Diffusion 3 and 3.5."""
    return Keys(
        (
            (r"^pos_embed\.proj", "x_embedder.proj"),
            (r"^pos_embed\.pos_embed$", "pos_embed"),
            (r"^time_text_embed\.timestep_embedder\.linear_1", "t_embedder.mlp.0"),
            (r"^time_text_embed\.timestep_embedder\.linear_2", "t_embedder.mlp.2"),
            (r"^time_text_embed\.text_embedder\.linear_1", "y_embedder.mlp.0"),
            (r"^time_text_embed\.text_embedder\.linear_2", "y_embedder.mlp.2"),
            (r"^norm_out\.linear", "final_layer.adaLN_modulation.1"),
            (r"^proj_out", "final_layer.linear"),
            (r"^transformer_blocks", "joint_blocks"),
            (r"\.(attn2?)\.to_out\.0", r".x_block.\1.proj"),
            (r"\.attn\.to_add_out", ".context_block.attn.proj"),
            (r"\.(attn2?)\.norm_([qk])\.", r".x_block.\1.ln_\2."),
            (r"\.attn\.norm_added_([qk])\.", r".context_block.attn.ln_\1."),
            (r"\.norm1\.linear", ".x_block.adaLN_modulation.1"),
            (r"\.norm1_context\.linear", ".context_block.adaLN_modulation.1"),
            (r"\.ff\.net\.0\.proj", ".x_block.mlp.fc1"),
            (r"\.ff\.net\.2", ".x_block.mlp.fc2"),
            (r"\.ff_context\.net\.0\.proj", ".context_block.mlp.fc1"),
            (r"\.ff_context\.net\.2", ".context_block.mlp.fc2"),
        ),
        {
            "x_block.attn.qkv.": _QKV,
            "x_block.attn2.qkv.": tuple(part.replace("attn", "attn2") for part in _QKV),
            "context_block.attn.qkv.": _ADDED,
        },
        rf"norm_out\.linear|transformer_blocks\.{layers - 1}\.norm1_context",
    )


def sd3_weights(transformer: torch.nn.Module) -> Weights:
    """Return the weights of Stable Diffusion 3 or 3.5."""
    return sd3_keys(transformer.config.num_layers).weights(transformer)


_FLUX_ENDS = (
    (r"^x_embedder", "img_in"),
    (r"^context_embedder", "txt_in"),
    (r"^norm_out\.linear", "final_layer.adaLN_modulation.1"),
    (r"^proj_out", "final_layer.linear"),
    (r"^\w+\.timestep_embedder\.linear_", "time_in.linear_"),
    (r"^\w+\.text_embedder\.linear_", "vector_in.linear_"),
    (r"^\w+\.guidance_embedder\.linear_", "guidance_in.linear_"),
    (r"_in\.linear_1", "_in.in_layer"),
    (r"_in\.linear_2", "_in.out_layer"),
)
_FLUX_DOUBLE = (
    (r"^transformer_blocks\.(\d+)\.attn\.norm_added_q\.weight", r"double_blocks.\1.txt_attn.norm.query_norm.scale"),
    (r"^transformer_blocks\.(\d+)\.attn\.norm_added_k\.weight", r"double_blocks.\1.txt_attn.norm.key_norm.scale"),
    (r"^transformer_blocks\.(\d+)\.attn\.norm_q\.weight", r"double_blocks.\1.img_attn.norm.query_norm.scale"),
    (r"^transformer_blocks\.(\d+)\.attn\.norm_k\.weight", r"double_blocks.\1.img_attn.norm.key_norm.scale"),
    (r"^transformer_blocks\.(\d+)\.attn\.to_out\.0", r"double_blocks.\1.img_attn.proj"),
    (r"^transformer_blocks\.(\d+)\.attn\.to_add_out", r"double_blocks.\1.txt_attn.proj"),
    (r"^transformer_blocks", "double_blocks"),
)
_FLUX_SINGLE = (
    (r"^single_transformer_blocks\.(\d+)\.attn\.norm_q\.weight", r"single_blocks.\1.norm.query_norm.scale"),
    (r"^single_transformer_blocks\.(\d+)\.attn\.norm_k\.weight", r"single_blocks.\1.norm.key_norm.scale"),
)
_FLUX_FUSED = {"img_attn.qkv.": _QKV, "txt_attn.qkv.": _ADDED}
FLUX = Keys(
    (
        *_FLUX_ENDS,
        *_FLUX_DOUBLE,
        (r"\.norm1\.linear", ".img_mod.lin"),
        (r"\.norm1_context\.linear", ".txt_mod.lin"),
        (r"\.ff\.net\.0\.proj", ".img_mlp.0"),
        (r"\.ff\.net\.2", ".img_mlp.2"),
        (r"\.ff_context\.net\.0\.proj", ".txt_mlp.0"),
        (r"\.ff_context\.net\.2", ".txt_mlp.2"),
        *_FLUX_SINGLE,
        (r"^single_transformer_blocks\.(\d+)\.norm\.linear", r"single_blocks.\1.modulation.lin"),
        (r"^single_transformer_blocks\.(\d+)\.proj_out", r"single_blocks.\1.linear2"),
        (r"^single_transformer_blocks", "single_blocks"),
    ),
    _FLUX_FUSED,
)
FLUX2 = Keys(
    (
        *_FLUX_ENDS,
        *_FLUX_DOUBLE,
        (r"_modulation(_\w+)?\.linear", r"_modulation\1.lin"),
        (r"\.ff\.linear_in", ".img_mlp.0"),
        (r"\.ff\.linear_out", ".img_mlp.2"),
        (r"\.ff_context\.linear_in", ".txt_mlp.0"),
        (r"\.ff_context\.linear_out", ".txt_mlp.2"),
        *_FLUX_SINGLE,
        (r"^single_transformer_blocks\.(\d+)\.attn\.to_qkv_mlp_proj", r"single_blocks.\1.linear1"),
        (r"^single_transformer_blocks\.(\d+)\.attn\.to_out", r"single_blocks.\1.linear2"),
    ),
    _FLUX_FUSED,
)
Z_IMAGE = Keys(
    (
        (r"^all_final_layer\.2-1\.", "final_layer."),
        (r"^all_x_embedder\.2-1\.", "x_embedder."),
        (r"\.attention\.to_out\.0\.", ".attention.out."),
        (r"\.attention\.norm_([qk])\.", r".attention.\1_norm."),
    ),
    {"attention.qkv.": ("attention.to_q.", "attention.to_k.", "attention.to_v.")},
    r"^\b$",
)


def flux_weights(transformer: torch.nn.Module) -> Weights:
    """Return the weights of FLUX.1: single blocks have one layer for queries, keys, values and the first of the MLP."""
    weights = FLUX.weights(transformer)
    for number in range(transformer.config.num_single_layers):
        start = f"single_blocks.{number}."
        for part in ("weight", "bias"):
            qkv = weights.pop(f"{start}img_attn.qkv.{part}")
            weights[f"{start}linear1.{part}"] = torch.cat([qkv, weights.pop(f"{start}proj_mlp.{part}")])
    return weights
