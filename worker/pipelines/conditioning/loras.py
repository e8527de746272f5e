"""Loading LoRAs: all of a model's adapters into twins of its modules, so that the modules themselves stay plain."""

import copy
import re
from collections.abc import Mapping

from diffusers import DiffusionPipeline
from peft.tuners.lora import LoraLayer
from safetensors import safe_open

from ...errors import StartupError
from ..families import Family
from ..loading.model_config import ComponentSource, ModelConfig
from ..loading.weights import first_line, weights_file
from .shared_weight_module import copy_sharing_weights

FILE_NAME = "pytorch_lora_weights.safetensors"  # what diffusers calls such a file
# One key for each layer of a LoRA, in the ways that diffusers, PEFT and kohya's scripts write it.
LAYER = re.compile(r"(?:lora_A|down)(?:\.[^.]+)?\.weight$")


def load_loras(
    entry: ModelConfig, pipeline: DiffusionPipeline, family: Family, adapters: Mapping[str, str]
) -> DiffusionPipeline:
    """A pipeline of twins that carry every LoRA of the entry. adapters: LoRA name -> name that PEFT knows it by.

    Raises StartupError for a LoRA that does not fit.
    """
    if not family.loras or not hasattr(pipeline, "load_lora_weights"):
        raise StartupError(f"model {entry.name!r}: LoRAs are not supported for {family.name} models; remove `loras`")
    twins = copy.copy(pipeline)
    for name in loadable(pipeline):
        setattr(twins, name, copy_sharing_weights(getattr(pipeline, name)))
    for name, part in entry.loras.items():
        _load(twins, adapters[name], part, f"model {entry.name!r}: LoRA {name!r}")
    return twins


def loadable(pipeline: DiffusionPipeline) -> list[str]:
    """The components that a LoRA can have weights for."""
    return [name for name in pipeline._lora_loadable_modules if getattr(pipeline, name, None) is not None]


def adapters_in(pipeline: DiffusionPipeline, name: str) -> frozenset[str]:
    """The adapters that have weights in a component."""
    layers = (module for module in getattr(pipeline, name).modules() if isinstance(module, LoraLayer))
    return frozenset(adapter for layer in layers for adapter in layer.scaling)


def _load(twins: DiffusionPipeline, adapter: str, part: ComponentSource, what: str) -> None:
    file = weights_file(part, what, default=FILE_NAME)
    with safe_open(file, framework="pt") as weights:
        keys = list(weights.keys())
    if any("dora_scale" in key for key in keys):
        raise StartupError(f"{what}: {file.name} is a DoRA in a format whose magnitudes diffusers would drop")
    expected = sum(bool(LAYER.search(key)) for key in keys)
    try:
        twins.load_lora_weights(file.parent, weight_name=file.name, adapter_name=adapter, use_safetensors=True)
    except Exception as error:  # of a wrong file, diffusers and PEFT raise anything
        raise StartupError(f"{what} does not fit: {first_line(error)}") from error
    landed = sum(
        isinstance(module, LoraLayer) and adapter in module.scaling
        for name in loadable(twins)
        for module in getattr(twins, name).modules()
    )
    if not expected or landed < expected:
        raise StartupError(f"{what} does not fit: the model has {landed} of the {expected} layers in {file.name}")
