"""Loads an IP-Adapter (Ye et al., 2023): its image encoder, and one denoiser per number of image prompts.

Diffusers gives each loaded adapter one scale and one image, and adds up their attention outputs. A job with n image
prompts, each with its scale, therefore uses a denoiser into which the same weights were loaded n times.
"""

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.loaders import FluxIPAdapterMixin, SD3IPAdapterMixin
from safetensors.torch import load_file
from transformers import CLIPVisionModelWithProjection, PreTrainedModel, SiglipImageProcessor, SiglipVisionModel

from img2img.domain.conditioning import MAX_IMAGE_PROMPTS
from img2img.domain.model_config import ComponentSource, ModelConfig

from ...errors import StartupError
from ..loading.components import load_component
from ..loading.failures import reporting_failures
from ..loading.locations import component_folder
from ..loading.weight_kinds import examples, kind_of_weights
from ..loading.weights import resolve_weights
from .shared_weight_module import copy_sharing_weights

# Folder of the image encoder beside the file of a published adapter.
ENCODER_FOLDER = "image_encoder"

LABEL = "IP-Adapter"

# Tensors by name, under `image_proj` and `ip_adapter`.
Weights = dict[str, dict[str, torch.Tensor]]
# The group of tensors by the start of their keys; the last two are those of XLabs' adapters for FLUX.
GROUPS = {
    "image_proj": "image_proj",
    "ip_adapter": "ip_adapter",
    "ip_adapter_proj_model": "image_proj",
    "double_blocks": "ip_adapter",
}
# Names of XLabs, and those of diffusers.
XLABS = {
    "processor.": "",
    "ip_adapter_double_stream_k_proj": "to_k_ip",
    "ip_adapter_double_stream_v_proj": "to_v_ip",
}


@dataclass(frozen=True)
class Kind:
    """How diffusers loads the IP-Adapters of a family."""

    component: str
    image_encoder: type[PreTrainedModel]
    max_images: int
    # (pipeline, weights once for each image) -> None.
    load: Callable[[DiffusionPipeline, list[Weights]], None]


def _load_into_unet(pipeline: DiffusionPipeline, weights: list[Weights]) -> None:
    unused = [""] * len(weights)
    pipeline.load_ip_adapter(weights, subfolder=unused, weight_name=unused, image_encoder_folder=None)


def _load_into_flux(pipeline: DiffusionPipeline, weights: list[Weights]) -> None:
    unused = [""] * len(weights)
    pipeline.load_ip_adapter(
        weights, subfolder=unused, weight_name=unused, image_encoder_pretrained_model_name_or_path=None
    )


def _load_into_sd3(pipeline: DiffusionPipeline, weights: list[Weights]) -> None:
    pipeline.load_ip_adapter(weights[0], image_encoder_folder=None)


UNET = Kind("unet", CLIPVisionModelWithProjection, MAX_IMAGE_PROMPTS, _load_into_unet)
FLUX = Kind("transformer", CLIPVisionModelWithProjection, MAX_IMAGE_PROMPTS, _load_into_flux)
# The transformer takes one image.
SD3 = Kind("transformer", SiglipVisionModel, 1, _load_into_sd3)


def _kind_of(pipeline: DiffusionPipeline) -> Kind | None:
    if isinstance(pipeline, FluxIPAdapterMixin):
        return FLUX
    if isinstance(pipeline, SD3IPAdapterMixin):
        return SD3
    return UNET if hasattr(pipeline, "set_ip_adapter_scale") and hasattr(pipeline, "unet") else None


def _checked_kind_of(pipeline: DiffusionPipeline) -> Kind:
    kind = _kind_of(pipeline)
    if kind is None:
        raise StartupError(f"{LABEL}: not supported for {type(pipeline).__name__}; remove `ip_adapter`")
    return kind


def max_images(pipeline: DiffusionPipeline) -> int:
    """Return how many image prompts an IP-Adapter takes. Raises StartupError if the pipeline takes no IP-Adapter."""
    return _checked_kind_of(pipeline).max_images


