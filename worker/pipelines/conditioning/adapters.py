"""LoRAs and IP-Adapters of a model. Requests without adapters use the unmodified modules."""

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel

from img2img.domain.conditioning import MAX_IMAGE_PROMPTS
from img2img.domain.model_card import ModelCard, is_path
from img2img.domain.model_config import ComponentSource, ModelConfig
from img2img.domain.parameters import Task
from img2img.domain.spec import DenoisingSpec
from img2img.errors import JobError

from ...engine.gate import Gate
from ...errors import StartupError
from ...images.inputs import Inputs
from ..families import Family
from ..loading.placement import Placement
from ..loading.weightless import add_unknown, is_weightless
from ..loading.weights import resolve_weights
from .ip_adapter import LABEL, IPAdapter, max_images
from .lora_layers import lora_components
from .loras import Loras, adapters_in, check_loras, label
from .redux import Redux, is_redux
from .shared_weight_module import ActiveAdapters, Forward, LoraScales, SharedWeightModule

PROMPT_CACHE_BYTES = 64 * 2**20
IMAGE_CACHE_BYTES = 256 * 2**20


@dataclass(frozen=True)
class JobAdapters:
    """The adapters of one job."""

    # Components that replace those of the pipeline, with the adapters that are active in their calls.
    modules: Mapping[str, tuple[SharedWeightModule, ActiveAdapters]] = field(default_factory=dict)
    # Pipeline arguments for the image prompts.
    arguments: Mapping[str, Any] = field(default_factory=dict)
    # Adds image prompts to the prompt: (pipeline, its arguments) -> arguments. Runs in the job's engine task.
    add_images: Callable[[DiffusionPipeline, dict[str, Any]], dict[str, Any]] = lambda _pipeline, arguments: arguments

    def activate(self, pipeline: DiffusionPipeline) -> None:
        """Give the pipeline object of the job its components."""
        for name, (module, active) in self.modules.items():
            setattr(pipeline, name, module.with_adapters(active))


