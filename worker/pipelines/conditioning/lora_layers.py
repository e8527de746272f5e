"""Finds the layers of a model that the tensors of a LoRA file belong to, and puts the changes there."""

import re
from collections.abc import Mapping
from types import SimpleNamespace

import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from diffusers.loaders.lora_conversion_utils import _maybe_map_sgm_blocks_to_diffusers
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from ...errors import StartupError
from ..loading.weight_kinds import examples
from .delta_layers import DeltaLayer, Factors, rank_of

# A key is the name of a layer and that of a factor. Factors by their names in files.
_FACTOR = re.compile(
    r"^(?P<layer>.+?)\.(?P<factor>alpha|scalar|diff(?:_b)?|dora_scale|hada_(?:w[12]_[ab]|t[12])|lokr_(?:w[12](?:_[ab])?|t2)"
    r"|lora_(?:down|up|mid)\.weight|lora_[AB]\.weight)$"
)
_SAME = {"lora_A": "lora_down", "lora_B": "lora_up"}
# Component by prefix of a layer's name; None is the denoiser. kohya's scripts replace dots by underscores.
_PREFIXES = {
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
    "lora_te_": "text_encoder",
    "text_encoder_2.": "text_encoder_2",
    "text_encoder.": "text_encoder",
    "lora_unet_": None,
    "lora_transformer_": None,
    "lycoris_": None,
    "unet.": None,
    "transformer.": None,
    "diffusion_model.": None,
    "base_model.model.": None,
}
# Layers of a UNet in the original code of Stable Diffusion XL, whose names kohya's scripts use.
_SGM_LAYERS = (
    ("time_embed_0", "time_embedding_linear_1"),
    ("time_embed_2", "time_embedding_linear_2"),
    ("label_emb_0_0", "add_embedding_linear_1"),
    ("label_emb_0_2", "add_embedding_linear_2"),
    ("input_blocks_0_0", "conv_in"),
    ("out_2", "conv_out"),
)
_SGM_PARTS = (
    ("input_blocks_", "down_blocks_"),
    ("middle_block_", "mid_block_"),
    ("output_blocks_", "up_blocks_"),
    ("_in_layers_2", "_conv1"),
    ("_out_layers_3", "_conv2"),
    ("_emb_layers_1", "_time_emb_proj"),
    ("_skip_connection", "_conv_shortcut"),
    ("_downsamplers_0_op", "_downsamplers_0_conv"),
)