class IPAdapter:
    """The weights of an IP-Adapter."""

    def __init__(self, config: ModelConfig, source: ComponentSource, pipeline: DiffusionPipeline) -> None:
        """Load the weights.

        Args:
            source: location of the adapter.
            pipeline: pipeline of the model; it gets the image encoder and the feature extractor.

        Raises:
            StartupError: if the adapter cannot be loaded.
        """
        self._kind = kind = _checked_kind_of(pipeline)
        self._pipeline = pipeline
        self._weights = _load_weights(resolve_weights(source, LABEL), pipeline, kind)
        if pipeline.image_encoder is None:
            _load_image_encoder(config.image_encoder or _default_image_encoder(source), pipeline, kind)

    @property
    def component(self) -> str:
        """Name of the component that the adapter is for."""
        return self._kind.component

    def pipelines(self, denoiser: torch.nn.Module) -> list[DiffusionPipeline]:
        """Return pipelines that take 1, 2, ... image prompts.

        Args:
            denoiser: UNet or transformer that the pipelines copy, sharing its weights.

        Raises:
            StartupError: if the adapter does not fit.
        """
        return [self._with_adapter(denoiser, count + 1) for count in range(self._kind.max_images)]

    def arguments(self, images: list[Any]) -> dict[str, Any]:
        """Return the pipeline arguments for image prompts. Preprocesses them."""
        extract = self._pipeline.feature_extractor
        pixels = [extract(image, return_tensors="pt").pixel_values for image in images]
        if self._kind is SD3:
            return {"ip_adapter_image": pixels[0]}
        if self._kind is FLUX:
            # The pipeline has a default for one image only. Jobs have no negative prompt, so it is not used.
            return {"ip_adapter_image": pixels, "negative_ip_adapter_image": pixels}
        return {"ip_adapter_image": pixels}

    def _with_adapter(self, denoiser: torch.nn.Module, count: int) -> DiffusionPipeline:
        adapted = copy.copy(self._pipeline)
        setattr(adapted, self.component, copy_sharing_weights(denoiser))
        with reporting_failures(f"{LABEL} does not fit the model"):
            self._kind.load(adapted, [self._weights] * count)
            _check_complete(getattr(adapted, self.component))
        self._pipeline.register_modules(feature_extractor=adapted.feature_extractor)
        return adapted


def _check_complete(denoiser: torch.nn.Module) -> None:
    """Check that all weights are there: diffusers loads those of the file and leaves the others without data."""
    missing = sorted(name for name, parameter in denoiser.named_parameters() if parameter.is_meta)
    if missing:
        raise StartupError(f"{len(missing)} of its weights are missing in the file, such as {examples(missing)}")


def _load_weights(file: Path, pipeline: DiffusionPipeline, kind: Kind) -> Weights:
    """Read the weights on the device and in the dtype of the model, so that all copies share them."""
    weights: Weights = {"image_proj": {}, "ip_adapter": {}}
    tensors = load_file(file)
    for key, tensor in tensors.items():
        start, _, name = key.partition(".")
        if start in GROUPS:
            for old, new in XLABS.items():
                name = name.replace(old, new)
            weights[GROUPS[start]][name] = tensor.to(pipeline.device, getattr(pipeline, kind.component).dtype)
    if not all(weights.values()):
        found = kind_of_weights(tensors) or f"a file with keys such as {examples(tensors)}"
        raise StartupError(f"{LABEL}: {file.name} has no `image_proj` and `ip_adapter` weights: it is {found}")
    if kind is UNET and _is_face_id(weights["image_proj"]):
        raise StartupError(
            f"{LABEL}: {file.name} is a Face ID adapter, which takes embeddings of faces and no images; choose another"
        )
    return weights


def _is_face_id(projection: Mapping[str, torch.Tensor]) -> bool:
    """Check the keys of the image projection, as diffusers' `_convert_ip_adapter_image_proj_to_diffusers` does."""
    plain_mlp = "proj.0.weight" in projection and "proj.3.weight" not in projection
    return plain_mlp or "perceiver_resampler.proj_in.weight" in projection


def _load_image_encoder(source: ComponentSource, pipeline: DiffusionPipeline, kind: Kind) -> None:
    with reporting_failures(f"{LABEL}: image encoder"):
        folder = component_folder(source)
        dtype = getattr(pipeline, kind.component).dtype
        given = json.loads((folder / "config.json").read_text()).get("architectures") or ["another model"]
        if given[0] != kind.image_encoder.__name__:
            raise StartupError(f"it is {given[0]}, and not {kind.image_encoder.__name__}; set `image_encoder`")
        encoder = load_component(kind.image_encoder, folder, dtype).to(pipeline.device)
        pipeline.register_modules(image_encoder=encoder)
        if kind is SD3:
            size = encoder.config.image_size
            processor = SiglipImageProcessor(size={"height": size, "width": size})
            pipeline.register_modules(feature_extractor=processor)


def _default_image_encoder(source: ComponentSource) -> ComponentSource:
    path = Path(source.source).expanduser()
    folder = str(path.parent) if path.is_file() else source.source
    subfolder = f"{source.subfolder}/{ENCODER_FOLDER}" if source.subfolder else ENCODER_FOLDER
    return ComponentSource(source=folder, subfolder=subfolder, revision=source.revision)
