"""Loading an IP-Adapter: its image encoder, and a twin of the UNet for each number of image prompts.

Diffusers gives each loaded adapter a scale and a picture of its own, and sums up what they attend to. So a job with n
image prompts, each with its scale, is the same adapter loaded n times, over one set of weights.
"""

import copy
from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file
from transformers import CLIPVisionModelWithProjection

from img2img.domain.conditioning import MAX_IMAGE_PROMPTS

from ...errors import StartupError
from ..loading.model_config import ComponentSource, ModelConfig
from ..loading.weights import first_line, weights_file
from .shared_weight_module import copy_sharing_weights

ENCODER_FOLDER = "image_encoder"  # beside an adapter's file, as the published ones have it


def load_ip_adapter(
    entry: ModelConfig, part: ComponentSource, pipeline: DiffusionPipeline, unet: torch.nn.Module
) -> list[DiffusionPipeline]:
    """Pipelines whose UNets are twins of `unet` and take 1, 2, ... image prompts.

    `pipeline` gets the image encoder and the feature extractor. Raises StartupError for an adapter that does not fit.
    """
    what = f"model {entry.name!r}: IP-Adapter"
    if not hasattr(pipeline, "set_ip_adapter_scale") or not hasattr(pipeline, "unet"):
        raise StartupError(f"{what}: this version has none for a {type(pipeline).__name__}")
    weights = _weights(weights_file(part, what), what, pipeline)
    if pipeline.image_encoder is None:
        pipeline.register_modules(image_encoder=_image_encoder(entry, part, pipeline, what))
    return [_seeing(pipeline, unet, [weights] * count, what) for count in range(1, MAX_IMAGE_PROMPTS + 1)]


def _seeing(
    pipeline: DiffusionPipeline, unet: torch.nn.Module, weights: list[dict[str, dict[str, torch.Tensor]]], what: str
) -> DiffusionPipeline:
    twin = copy.copy(pipeline)
    twin.unet = copy_sharing_weights(unet)
    each = [""] * len(weights)
    try:
        twin.load_ip_adapter(weights, subfolder=each, weight_name=each, image_encoder_folder=None)
    except (KeyError, RuntimeError, ValueError) as error:
        raise StartupError(f"{what} does not fit: {first_line(error)}") from error
    pipeline.register_modules(feature_extractor=twin.feature_extractor)
    return twin


def _weights(file: Path, what: str, pipeline: DiffusionPipeline) -> dict[str, dict[str, torch.Tensor]]:
    """In the place and type in which they are used, so that diffusers takes them as they are, however often."""
    weights: dict[str, dict[str, torch.Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    for key, tensor in load_file(file).items():
        group, _, name = key.partition(".")
        if group in weights:
            weights[group][name] = tensor.to(pipeline.device, pipeline.unet.dtype)
    if not all(weights.values()):
        raise StartupError(f"{what}: {file.name} has no `image_proj` and `ip_adapter` weights")
    if _is_face_id(weights["image_proj"]):
        raise StartupError(f"{what}: {file.name} takes the embedding of a face, not a picture; this version has none")
    return weights


def _is_face_id(projection: Mapping[str, torch.Tensor]) -> bool:
    """Told by the keys of the image projection, as diffusers does."""
    plain_mlp = "proj.0.weight" in projection and "proj.3.weight" not in projection
    return plain_mlp or "perceiver_resampler.proj_in.weight" in projection


def _image_encoder(
    entry: ModelConfig, part: ComponentSource, pipeline: DiffusionPipeline, what: str
) -> CLIPVisionModelWithProjection:
    encoder = entry.image_encoder or _beside(part)
    try:
        return CLIPVisionModelWithProjection.from_pretrained(
            Path(encoder.source).expanduser() if Path(encoder.source).expanduser().exists() else encoder.source,
            subfolder=encoder.subfolder or "",
            revision=encoder.revision or "main",
            use_safetensors=True,
            dtype=pipeline.unet.dtype,
        ).to(pipeline.device)
    except (OSError, ValueError) as error:
        raise StartupError(f"{what}: cannot load its image encoder: {first_line(error)}") from error


def _beside(part: ComponentSource) -> ComponentSource:
    source = Path(part.source).expanduser()
    folder = str(source.parent) if source.is_file() else part.source
    subfolder = f"{part.subfolder}/{ENCODER_FOLDER}" if part.subfolder else ENCODER_FOLDER
    return ComponentSource(source=folder, subfolder=subfolder, revision=part.revision)
