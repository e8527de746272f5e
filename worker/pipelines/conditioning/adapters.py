"""What a request can hang onto a model: LoRAs and image prompts. Jobs without them never meet them."""

from collections.abc import Mapping
from typing import Any

from diffusers import DiffusionPipeline, UNet2DConditionModel

from img2img.domain.model_card import ModelCard
from img2img.domain.spec import JobSpec, Task

from ...engine import Gate
from ...images.inputs import Inputs
from ..families import Family
from ..loading.model_config import ModelConfig
from .ip_adapter import load_ip_adapter
from .loras import adapters_in, load_loras, loadable
from .shared_weight_module import ActiveAdapters, SharedWeightModule

PROMPT_MEMORY_BYTES = 64 * 2**20
IMAGE_MEMORY_BYTES = 256 * 2**20


class Adapters:
    """The adapters of one model."""

    def __init__(self, entry: ModelConfig, pipeline: DiffusionPipeline, family: Family) -> None:
        """pipeline: with its own modules, before gates stand in them. Raises StartupError."""
        self._denoiser = denoiser_of(pipeline)
        self._names = {name: f"lora{index}" for index, name in enumerate(entry.loras)}  # PEFT allows no dots in a name
        self._twins: dict[str, SharedWeightModule] = {}  # by component, where a LoRA has weights for it
        self._seeing: list[SharedWeightModule] = []  # UNets for 1, 2, ... image prompts
        if not entry.loras and not entry.ip_adapter:
            return
        twins = load_loras(entry, pipeline, family, self._names) if entry.loras else pipeline
        in_unet = adapters_in(twins, "unet") if entry.loras and entry.ip_adapter else frozenset()
        if entry.ip_adapter:
            seeing = load_ip_adapter(entry, entry.ip_adapter, pipeline, denoiser_of(twins))
            self._seeing = [SharedWeightModule("unet", twin, in_unet, remember_bytes=0) for twin in seeing]
            self._extract = pipeline.feature_extractor
            encoder = pipeline.image_encoder
            encoder.forward = Gate("encode_image", encoder.forward, remember_bytes=IMAGE_MEMORY_BYTES)
        for name in loadable(twins) if entry.loras else []:
            there = adapters_in(twins, name)
            is_text = name.startswith("text_encoder")
            if there:
                self._twins[name] = SharedWeightModule(
                    name,
                    twins,
                    there,
                    remember_bytes=PROMPT_MEMORY_BYTES if is_text else 0,
                    shared=() if is_text else family.unbatched,
                )

    def on_card(self, card: ModelCard, pipelines: Mapping[Task, DiffusionPipeline]) -> ModelCard:
        """The card with what it says of adapters: they are made for the model's own denoiser, and for no other."""
        others = {task for task, pipeline in pipelines.items() if denoiser_of(pipeline) is not self._denoiser}
        others |= {Task.UPSCALE}
        if isinstance(self._denoiser, UNet2DConditionModel):
            others |= {Task.EDIT}
        return card.model_copy(
            update={
                "loras": tuple(self._names),
                "image_prompts": bool(self._seeing),
                "adapter_tasks": tuple(task for task in card.tasks if task not in others),
            }
        )

    def put_on(self, pipeline: DiffusionPipeline, spec: JobSpec) -> None:
        """Gives a job's own pipeline object the modules that wear what its spec names."""
        loras = self._loras(spec)
        for name, twin in self._twins.items():
            worn = twin.own(loras)
            if worn:
                setattr(pipeline, name, twin.wearing(ActiveAdapters(worn)))
        scales = tuple(prompt.scale for prompt in spec.image_prompts if prompt.scale)
        if scales:
            twin = self._seeing[len(scales) - 1]
            pipeline.unet = twin.wearing(ActiveAdapters(twin.own(loras), scales))

    def _loras(self, spec: JobSpec) -> tuple[tuple[str, float], ...]:
        """Adapters and scales; what has the scale 0 is not there at all."""
        return tuple(sorted((self._names[lora.name], lora.scale) for lora in spec.loras if lora.scale))

    def see(self, spec: JobSpec, inputs: Inputs) -> Mapping[str, Any]:
        """The arguments for a job's image prompts. Takes milliseconds a picture: not for the engine's thread."""
        prompts = zip(spec.image_prompts, inputs.image_prompts, strict=True)
        pictures = [picture for prompt, picture in prompts if prompt.scale]
        if not pictures:
            return {}
        pixels = [self._extract(picture, return_tensors="pt").pixel_values for picture in pictures]
        return {"ip_adapter_image": pixels}


def denoiser_of(pipeline: DiffusionPipeline) -> Any:
    return getattr(pipeline, "unet", None) or getattr(pipeline, "transformer", None)
