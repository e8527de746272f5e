"""Models with all modules of Stable Diffusion 1.5 and XL, whose weights take no memory and whose calls take no time.

What a job then takes is the time of the host: pipelines, schedulers and the engine.
"""

from types import SimpleNamespace
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKLOutput
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from transformers import CLIPTextModelWithProjection
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.clip.modeling_clip import CLIPTextModelOutput

from benchmarks.model_shapes import SHAPES, TOKENS
from img2img.domain.model_config import ModelConfig
from img2img.worker.pipelines.families import family_of
from img2img.worker.pipelines.loading.placement import Placement
from img2img.worker.pipelines.model import Model

SIDE = 512


def thin_model(name: str, *, step_tables: bool = False) -> Model:
    """Return the model `sd15` or `sdxl` on the CPU."""
    with torch.device("meta"):
        pipeline = SHAPES[name]()
    for module in pipeline.components.values():
        if isinstance(module, torch.nn.Module):
            _fill(module)
    config = ModelConfig(name=name, source=name, step_tables=step_tables)
    family = family_of(type(pipeline).__name__)
    assert family is not None
    model = Model(config, family, pipeline, Placement(config, "cpu"))
    _empty_calls(pipeline)
    return model


def _fill(module: torch.nn.Module) -> None:
    """Give every weight of a module on the meta device one value in memory."""
    for part in module.modules():
        for name, weight in part._parameters.items():
            if weight is not None:
                part._parameters[name] = torch.nn.Parameter(torch.zeros(1).expand(weight.shape), requires_grad=False)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = torch.zeros(1, dtype=buffer.dtype).expand(buffer.shape)


def _empty_calls(pipeline: Any) -> None:
    """Let the gates of a pipeline return prepared outputs."""
    predictions = SimpleNamespace(by_shape={})

    def predict(sample: torch.Tensor, *_args: Any, **_kwargs: Any) -> tuple[torch.Tensor]:
        known = predictions.by_shape
        if sample.shape not in known:
            torch.manual_seed(0)
            # Equal rows: the engine checks that rows do not depend on others before it merges calls.
            known[sample.shape] = 0.1 * torch.randn(1, *sample.shape[1:]).repeat(len(sample), 1, 1, 1)
        return (known[sample.shape],)

    # A small image, because what pipelines do with its pixels is the work of the device.
    latents, image = torch.randn(1, 8, SIDE // 8, SIDE // 8), torch.rand(1, 3, 8, 8)
    encoded = AutoencoderKLOutput(latent_dist=DiagonalGaussianDistribution(latents))
    pipeline.unet.forward.run = predict
    pipeline.vae.encode.run = lambda *_args, **_kwargs: encoded
    pipeline.vae.decode.run = lambda *_args, **_kwargs: (image,)
    for name in ("text_encoder", "text_encoder_2"):
        encoder = pipeline.components.get(name)
        if encoder is not None:
            output = _text_output(encoder)
            encoder.forward.run = lambda *_args, output=output, **_kwargs: output


def _text_output(encoder: Any) -> Any:
    width, layers = encoder.config.hidden_size, encoder.config.num_hidden_layers
    states = torch.randn(1, TOKENS, width)
    if isinstance(encoder, CLIPTextModelWithProjection):
        return CLIPTextModelOutput(
            text_embeds=torch.randn(1, width), last_hidden_state=states, hidden_states=(states,) * (layers + 1)
        )
    return BaseModelOutputWithPooling(
        last_hidden_state=states, pooler_output=states[:, 0], hidden_states=(states,) * (layers + 1)
    )
