"""Loads the LoRAs of a model into copies of its modules that share their weights."""

import copy
import itertools
import json
import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from diffusers.utils import delete_adapter_layers
from peft.tuners.lora import LoraLayer
from safetensors.torch import load

from img2img.domain.model_config import ComponentSource

from ...errors import StartupError
from ..families import Family
from ..loading.failures import reporting_failures
from ..loading.weight_kinds import CHANGES, LORA, examples, kind_of_weights
from ..loading.weights import resolve_weights
from .delta_layers import DeltaLayer
from .lora_bases import check_base
from .lora_layers import add_changes, lora_components
from .shared_weight_module import copy_sharing_weights

# Default file name of diffusers.
FILE_NAME = "pytorch_lora_weights.safetensors"
SUPPORTED = (LORA, CHANGES)
# Matches one key per layer of a LoRA, in the formats of diffusers, PEFT and kohya's scripts.
LAYER_KEY = re.compile(r"(?:lora_A|down)(?:\.[^.]+)?\.weight$")


@dataclass(frozen=True)
class LoadedLora:
    """A LoRA in the modules of a pipeline."""

    # PEFT allows no dots in adapter names, names of LoRAs in models.toml may have some.
    peft_name: str
    source: ComponentSource
    # Path, time of modification and size of its file.
    version: tuple[Path, int, int]


class Loras:
    """The LoRAs of a model, in copies of its modules that share their weights. Immutable."""

    def __init__(self, pipeline: DiffusionPipeline, family: Family, *, plain_only: bool = False) -> None:
        """Return an object without LoRAs.

        Args:
            pipeline: pipeline of the model. It is not changed.
            plain_only: whether only LoRAs that diffusers loads can be used.
        """
        self._plain_only = plain_only
        self._model_pipeline = pipeline
        self._family = family
        self._numbers = itertools.count()
        # Pipeline whose components carry the LoRAs; that of the model if there are none.
        self.pipeline = pipeline
        self.loaded: Mapping[str, LoadedLora] = {}

    def replaced_by(self, sources: Mapping[str, ComponentSource], files: Mapping[str, Path] | None = None) -> "Loras":
        """Return an object with the LoRAs `sources` in new copies of the modules; this one stays as it is.

        LoRAs whose source and file are the same are not read again, and share their weights with this object.

        Args:
            files: file of each LoRA, from `lora_files`; default: they are looked up here.

        Raises:
            StartupError: if the family has no LoRAs, or if a LoRA does not fit.
        """
        replaced = copy.copy(self)
        if not sources:
            replaced.pipeline, replaced.loaded = self._model_pipeline, {}
            return replaced
        check_loras(self.pipeline, self._family)
        files = lora_files(sources) if files is None else files
        versions = {name: _version(file) for name, file in files.items()}
        kept = {
            name: lora
            for name, lora in self.loaded.items()
            if lora.source == sources.get(name) and lora.version == versions[name]
        }
        replaced.pipeline = copy.copy(self.pipeline)
        for component in lora_components(self.pipeline):
            module = copy_sharing_weights(getattr(self.pipeline, component))
            setattr(replaced.pipeline, component, module)
            for lora in (lora for name, lora in self.loaded.items() if name not in kept):
                delete_adapter_layers(module, lora.peft_name)
        replaced.loaded = {
            name: kept.get(name) or LoadedLora(f"lora{next(self._numbers)}", source, versions[name])
            for name, source in sources.items()
        }
        for name, lora in replaced.loaded.items():
            if name not in kept:
                _load(replaced.pipeline, lora.peft_name, files[name], label(name), plain_only=self._plain_only)
        return replaced


def check_loras(pipeline: DiffusionPipeline, family: Family) -> None:
    """Raise StartupError if the family has no LoRAs."""
    if not hasattr(pipeline, "load_lora_weights"):
        raise StartupError(f"LoRAs are not supported for {family.name} models; remove `loras`")


