"""Models with all modules of Stable Diffusion 1.5 and XL, whose weights take no memory and whose calls take no time.

What a job then takes is the time of the host: pipelines, schedulers and the engine.
"""

from types import SimpleNamespace
from typing import Any

import diffusers
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKLOutput
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.clip.modeling_clip import CLIPTextModelOutput

from img2img.domain.model_config import ModelConfig
from img2img.worker.pipelines.families import family_of
from img2img.worker.pipelines.loading.placement import Placement
from img2img.worker.pipelines.model import Model

SIDE = 512
_LETTERS = [chr(code) for code in range(ord("a"), ord("z") + 1)]
_WORDS = ["<|startoftext|>", "<|endoftext|>"]
_VOCABULARY = {word: i for i, word in enumerate([*_LETTERS, *(letter + "</w>" for letter in _LETTERS), *_WORDS])}
_TOKENS = 77
_SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


def thin_model(name: str, *, step_tables: bool = False) -> Model:
    """Return the model `sd15` or `sdxl` on the CPU."""
    pipeline = _sdxl() if name == "sdxl" else _sd15()
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


def _sd15() -> Any:
    with torch.device("meta"):
        parts = {
            "unet": diffusers.UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8),
            "vae": _autoencoder(0.18215),
            "text_encoder": CLIPTextModel(_text_config(768, 12, 12)),
        }
    return diffusers.StableDiffusionPipeline(
        **parts,
        tokenizer=_tokenizer(),
        scheduler=diffusers.DDIMScheduler(**_SCHEDULE, clip_sample=False, set_alpha_to_one=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _sdxl() -> Any:
    with torch.device("meta"):
        parts = {
            "unet": diffusers.UNet2DConditionModel(
                sample_size=128,
                block_out_channels=(320, 640, 1280),
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
                transformer_layers_per_block=[1, 2, 10],
                cross_attention_dim=2048,
                attention_head_dim=[5, 10, 20],
                use_linear_projection=True,
                addition_embed_type="text_time",
                addition_time_embed_dim=256,
                projection_class_embeddings_input_dim=2816,
            ),
            "vae": _autoencoder(0.13025),
            "text_encoder": CLIPTextModel(_text_config(768, 12, 12)),
            "text_encoder_2": CLIPTextModelWithProjection(_text_config(1280, 32, 20)),
        }
    scheduler = diffusers.EulerDiscreteScheduler(**_SCHEDULE, timestep_spacing="leading")
    scheduler.register_to_config(clip_sample=False, set_alpha_to_one=False)
    return diffusers.StableDiffusionXLPipeline(
        **parts, tokenizer=_tokenizer(), tokenizer_2=_tokenizer(), scheduler=scheduler
    )


def _tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer(vocab=_VOCABULARY, merges=[], model_max_length=_TOKENS)


def _text_config(width: int, layers: int, heads: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(_VOCABULARY),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        projection_dim=width,
        bos_token_id=_VOCABULARY[_WORDS[0]],
        eos_token_id=_VOCABULARY[_WORDS[1]],
        pad_token_id=_VOCABULARY[_WORDS[1]],
    )


def _autoencoder(scaling_factor: float) -> Any:
    widths = (128, 256, 512, 512)
    return diffusers.AutoencoderKL(
        block_out_channels=widths,
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        layers_per_block=2,
        latent_channels=4,
        sample_size=512,
        scaling_factor=scaling_factor,
    )


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
    states = torch.randn(1, _TOKENS, width)
    if isinstance(encoder, CLIPTextModelWithProjection):
        return CLIPTextModelOutput(
            text_embeds=torch.randn(1, width), last_hidden_state=states, hidden_states=(states,) * (layers + 1)
        )
    return BaseModelOutputWithPooling(
        last_hidden_state=states, pooler_output=states[:, 0], hidden_states=(states,) * (layers + 1)
    )