def factors_by_layer(weights: Mapping[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    """Return the factors of each layer, by the name of the layer in the file.

    Raises:
        StartupError: if there are tensors of another kind.
    """
    layers: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in weights.items():
        match = _FACTOR.match(key)
        if match is None:
            raise StartupError(f"it has tensors that are not supported, such as {examples([key])}")
        factor = match["factor"].removesuffix(".weight")
        layers.setdefault(match["layer"], {})[_SAME.get(factor, factor)] = tensor
    return layers


def add_changes(pipeline: DiffusionPipeline, adapter: str, weights: Mapping[str, torch.Tensor]) -> None:
    """Add the changes of a LoRA file to the layers of a pipeline's components.

    Raises:
        StartupError: if the file has tensors of another kind, or layers that the model does not have.
    """
    layers = factors_by_layer(weights)
    known = {component: _layers_by_name(getattr(pipeline, component)) for component in lora_components(pipeline)}
    placed = {
        name: (component, _find(known.get(component, {}), path))
        for name, (component, path) in _paths(pipeline, layers).items()
    }
    missing = [name for name, (_, path) in placed.items() if path is None]
    if missing:
        raise StartupError(
            f"{len(missing)} of its {len(layers)} layers are not in the model, such as {examples(missing)}"
        )
    for name, (component, path) in placed.items():
        assert path is not None
        factors = dict(layers[name])
        scale = _pop_scale(factors)
        if len({factor.partition("_")[0] for factor in factors} - {"dora"}) != 1:
            raise StartupError(f"{examples([name])} has none or several changes: {', '.join(sorted(factors))}")
        try:
            _delta_layer(getattr(pipeline, component), path).add(adapter, factors, scale)
        except (RuntimeError, KeyError) as error:
            shapes = ", ".join(f"{factor} {list(tensor.shape)}" for factor, tensor in sorted(factors.items()))
            raise StartupError(f"the shapes of {examples([name])} are not those of the layer: {shapes}") from error


def _pop_scale(factors: dict[str, torch.Tensor]) -> float:
    """Remove alpha and the learned scalar of LyCORIS from the factors of a layer, and return the scale they make."""
    alpha, scalar = factors.pop("alpha", None), factors.pop("scalar", None)
    rank = rank_of(factors)
    scale = float(alpha) / rank if alpha is not None and rank else 1.0
    return scale if scalar is None else scale * float(scalar)


def _paths(pipeline: DiffusionPipeline, layers: Mapping[str, Factors]) -> dict[str, tuple[str, str]]:
    """Return component and path of each layer; the path can have underscores in place of dots."""
    denoiser = "unet" if hasattr(pipeline, "unet") else "transformer"
    paths = {}
    for name in layers:
        prefix = next((prefix for prefix in _PREFIXES if name.startswith(prefix)), "")
        component = _PREFIXES.get(prefix) or denoiser
        paths[name] = (component, name.removeprefix(prefix))
    if denoiser == "unet":
        in_unet = [path for component, path in paths.values() if component == "unet"]
        renamed = _from_sgm(in_unet, pipeline.unet)
        paths = {
            name: (component, renamed[path] if component == "unet" else path)
            for name, (component, path) in paths.items()
        }
    return paths


def _from_sgm(paths: list[str], unet: UNet2DConditionModel) -> dict[str, str]:
    """Return the layers of a UNet by their names in a file, which can be those of Stable Diffusion XL's own code."""
    mapped = {path: path for path in paths}
    in_blocks = [path for path in paths if path.startswith(("input_blocks_", "middle_block_", "output_blocks_"))]
    if in_blocks:
        # diffusers' function renames keys, and returns each with its value.
        keys = {f"lora_unet_{path}": path for path in in_blocks}
        config = SimpleNamespace(layers_per_block=unet.config.layers_per_block)
        renamed = _maybe_map_sgm_blocks_to_diffusers(keys, config)
        mapped |= {path: key.removeprefix("lora_unet_") for key, path in renamed.items()}
    for path, name in mapped.items():
        whole = dict(_SGM_LAYERS).get(path)
        for old, new in () if whole else _SGM_PARTS:
            name = name.replace(old, new)
        mapped[path] = whole or name
    return mapped


def lora_components(pipeline: DiffusionPipeline) -> list[str]:
    """Return the names of the components that a LoRA can have weights for."""
    return [name for name in pipeline._lora_loadable_modules if getattr(pipeline, name, None) is not None]


def _find(known: Mapping[str, str], path: str) -> str | None:
    """Return the path of a layer, which can have underscores in place of dots; None if there is no such layer."""
    underscored = path.replace(".", "_")
    # transformers 5 has no module `text_model` in text encoders.
    return known.get(underscored) or known.get(underscored.removeprefix("text_model_"))


def _layers_by_name(model: nn.Module) -> dict[str, str]:
    """Return the paths of the linear and convolution layers by their names with underscores."""
    layers: dict[str, str] = {}
    wrapped: tuple[str, ...] = ()
    for path, module in model.named_modules():
        if path.startswith(wrapped):
            continue
        if isinstance(module, BaseTunerLayer):
            wrapped = (*wrapped, f"{path}.")
        if isinstance(module, nn.Linear | nn.Conv2d | BaseTunerLayer):
            layers[path.replace(".", "_")] = path
    return layers


def _delta_layer(model: nn.Module, path: str) -> DeltaLayer:
    """Return the delta layer at a path, around the layer of the model and within those of PEFT."""
    parent_path, _, name = path.rpartition(".")
    parent, layer = model.get_submodule(parent_path), model.get_submodule(path)
    while isinstance(layer, BaseTunerLayer) and not isinstance(layer, DeltaLayer):
        parent, name, layer = layer, "base_layer", layer.get_submodule("base_layer")
    if not isinstance(layer, DeltaLayer):
        layer = DeltaLayer(layer)
        setattr(parent, name, layer)
    return layer
