"""Configurations of the components of Stable Diffusion 1, 2 and XL."""

from collections.abc import Mapping
from dataclasses import replace

from .checkpoint_layout import CLIP, OPENCLIP, Layout

_UNET = {
    "_class_name": "UNet2DConditionModel",
    "act_fn": "silu",
    "center_input_sample": False,
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "out_channels": 4,
}
_FOUR_LEVELS = {
    "block_out_channels": [320, 640, 1280, 1280],
    "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
    "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
}
_SD1_UNET = {**_UNET, **_FOUR_LEVELS, "sample_size": 64, "attention_head_dim": 8, "cross_attention_dim": 768}
_SD2_UNET = {
    **_UNET,
    **_FOUR_LEVELS,
    "attention_head_dim": [5, 10, 20, 20],
    "cross_attention_dim": 1024,
    "use_linear_projection": True,
}
_SDXL_UNET = {
    **_UNET,
    "sample_size": 128,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "use_linear_projection": True,
}
_SDXL_BASE_UNET = {
    **_SDXL_UNET,
    "attention_head_dim": [5, 10, 20],
    "block_out_channels": [320, 640, 1280],
    "cross_attention_dim": 2048,
    "down_block_types": ["DownBlock2D", *["CrossAttnDownBlock2D"] * 2],
    "up_block_types": [*["CrossAttnUpBlock2D"] * 2, "UpBlock2D"],
    "projection_class_embeddings_input_dim": 2816,
    "transformer_layers_per_block": [1, 2, 10],
}
_SDXL_REFINER_UNET = {
    **_SDXL_UNET,
    "attention_head_dim": [6, 12, 24, 24],
    "block_out_channels": [384, 768, 1536, 1536],
    "cross_attention_dim": 1280,
    "down_block_types": ["DownBlock2D", *["CrossAttnDownBlock2D"] * 2, "DownBlock2D"],
    "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 2, "UpBlock2D"],
    "projection_class_embeddings_input_dim": 2560,
    "transformer_layers_per_block": 4,
}
_UPSCALER_UNET = {
    **_UNET,
    "attention_head_dim": 8,
    "block_out_channels": [256, 512, 512, 1024],
    "cross_attention_dim": 1024,
    "down_block_types": ["DownBlock2D", *["CrossAttnDownBlock2D"] * 3],
    "up_block_types": [*["CrossAttnUpBlock2D"] * 3, "UpBlock2D"],
    "num_class_embeds": 1000,
    "only_cross_attention": [True, True, True, False],
    "sample_size": 128,
    "use_linear_projection": True,
}
VAE = {
    "_class_name": "AutoencoderKL",
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "out_channels": 3,
}
_TEXT_ENCODER = {
    "model_type": "clip_text_model",
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "dropout": 0.0,
    "eos_token_id": 2,
    "initializer_factor": 1.0,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 77,
    "pad_token_id": 1,
    "vocab_size": 49408,
}
CLIP_L = {
    **_TEXT_ENCODER,
    "architectures": ["CLIPTextModel"],
    "hidden_act": "quick_gelu",
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "projection_dim": 768,
}
# ViT-H without its last layer, which Stable Diffusion 2 does not use.
_OPENCLIP_H = {
    **_TEXT_ENCODER,
    "architectures": ["CLIPTextModel"],
    "hidden_act": "gelu",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_hidden_layers": 23,
    "projection_dim": 512,
}
OPENCLIP_BIG_G = {
    **_TEXT_ENCODER,
    "architectures": ["CLIPTextModelWithProjection"],
    "hidden_act": "gelu",
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_attention_heads": 20,
    "num_hidden_layers": 32,
    "projection_dim": 1280,
}
_SCHEDULER = {
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}
_EULER = {
    **_SCHEDULER,
    "_class_name": "EulerDiscreteScheduler",
    "interpolation_type": "linear",
    "sample_max_value": 1.0,
    "timestep_spacing": "leading",
    "use_karras_sigmas": False,
}


_SD1 = Layout(
    pipeline="StableDiffusionPipeline",
    denoiser=_SD1_UNET,
    vae={**VAE, "sample_size": 512, "scaling_factor": 0.18215},
    text_encoders={"text_encoder": CLIP_L},
    tokenizers={"tokenizer": CLIP},
    scheduler={**_SCHEDULER, "_class_name": "PNDMScheduler"},
    index={
        "feature_extractor": [None, None],
        "safety_checker": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
    },
)
_SD2_INPAINTING = replace(
    _SD1,
    denoiser=_SD2_UNET,
    vae={**VAE, "sample_size": 768, "scaling_factor": 0.18215},
    text_encoders={"text_encoder": _OPENCLIP_H},
    tokenizers={"tokenizer": OPENCLIP},
    scheduler={**_SCHEDULER, "_class_name": "DDIMScheduler"},
)
_UPSCALER_SCHEDULER = {**_SCHEDULER, "beta_end": 0.02, "beta_start": 0.0001}
_UPSCALER = replace(
    _SD2_INPAINTING,
    pipeline="StableDiffusionUpscalePipeline",
    denoiser=_UPSCALER_UNET,
    vae={
        **VAE,
        "block_out_channels": [128, 256, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 3,
        "up_block_types": ["UpDecoderBlock2D"] * 3,
        "sample_size": 256,
        "scaling_factor": 0.08333,
    },
    scheduler={**_UPSCALER_SCHEDULER, "_class_name": "DDIMScheduler"},
    others={"low_res_scheduler": {**_UPSCALER_SCHEDULER, "_class_name": "DDPMScheduler", "clip_sample": True}},
    v_prediction=True,
    index={"max_noise_level": 350},
)
_SDXL_INDEX = {"feature_extractor": [None, None], "image_encoder": [None, None]}
_SDXL = Layout(
    pipeline="StableDiffusionXLPipeline",
    denoiser=_SDXL_BASE_UNET,
    vae={**VAE, "sample_size": 1024, "scaling_factor": 0.13025, "force_upcast": True},
    text_encoders={"text_encoder": CLIP_L, "text_encoder_2": OPENCLIP_BIG_G},
    tokenizers={"tokenizer": CLIP, "tokenizer_2": OPENCLIP},
    scheduler=_EULER,
    index={**_SDXL_INDEX, "force_zeros_for_empty_prompt": True},
)
# By the type that diffusers infers from the weights.
UNET_LAYOUTS: Mapping[str, Layout] = {
    "v1": _SD1,
    "inpainting": _SD1,
    "instruct-pix2pix": _SD1,
    "v2": replace(_SD2_INPAINTING, denoiser={**_SD2_UNET, "upcast_attention": True}, v_prediction=True),
    "inpainting_v2": _SD2_INPAINTING,
    "upscale": _UPSCALER,
    "xl_base": _SDXL,
    "xl_inpaint": _SDXL,
    "xl_refiner": replace(
        _SDXL,
        pipeline="StableDiffusionXLImg2ImgPipeline",
        denoiser=_SDXL_REFINER_UNET,
        text_encoders={"text_encoder_2": OPENCLIP_BIG_G},
        tokenizers={"tokenizer_2": OPENCLIP},
        index={
            **_SDXL_INDEX,
            "text_encoder": [None, None],
            "tokenizer": [None, None],
            "force_zeros_for_empty_prompt": False,
            "requires_aesthetics_score": True,
        },
    ),
}
