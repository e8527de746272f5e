"""Loads an IP-Adapter (Ye et al., 2023): its image encoder and one UNet per number of image prompts.

Diffusers gives each loaded adapter one scale and one image, and adds up their attention outputs. A job with n image
prompts, each with its scale, therefore uses a UNet into which the same weights were loaded n times.
"""

import copy
from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file
from transformers import CLIPVisionModelWithProjection

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


def check_ip_adapter(pipeline: DiffusionPipeline) -> None:
    """Raise StartupError if the pipeline takes no IP-Adapter."""
    if not hasattr(pipeline, "set_ip_adapter_scale") or not hasattr(pipeline, "unet"):
        raise StartupError(f"{LABEL}: not supported for {type(pipeline).__name__}; remove `ip_adapter`")


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
        check_ip_adapter(pipeline)
        self._pipeline = pipeline
        self._weights = _load_weights(resolve_weights(source, LABEL), pipeline)
        if pipeline.image_encoder is None:
            pipeline.register_modules(image_encoder=_load_image_encoder(config, source, pipeline))

    def pipelines(self, unet: torch.nn.Module) -> list[DiffusionPipeline]:
        """Return pipelines that take 1, 2, ... image prompts.

        Args:
            unet: UNet that the pipelines copy, sharing its weights.

        Raises:
            StartupError: if the adapter does not fit.
        """
        return [self._with_adapter(unet, count) for count in range(1, MAX_IMAGE_PROMPTS + 1)]

    def _with_adapter(self, unet: torch.nn.Module, count: int) -> DiffusionPipeline:
        adapted = copy.copy(self._pipeline)
        adapted.unet = copy_sharing_weights(unet)
        unused = [""] * count
        with reporting_failures(f"{LABEL} does not fit the model"):
            adapted.load_ip_adapter(
                [self._weights] * count, subfolder=unused, weight_name=unused, image_encoder_folder=None
            )
        self._pipeline.register_modules(feature_extractor=adapted.feature_extractor)
        return adapted


def _load_weights(file: Path, pipeline: DiffusionPipeline) -> Weights:
    """Read the weights on the device and in the dtype of the model, so that all copies share them."""
    weights: Weights = {"image_proj": {}, "ip_adapter": {}}
    tensors = load_file(file)
    for key, tensor in tensors.items():
        group, _, name = key.partition(".")
        if group in weights:
            weights[group][name] = tensor.to(pipeline.device, pipeline.unet.dtype)
    if not all(weights.values()):
        kind = kind_of_weights(tensors) or f"a file with keys such as {examples(tensors)}"
        raise StartupError(f"{LABEL}: {file.name} has no `image_proj` and `ip_adapter` weights: it is {kind}")
    if _is_face_id(weights["image_proj"]):
        raise StartupError(f"{LABEL}: {file.name} is a face ID adapter, which is not supported")
    return weights


def _is_face_id(projection: Mapping[str, torch.Tensor]) -> bool:
    """Check the keys of the image projection, as diffusers' `_convert_ip_adapter_image_proj_to_diffusers` does."""
    plain_mlp = "proj.0.weight" in projection and "proj.3.weight" not in projection
    return plain_mlp or "perceiver_resampler.proj_in.weight" in projection


def _load_image_encoder(
    config: ModelConfig, source: ComponentSource, pipeline: DiffusionPipeline
) -> CLIPVisionModelWithProjection:
    encoder = config.image_encoder or _default_image_encoder(source)
    with reporting_failures(f"{LABEL}: image encoder"):
        folder = component_folder(encoder)
        loaded: CLIPVisionModelWithProjection = load_component(
            CLIPVisionModelWithProjection, folder, pipeline.unet.dtype
        ).to(pipeline.device)
        return loaded


def _default_image_encoder(source: ComponentSource) -> ComponentSource:
    path = Path(source.source).expanduser()
    folder = str(path.parent) if path.is_file() else source.source
    subfolder = f"{source.subfolder}/{ENCODER_FOLDER}" if source.subfolder else ENCODER_FOLDER
    return ComponentSource(source=folder, subfolder=subfolder, revision=source.revision)