def lora_files(sources: Mapping[str, ComponentSource]) -> dict[str, Path]:
    """Return the file of each LoRA, downloading those from the hub that are not in the cache.

    Raises:
        StartupError: if there is no such file, or no access to it.
    """
    return {name: resolve_weights(source, label(name), default=FILE_NAME) for name, source in sources.items()}


def label(name: str) -> str:
    """Return the name of a LoRA in error messages."""
    return f"LoRA {name!r}"


def _version(file: Path) -> tuple[Path, int, int]:
    status = file.stat()
    return file, status.st_mtime_ns, status.st_size


def adapters_in(pipeline: DiffusionPipeline, name: str) -> frozenset[str]:
    """Return the PEFT names of the adapters that have weights in a component."""
    layers = (layer for layer in getattr(pipeline, name).modules() if isinstance(layer, LoraLayer | DeltaLayer))
    return frozenset(adapter for layer in layers for adapter in layer.scaling)


def _load(pipeline: DiffusionPipeline, adapter: str, file: Path, label: str, *, plain_only: bool) -> None:
    weights, metadata = _read(file, label)
    kind = kind_of_weights(weights)
    if kind is None:
        raise StartupError(f"{label}: {file.name} does not have the keys of a LoRA, but such as {examples(weights)}")
    if kind not in SUPPORTED:
        raise StartupError(f"{label}: {file.name} is {kind}, which is not supported in `loras`")
    check_base(pipeline, weights, metadata, f"{label}: {file.name}")
    if kind == CHANGES or not _diffusers_can_load(weights):
        if plain_only:
            raise StartupError(f'{label}: {file.name} needs whole modules; set `offload` to "model" or remove it')
        with reporting_failures(f"{label} does not fit the model"):
            add_changes(pipeline, adapter, weights)
        return
    expected = sum(bool(LAYER_KEY.search(key)) for key in weights)
    # diffusers and PEFT raise errors of many types for a file that does not fit.
    with reporting_failures(f"{label} does not fit the model"):
        _with_metadata(pipeline, metadata).load_lora_weights(weights, adapter_name=adapter)
    loaded = sum(
        isinstance(module, LoraLayer) and adapter in module.scaling
        for name in lora_components(pipeline)
        for module in getattr(pipeline, name).modules()
    )
    if not expected or loaded < expected:
        raise StartupError(
            f"{label} does not fit the model: {loaded} of the {expected} layers in {file.name} could be loaded"
        )


def _diffusers_can_load(weights: Iterable[str]) -> bool:
    """Check the keys of a LoRA for those of PEFT itself, and for text encoders with only some of their projections."""
    keys = set(weights)
    projections = (key for key in keys if re.match(r"lora_te\d?_.*_self_attn_", key))
    layers = {re.sub(r"_[a-z]+_proj\.", "_{}_proj.", key) for key in projections}
    complete = all(layer.format(name) in keys for layer in layers for name in ("q", "k", "v", "out"))
    return complete and not any(key.startswith("base_model.model.") for key in keys)


def _read(file: Path, label: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Return the tensors and the metadata of a file.

    The file is read and not mapped into memory: the process would be killed if it were overwritten later, as files of
    LoRAs are.
    """
    with reporting_failures(label):
        content = file.read_bytes()
        [length] = struct.unpack_from("<Q", content)
        header = json.loads(content[8 : 8 + length])
        return load(content), header.get("__metadata__", {})


def _with_metadata(pipeline: DiffusionPipeline, metadata: Mapping[str, str]) -> DiffusionPipeline:
    """Return a copy of the pipeline that loads tensors as if they were read from a file with this metadata.

    diffusers reads the configurations of its own LoRAs from the metadata of a file, and takes none with tensors.
    """
    configs = json.loads(metadata.get(LORA_ADAPTER_METADATA_KEY, "null"))
    copied = copy.copy(pipeline)

    def state_dict(*args: Any, **kwargs: Any) -> tuple[Any, ...]:
        return (*pipeline.lora_state_dict(*args, **kwargs)[:-1], configs)

    copied.lora_state_dict = state_dict
    return copied
