"""Loads the LoRAs of a model into copies of its modules that share their weights."""

import copy
import re
from collections.abc import Mapping

from diffusers import DiffusionPipeline
from peft.tuners.lora import LoraLayer
from safetensors import safe_open

from img2img.domain.model_config import ComponentSource, ModelConfig

from ...errors import StartupError
from ..families import Family
from ..loading.failures import reporting_failures
from ..loading.weight_kinds import examples, kind_of_weights
from ..loading.weights import resolve_weights
from .shared_weight_module import copy_sharing_weights

# Default file name of diffusers.
FILE_NAME = "pytorch_lora_weights.safetensors"
# Matches one key per layer of a LoRA, in the formats of diffusers, PEFT and kohya's scripts.
LAYER_KEY = re.compile(r"(?:lora_A|down)(?:\.[^.]+)?\.weight$")


def check_loras(pipeline: DiffusionPipeline, family: Family) -> None:
    """Raise StartupError if the family has no LoRAs."""
    if not family.loras or not hasattr(pipeline, "load_lora_weights"):
        raise StartupError(f"LoRAs are not supported for {family.name} models; remove `loras`")


def load_loras(config: ModelConfig, pipeline: DiffusionPipeline, peft_names: Mapping[str, str]) -> DiffusionPipeline:
    """Return a pipeline whose components are copies that carry every LoRA of the model.

    Args:
        pipeline: pipeline of the model, before gates are installed. It is not changed.
        peft_names: PEFT adapter name by LoRA name.

    Raises:
        StartupError: if a LoRA does not fit.
    """
    lora_pipeline = copy.copy(pipeline)
    for name in lora_components(pipeline):
        setattr(lora_pipeline, name, copy_sharing_weights(getattr(pipeline, name)))
    for name, source in config.loras.items():
        _load(lora_pipeline, peft_names[name], source, f"LoRA {name!r}")
    return lora_pipeline


def lora_components(pipeline: DiffusionPipeline) -> list[str]:
    """Return the names of the components that a LoRA can have weights for."""
    return [name for name in pipeline._lora_loadable_modules if getattr(pipeline, name, None) is not None]


def adapters_in(pipeline: DiffusionPipeline, name: str) -> frozenset[str]:
    """Return the PEFT names of the adapters that have weights in a component."""
    layers = (module for module in getattr(pipeline, name).modules() if isinstance(module, LoraLayer))
    return frozenset(adapter for layer in layers for adapter in layer.scaling)


def _load(pipeline: DiffusionPipeline, adapter: str, source: ComponentSource, label: str) -> None:
    file = resolve_weights(source, label, default=FILE_NAME)
    with safe_open(file, framework="pt") as weights:
        keys = list(weights.keys())
    kind = kind_of_weights(keys)
    if kind is None:
        raise StartupError(f"{label}: {file.name} does not have the keys of a LoRA, but such as {examples(keys)}")
    if kind != "a LoRA":
        raise StartupError(f"{label}: {file.name} is {kind}; only plain LoRAs are supported")
    expected = sum(bool(LAYER_KEY.search(key)) for key in keys)
    # diffusers and PEFT raise errors of many types for a file that does not fit.
    with reporting_failures(f"{label} does not fit the model"):
        pipeline.load_lora_weights(file.parent, weight_name=file.name, adapter_name=adapter, use_safetensors=True)
    loaded = sum(
        isinstance(module, LoraLayer) and adapter in module.scaling
        for name in lora_components(pipeline)
        for module in getattr(pipeline, name).modules()
    )
    if not expected or loaded < expected:
        raise StartupError(
            f"{label} does not fit the model: {loaded} of the {expected} layers in {file.name} could be loaded"
        )
