"""Tiny random Stable Diffusion models in the format of diffusers."""

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    DDIMScheduler,
    DDPMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionLatentUpscalePipeline,
    StableDiffusionPipeline,
    StableDiffusionUpscalePipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

TOKENS = ["<|startoftext|>", "<|endoftext|>"]
LETTERS = [chr(c) for c in range(ord("a"), ord("z") + 1)] + list("0123456789,.!")
VOCAB = {token: i for i, token in enumerate([*LETTERS, *(letter + "</w>" for letter in LETTERS), *TOKENS])}


def tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer(vocab=VOCAB, merges=[], model_max_length=77)


def text_config(hidden: int = 32) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(VOCAB),
        hidden_size=hidden,
        intermediate_size=37,
        num_hidden_layers=3,
        num_attention_heads=4,
        projection_dim=32,
        bos_token_id=VOCAB[TOKENS[0]],
        eos_token_id=VOCAB[TOKENS[1]],
        pad_token_id=VOCAB[TOKENS[1]],
    )


def autoencoder(
    *, force_upcast: bool = True, widths: tuple[int, ...] = (32, 64), mid_block_add_attention: bool = True
) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=widths,
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        latent_channels=4,
        sample_size=64,
        force_upcast=force_upcast,
        mid_block_add_attention=mid_block_add_attention,
    )


def tiny_fast_vae(folder: Path, **changes: object) -> Path:
    """A small VAE like TAESD, for models whose VAE is `autoencoder()`."""
    torch.manual_seed(4)
    widths = (8, 8)
    AutoencoderTiny(
        **{
            "encoder_block_out_channels": widths,
            "decoder_block_out_channels": widths,
            "num_encoder_blocks": (1, 1),
            "num_decoder_blocks": (1, 1),
            "latent_channels": 4,
            **changes,
        }
    ).save_pretrained(folder)
    return folder


def tiny_sd(folder: Path, *, prediction_type: str = "epsilon", seed: int = 0, vae: AutoencoderKL | None = None) -> Path:
    """Stable Diffusion 1.x in miniature (with `v_prediction`, 2.x); native size 64."""
    torch.manual_seed(seed)
    unet = UNet2DConditionModel(
        block_out_channels=(32, 64),
        layers_per_block=1,
        sample_size=32,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=8,
    )
    StableDiffusionPipeline(
        vae=vae or autoencoder(),
        text_encoder=CLIPTextModel(text_config()),
        tokenizer=tokenizer(),
        unet=unet,
        scheduler=DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
            prediction_type=prediction_type,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


def tiny_sdxl(folder: Path, *, seed: int = 0, second_width: int = 32) -> Path:
    """Stable Diffusion XL in miniature; native size 64.

    Args:
        second_width: width of the second text encoder.
    """
    torch.manual_seed(seed)
    unet = UNet2DConditionModel(
        block_out_channels=(32, 64),
        layers_per_block=1,
        sample_size=32,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        transformer_layers_per_block=(1, 2),
        # 6 * 8 for sizes and crops, and 32 for the pooled text embedding.
        projection_class_embeddings_input_dim=80,
        cross_attention_dim=32 + second_width,
    )
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        steps_offset=1,
        timestep_spacing="leading",
    )
    # Settings that the config of the published model has.
    scheduler.register_to_config(clip_sample=False, set_alpha_to_one=False)
    StableDiffusionXLPipeline(
        vae=autoencoder(),
        text_encoder=CLIPTextModel(text_config()),
        text_encoder_2=CLIPTextModelWithProjection(text_config(second_width)),
        tokenizer=tokenizer(),
        tokenizer_2=tokenizer(),
        unet=unet,
        scheduler=scheduler,
    ).save_pretrained(folder)
    return folder


def tiny_unet(*, in_channels: int, xl: bool = False, seed: int = 1) -> UNet2DConditionModel:
    """Return a UNet like that of `tiny_sd` or `tiny_sdxl` with other input channels: 8 for edits, 9 for inpainting."""
    torch.manual_seed(seed)
    xl_config = {
        "attention_head_dim": (2, 4),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "transformer_layers_per_block": (1, 2),
        "projection_class_embeddings_input_dim": 80,
        "cross_attention_dim": 64,
    }
    return UNet2DConditionModel(
        block_out_channels=(32, 64),
        layers_per_block=1,
        sample_size=32,
        in_channels=in_channels,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        **(xl_config if xl else {"cross_attention_dim": 32, "attention_head_dim": 8}),
    )


def tiny_x4_upscaler(folder: Path, *, seed: int = 2) -> Path:
    """stable-diffusion-x4-upscaler in miniature, from 16 x 16 to 64 x 64 pixels."""
    unet = tiny_x4_unet(seed=seed)
    StableDiffusionUpscalePipeline(
        vae=AutoencoderKL(
            block_out_channels=(32, 32, 64),
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            latent_channels=4,
            scaling_factor=0.08333,
        ),
        text_encoder=CLIPTextModel(text_config()),
        tokenizer=tokenizer(),
        unet=unet,
        low_res_scheduler=DDPMScheduler(beta_start=0.0001, beta_end=0.02, beta_schedule="scaled_linear"),
        scheduler=DDIMScheduler(prediction_type="v_prediction", clip_sample=False),
    ).save_pretrained(folder)
    return folder


def tiny_x4_unet(*, seed: int = 2) -> UNet2DConditionModel:
    """Return a UNet that takes latents, a low-resolution image of their size, and the noise level of that image."""
    torch.manual_seed(seed)
    return UNet2DConditionModel(
        block_out_channels=(32, 64),
        layers_per_block=1,
        sample_size=16,
        in_channels=7,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=8,
        use_linear_projection=True,
        num_class_embeds=1000,
    )


def tiny_x2_upscaler(folder: Path, *, seed: int = 3) -> Path:
    """sd-x2-latent-upscaler in miniature, from 32 x 32 to 64 x 64 pixels."""
    torch.manual_seed(seed)
    unet = UNet2DConditionModel(
        act_fn="gelu",
        attention_head_dim=8,
        norm_num_groups=None,
        block_out_channels=(32, 32, 64, 64),
        sample_size=32,
        # 128 for the noise level, and 32 for the pooled text embedding.
        time_cond_proj_dim=128 + 32,
        conv_in_kernel=1,
        conv_out_kernel=1,
        cross_attention_dim=32,
        down_block_types=("KDownBlock2D", *("KCrossAttnDownBlock2D",) * 3),
        in_channels=8,
        mid_block_type=None,
        only_cross_attention=False,
        out_channels=5,
        resnet_time_scale_shift="scale_shift",
        time_embedding_type="fourier",
        timestep_post_act="gelu",
        up_block_types=(*("KCrossAttnUpBlock2D",) * 3, "KUpBlock2D"),
    )
    StableDiffusionLatentUpscalePipeline(
        vae=autoencoder(),
        text_encoder=CLIPTextModel(text_config()),
        tokenizer=tokenizer(),
        unet=unet,
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type="sample"
        ),
    ).save_pretrained(folder)
    return folder