class Adapters:
    """The adapters of one model. Immutable: jobs keep those that they started with."""

    def __init__(self, config: ModelConfig, pipeline: DiffusionPipeline, family: Family, placement: Placement) -> None:
        """Load the adapters that `config` lists.

        Args:
            pipeline: pipeline of the model, before gates are installed.
            placement: puts the modules with adapters in place.

        Raises:
            StartupError: if an adapter cannot be loaded or does not fit the model.
        """
        self._family = family
        self._pipeline = pipeline
        self._placement = placement
        self._denoiser = denoiser_of(pipeline)
        # Bytes of the files of adapters that are not loaded.
        self.file_bytes = 0
        # By component, for components that a LoRA has weights for.
        self._lora_modules: dict[str, SharedWeightModule] = {}
        # Denoisers for 1, 2, ... image prompts.
        self._image_modules: list[SharedWeightModule] = []
        source = config.ip_adapter
        self._redux = Redux(source, pipeline, placement) if source and is_redux(source, pipeline) else None
        self._max_image_prompts = MAX_IMAGE_PROMPTS if self._redux else max_images(pipeline) if source else 0
        if is_weightless():
            self._describe(config)
            return
        self._ip_adapter = IPAdapter(config, source, pipeline) if source and not self._redux else None
        if self._ip_adapter:
            encoder = pipeline.image_encoder
            placement.put("image_encoder", encoder)
            encoder.forward = Gate("encode_image", encoder.forward, remember_bytes=IMAGE_CACHE_BYTES, reads_images=True)
        self._use(Loras(pipeline, family, plain_only=placement.splits_modules).replaced_by(config.loras))

    def _describe(self, config: ModelConfig) -> None:
        """Find out the names and the size of the adapters, without loading them."""
        if config.loras:
            check_loras(self._pipeline, self._family)
        sources = {label(name): source for name, source in config.loras.items()}
        if config.ip_adapter and not self._redux:
            sources[LABEL] = config.ip_adapter
        for name, source in sources.items():
            if is_path(source.source) or Path(source.source).exists():
                self.file_bytes += resolve_weights(source, name).stat().st_size
            else:
                add_unknown()
        self._lora_names = tuple(config.loras)

    def with_loras(self, loras: Mapping[str, ComponentSource], files: Mapping[str, Path] | None) -> "Adapters":
        """Return the adapters with other LoRAs; this object and the jobs that use it stay as they are.

        Args:
            files: file of each LoRA, from `lora_files`; None if they are not known yet.

        Raises:
            StartupError: if a LoRA cannot be loaded or does not fit the model.
        """
        if self._placement.offloads:
            # Modules with the hooks of an offloaded model cannot be copied.
            raise StartupError("the LoRAs of a model with `offload` cannot be changed; load the model again")
        changed = copy.copy(self)
        changed._use(self._loras.replaced_by(loras, files))
        return changed

    def _use(self, loras: Loras) -> None:
        self._loras = loras
        self._lora_names = tuple(loras.loaded)
        self._lora_modules = {}
        for name in lora_components(loras.pipeline) if loras.loaded else []:
            adapters = adapters_in(loras.pipeline, name)
            if adapters:
                gate = _gate_text_encoder if name.startswith("text_encoder") else self._family.gate_denoiser
                self._lora_modules[name] = SharedWeightModule(name, loras.pipeline, adapters, gate)
                self._placement.put(name, self._lora_modules[name].module)
        self._image_modules = []
        if self._ip_adapter:
            name = self._ip_adapter.component
            denoiser_loras = adapters_in(loras.pipeline, name) if loras.loaded else frozenset()
            self._image_modules = [
                SharedWeightModule(name, each, denoiser_loras, self._family.gate_denoiser)
                for each in self._ip_adapter.pipelines(denoiser_of(loras.pipeline))
            ]
            for each in self._image_modules:
                self._placement.put(name, each.module)

    @property
    def modules(self) -> list[SharedWeightModule]:
        return [*self._lora_modules.values(), *self._image_modules]

    @property
    def weights(self) -> list[torch.nn.Module]:
        """All modules of the adapters."""
        return [*(module.module for module in self.modules), *(self._redux.modules if self._redux else ())]

    def add_to_card(self, card: ModelCard, pipelines: Mapping[Task, DiffusionPipeline]) -> ModelCard:
        """Return the card with its adapters and the tasks that support them.

        Adapters fit the denoiser of the model only, not the UNets of the `edit`, `inpaint` and `upscale` components.

        Args:
            pipelines: the pipelines of the model, by task.
        """
        unsupported = {task for task, pipeline in pipelines.items() if denoiser_of(pipeline) is not self._denoiser}
        unsupported |= {Task.UPSCALE}
        if isinstance(self._denoiser, UNet2DConditionModel):
            unsupported |= {Task.EDIT}
        return card.model_copy(
            update={
                "loras": self._lora_names,
                "image_prompts": self._max_image_prompts > 0,
                "max_image_prompts": self._max_image_prompts,
                "image_prompt_blocks": self._image_prompt_blocks(),
                "adapter_tasks": tuple(task for task in card.tasks if task not in unsupported),
            }
        )

    def _image_prompt_blocks(self) -> dict[str, int]:
        unet = self._denoiser
        if not self._max_image_prompts or not isinstance(unet, UNet2DConditionModel):
            return {}
        parts = (("down", unet.down_blocks), ("up", unet.up_blocks))
        blocks = {
            f"{part}.block_{i}": len(block.attentions)
            for part, found in parts
            for i, block in enumerate(found)
            if hasattr(block, "attentions")
        }
        return {**blocks, "mid": 1}

    def for_job(self, spec: DenoisingSpec, inputs: Inputs) -> JobAdapters:
        """Return the adapters that a job names.

        Preprocesses its image prompts, which takes milliseconds each, so do not call it on the engine's thread.

        Raises:
            JobError: a LoRA was removed after the job was submitted.
        """
        loras = self._lora_scales(spec)
        modules = {
            name: (module, ActiveAdapters(selected))
            for name, module in self._lora_modules.items()
            if (selected := module.select(loras))
        }
        prompts = [
            (image, json.dumps(prompt.blocks, sort_keys=True) if prompt.blocks else prompt.scale)
            for image, prompt in zip(inputs.image_prompts, spec.image_prompts, strict=True)
            if prompt.scale or prompt.blocks
        ]
        if prompts and self._redux:
            images, scales = zip(*prompts, strict=True)
            return JobAdapters(modules, add_images=self._redux.add_images(images, scales))
        if not prompts or not self._ip_adapter:
            return JobAdapters(modules)
        module = self._image_modules[len(prompts) - 1]
        active = ActiveAdapters(module.select(loras), tuple(scale for _, scale in prompts))
        modules[self._ip_adapter.component] = (module, active)
        return JobAdapters(modules, self._ip_adapter.arguments([image for image, _ in prompts]))

    def _lora_scales(self, spec: DenoisingSpec) -> LoraScales:
        """Return (PEFT name, scale) pairs, without those of scale 0."""
        loaded = self._loras.loaded
        for lora in spec.loras:
            if lora.name not in loaded:
                raise JobError(f"the LoRA {lora.name!r} was removed from the model {spec.model!r}")
        return tuple(sorted((loaded[lora.name].peft_name, lora.scale) for lora in spec.loras if lora.scale))


def _gate_text_encoder(forward: Forward) -> Forward:
    return Gate("encode_prompt", forward, remember_bytes=PROMPT_CACHE_BYTES)


def denoiser_of(pipeline: DiffusionPipeline) -> Any:
    """Return the UNet or transformer of a pipeline."""
    return getattr(pipeline, "unet", None) or getattr(pipeline, "transformer", None)
