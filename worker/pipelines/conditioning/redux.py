"""FLUX.1 Redux: image prompts as tokens behind those of the text, instead of an IP-Adapter."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import DiffusionPipeline, FluxPriorReduxPipeline
from PIL import Image

from img2img.domain.model_config import ComponentSource

from ...engine.gate import Gate
from ...errors import StartupError
from ..loading.components import load_pipeline_of
from ..loading.failures import reporting_failures
from ..loading.locations import is_pipeline
from ..loading.placement import Placement

IMAGE_CACHE_BYTES = 256 * 2**20
LABEL = "FLUX.1 Redux"

Arguments = dict[str, Any]


def is_redux(source: ComponentSource, pipeline: DiffusionPipeline) -> bool:
    """Check whether the source of an IP-Adapter is a whole pipeline, for a FLUX.1 model."""
    name = type(pipeline).__name__
    with reporting_failures("IP-Adapter"):
        return name.startswith("Flux") and not name.startswith("Flux2") and is_pipeline(source)


class Redux:
    """The image encoder and the image embedder of FLUX.1 Redux, behind gates."""

    def __init__(self, source: ComponentSource, pipeline: DiffusionPipeline, placement: Placement) -> None:
        """Load both.

        Args:
            source: folder or hub id of a `FluxPriorReduxPipeline`.
            pipeline: pipeline of the model.

        Raises:
            StartupError: if they cannot be loaded or do not fit the model.
        """
        with reporting_failures(LABEL):
            prior = load_pipeline_of(source, placement.load_device, pipeline.transformer.dtype)
        if not isinstance(prior, FluxPriorReduxPipeline):
            raise StartupError(f"{LABEL}: {source.source} is a {type(prior).__name__}; set `ip_adapter` to an adapter")
        given, needed = prior.image_embedder.config.txt_in_features, pipeline.transformer.config.joint_attention_dim
        if given != needed:
            raise StartupError(f"{LABEL}: its tokens have the width {given}; the model needs {needed}")
        self._prior = prior
        for module in (prior.image_encoder, prior.image_embedder):
            placement.put("image_encoder", module)
            module.forward = Gate("encode_image", module.forward, remember_bytes=IMAGE_CACHE_BYTES, reads_images=True)

    @property
    def modules(self) -> list[torch.nn.Module]:
        return [self._prior.image_encoder, self._prior.image_embedder]

    def add_images(
        self, images: Sequence[Image.Image], scales: Sequence[float]
    ) -> Callable[[DiffusionPipeline, Arguments], Arguments]:
        """Return a function that replaces the prompt in a pipeline's arguments by embeddings of text and images.

        The embeddings of the images are scaled and added up, as in `FluxPriorReduxPipeline`, which also scales those
        of the text. Preprocesses the images, so do not call it on the engine's thread.
        """
        preprocess = self._prior.feature_extractor.preprocess
        pixels = [
            preprocess(images=image, do_resize=True, return_tensors="pt", do_convert_rgb=True).pixel_values
            for image in images
        ]

        def add(pipeline: DiffusionPipeline, arguments: Arguments) -> Arguments:
            text, pooled, _ = pipeline.encode_prompt(arguments["prompt"], None, device=pipeline._execution_device)
            scaled = [scale * self._embed(each, text) for each, scale in zip(pixels, scales, strict=True)]
            embeds = torch.cat([text, torch.stack(scaled).sum(dim=0)], dim=1)
            others = {name: value for name, value in arguments.items() if name != "prompt"}
            return {**others, "prompt_embeds": embeds, "pooled_prompt_embeds": pooled}

        return add

    def _embed(self, pixels: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        encoder = self._prior.image_encoder
        states = encoder(pixel_values=pixels.to(like.device, encoder.dtype)).last_hidden_state
        embedded: torch.Tensor = self._prior.image_embedder(states).image_embeds
        return embedded.to(like)
