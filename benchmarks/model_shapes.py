"""Pipelines with the architecture of published models and random weights, or of the same kind and tiny.

Nothing is read or downloaded. Modules are made on the current device of PyTorch: see `torch.device`.
"""

from collections.abc import Callable
from typing import Any

import diffusers
import torch
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

_LETTERS = [chr(code) for code in range(ord("a"), ord("z") + 1)]
_WORDS = ["<|startoftext|>", "<|endoftext|>"]
_VOCABULARY = {word: i for i, word in enumerate([*_LETTERS, *(letter + "</w>" for letter in _LETTERS), *_WORDS])}
TOKENS = 77
_SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
# Of a text encoder: width, layers, heads.
_SMALL_TEXT = (32, 2, 4)


def sd15(*, tiny: bool = False) -> Any:
    """Stable Diffusion 1.5: UNet of 860 million parameters, images of 512 x 512."""
    unet = _small_unet(attention_head_dim=2) if tiny else {"sample_size": 64, "cross_attention_dim": 768}
    return _stable_diffusion(
        diffusers.UNet2DConditionModel(**{"attention_head_dim": 8, **unet}),
        _SMALL_TEXT if tiny else (768, 12, 12),
        _scheduler(diffusers.DDIMScheduler, **_SCHEDULE, clip_sample=False, set_alpha_to_one=False),
        tiny=tiny,
    )


def turbo(*, tiny: bool = False) -> Any:
    """SD-Turbo: the architecture of Stable Diffusion 2.1, for one to four steps without guidance."""
    full = {"sample_size": 64, "cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20)}
    unet = _small_unet(attention_head_dim=(2, 4)) if tiny else full
    return _stable_diffusion(
        diffusers.UNet2DConditionModel(**unet, use_linear_projection=True),
        _SMALL_TEXT if tiny else (1024, 23, 16),
        _scheduler(diffusers.EulerAncestralDiscreteScheduler, **_SCHEDULE, timestep_spacing="trailing"),
        tiny=tiny,
    )


def sdxl(*, tiny: bool = False) -> Any:
    """Stable Diffusion XL: UNet of 2.6 billion parameters, images of 1024 x 1024."""
    first, second = (_SMALL_TEXT, _SMALL_TEXT) if tiny else ((768, 12, 12), (1280, 32, 20))
    full = {
        "sample_size": 128,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": [1, 2, 10],
        "attention_head_dim": [5, 10, 20],
    }
    small = _small_unet(attention_head_dim=(2, 4), transformer_layers_per_block=(1, 2))
    time_width = 8 if tiny else 256
    unet = diffusers.UNet2DConditionModel(
        **{**(small if tiny else full), "cross_attention_dim": first[0] + second[0]},
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=time_width,
        # Sizes and crops are six numbers; the pooled output of the second text encoder follows.
        projection_class_embeddings_input_dim=6 * time_width + second[0],
    )
    scheduler = _scheduler(diffusers.EulerDiscreteScheduler, **_SCHEDULE, timestep_spacing="leading")
    # Settings that the config of the published model has.
    scheduler.register_to_config(clip_sample=False, set_alpha_to_one=False)
    return diffusers.StableDiffusionXLPipeline(
        unet=unet,
        vae=_autoencoder(0.13025, tiny=tiny),
        text_encoder=CLIPTextModel(_text_config(*first)),
        text_encoder_2=CLIPTextModelWithProjection(_text_config(*second)),
        tokenizer=_tokenizer(),
        tokenizer_2=_tokenizer(),
        scheduler=scheduler,
    )


def flux(*, tiny: bool = False) -> Any:
    """FLUX.1-schnell: transformer of 11.9 billion parameters, images of 1024 x 1024, no guidance.

    Its T5 has two layers only: its output has the shape of that of the published one.
    """
    full = {"num_layers": 19, "num_single_layers": 38, "attention_head_dim": 128, "num_attention_heads": 24}
    small = {"num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16, "num_attention_heads": 2}
    text = _SMALL_TEXT if tiny else (768, 12, 12)
    width, heads = (32, 4) if tiny else (4096, 64)
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=64,
        joint_attention_dim=width,
        pooled_projection_dim=text[0],
        axes_dims_rope=(4, 4, 8) if tiny else (16, 56, 56),
        guidance_embeds=False,
        **(small if tiny else full),
    )
    # Of T5, as in its published tokenizer: 1 is the end of the text, pieces begin with a word's first letter.
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((letter, -2.0) for letter in ["▁", *_LETTERS, ",", "."])]
    t5 = T5Config(
        vocab_size=len(pieces), d_model=width, d_kv=width // heads, d_ff=5 * width // 2, num_layers=2, num_heads=heads
    )
    pipeline = diffusers.FluxPipeline(
        transformer=transformer,
        vae=_autoencoder(
            0.3611, latents=16, tiny=tiny, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False
        ),
        text_encoder=CLIPTextModel(_text_config(*text)),
        text_encoder_2=T5EncoderModel(t5),
        tokenizer=_tokenizer(),
        tokenizer_2=T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=512),
        scheduler=_scheduler(diffusers.FlowMatchEulerDiscreteScheduler, shift=1.0),
    )
    if tiny:
        pipeline.default_sample_size = 8
    return pipeline


