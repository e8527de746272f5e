"""LoRAs and IP-Adapters of a model. Requests without adapters use the unmodified modules."""

from collections.abc import Mapping
from typing import Any

from diffusers import DiffusionPipeline, UNet2DConditionModel

from img2img.domain.model_card import ModelCard
from img2img.domain.model_config import ModelConfig
from img2img.domain.parameters import Task
from img2img.domain.spec import DenoisingSpec

from ...engine.gate import Gate
from ...images.inputs import Inputs
from ..families import Family
from ..loading.placement import Placement
from .ip_adapter import load_ip_adapter
from .loras import adapters_in, load_loras, lora_components
from .shared_weight_module import ActiveAdapters, LoraScales, SharedWeightModule

PROMPT_CACHE_BYTES = 64 * 2**20
IMAGE_CACHE_BYTES = 256 * 2**20


class Adapters:
    """The adapters of one model."""

    def __init__(self, config: ModelConfig, pipeline: DiffusionPipeline, family: Family, placement: Placement) -> None:
        """Load the adapters that `config` lists.

        Args:
            pipeline: pipeline of the model, before gates are installed.
            placement: puts the modules with adapters in place.

        Raises:
            StartupError: if an adapter cannot be loaded or does not fit the model.
        """
        self._denoiser = denoiser_of(pipeline)
        # PEFT allows no dots in adapter names, names of LoRAs in models.toml may have some.
        self._peft_names = {name: f"lora{index}" for index, name in enumerate(config.loras)}
        # By component, for components that a LoRA has weights for.
        self._lora_modules: dict[str, SharedWeightModule] = {}
        # UNets for 1, 2, ... image prompts.
        self._ip_adapter_unets: list[SharedWeightModule] = []
        lora_pipeline = load_loras(config, pipeline, family, self._peft_names) if config.loras else pipeline
        if config.ip_adapter:
            unet_loras = adapters_in(lora_pipeline, "unet") if config.loras else frozenset()
            pipelines = load_ip_adapter(config, config.ip_adapter, pipeline, denoiser_of(lora_pipeline))
            self._ip_adapter_unets = [
                SharedWeightModule("unet", each, unet_loras, remember_bytes=0) for each in pipelines
            ]
            self._feature_extractor = pipeline.feature_extractor
            encoder = pipeline.image_encoder
            placement.put("image_encoder", encoder)
            encoder.forward = Gate("encode_image", encoder.forward, remember_bytes=IMAGE_CACHE_BYTES)
        for name in lora_components(lora_pipeline) if config.loras else []:
            adapters = adapters_in(lora_pipeline, name)
            is_text_encoder = name.startswith("text_encoder")
            if adapters:
                self._lora_modules[name] = SharedWeightModule(
                    name,
                    lora_pipeline,
                    adapters,
                    remember_bytes=PROMPT_CACHE_BYTES if is_text_encoder else 0,
                    shared=() if is_text_encoder else family.unbatched,
                )
                placement.put(name, self._lora_modules[name].module)
        for unet in self._ip_adapter_unets:
            placement.put("unet", unet.module)

    @property
    def modules(self) -> list[SharedWeightModule]:
        return [*self._lora_modules.values(), *self._ip_adapter_unets]

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
                "loras": tuple(self._peft_names),
                "image_prompts": bool(self._ip_adapter_unets),
                "adapter_tasks": tuple(task for task in card.tasks if task not in unsupported),
            }
        )

    def activate(self, pipeline: DiffusionPipeline, spec: DenoisingSpec) -> None:
        """Give the pipeline object of one job the modules with the adapters that its spec names."""
        loras = self._lora_scales(spec)
        for name, module in self._lora_modules.items():
            selected = module.select(loras)
            if selected:
                setattr(pipeline, name, module.with_adapters(ActiveAdapters(selected)))
        image_scales = tuple(prompt.scale for prompt in spec.image_prompts if prompt.scale)
        if image_scales:
            module = self._ip_adapter_unets[len(image_scales) - 1]
            pipeline.unet = module.with_adapters(ActiveAdapters(module.select(loras), image_scales))

    def _lora_scales(self, spec: DenoisingSpec) -> LoraScales:
        """Return (PEFT name, scale) pairs, without those of scale 0."""
        return tuple(sorted((self._peft_names[lora.name], lora.scale) for lora in spec.loras if lora.scale))

    def image_prompt_kwargs(self, spec: DenoisingSpec, inputs: Inputs) -> Mapping[str, Any]:
        """Return the pipeline arguments for the image prompts of a job.

        Takes milliseconds per image, so do not call it on the engine's thread.
        """
        prompts = zip(spec.image_prompts, inputs.image_prompts, strict=True)
        images = [image for prompt, image in prompts if prompt.scale]
        if not images:
            return {}
        pixels = [self._feature_extractor(image, return_tensors="pt").pixel_values for image in images]
        return {"ip_adapter_image": pixels}


def denoiser_of(pipeline: DiffusionPipeline) -> Any:
    """Return the UNet or transformer of a pipeline."""
    return getattr(pipeline, "unet", None) or getattr(pipeline, "transformer", None)