SHAPES: dict[str, Callable[..., Any]] = {"sd15": sd15, "turbo": turbo, "sdxl": sdxl, "flux": flux}


def calibrate(pipeline: Any) -> None:
    """Scale the last layers of random weights, so that predictions are as large as noise and images have contrast.

    Otherwise a difference between two images is less than a step of 8 bits, whatever the denoiser returned.
    """
    denoiser = pipeline.components.get("unet") or pipeline.transformer
    vae = pipeline.vae
    weight = next(vae.decoder.parameters())
    device, dtype = weight.device, weight.dtype
    generator = torch.Generator("cpu").manual_seed(0)
    latents = torch.randn(1, vae.config.latent_channels, 8, 8, generator=generator)
    with torch.no_grad():
        image = vae.decode(latents.to(device, dtype)).sample
        _scale(vae.decoder.conv_out, 0.5 / image.float().std())
        last = getattr(denoiser, "conv_out", None) or denoiser.proj_out
        captured: list[torch.Tensor] = []
        hook = last.register_forward_hook(lambda _layer, _inputs, output: captured.append(output))
        pipeline.set_progress_bar_config(disable=True)
        pipeline(prompt="a house", height=64, width=64, num_inference_steps=1, output_type="latent")
        hook.remove()
        _scale(last, 1.0 / captured[0].float().std())


def _scale(layer: Any, factor: torch.Tensor) -> None:
    layer.weight.mul_(factor.to(layer.weight.dtype))
    if layer.bias is not None:
        layer.bias.mul_(factor.to(layer.bias.dtype))


def _stable_diffusion(unet: Any, text: tuple[int, int, int], scheduler: Any, *, tiny: bool) -> Any:
    return diffusers.StableDiffusionPipeline(
        unet=unet,
        vae=_autoencoder(0.18215, tiny=tiny),
        text_encoder=CLIPTextModel(_text_config(*text)),
        tokenizer=_tokenizer(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _scheduler(kind: Any, **config: Any) -> Any:
    """Return a scheduler, whose tables are in main memory."""
    with torch.device("cpu"):
        return kind(**config)


def _small_unet(**more: Any) -> dict[str, Any]:
    return {
        "sample_size": 8,
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": _SMALL_TEXT[0],
        **more,
    }


def _tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer(vocab=_VOCABULARY, merges=[], model_max_length=TOKENS)


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


def _autoencoder(scaling_factor: float, *, latents: int = 4, tiny: bool = False, **more: Any) -> Any:
    widths = (32, 32, 32, 32) if tiny else (128, 256, 512, 512)
    return diffusers.AutoencoderKL(
        block_out_channels=widths,
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        layers_per_block=1 if tiny else 2,
        latent_channels=latents,
        sample_size=512,
        scaling_factor=scaling_factor,
        **more,
    )
