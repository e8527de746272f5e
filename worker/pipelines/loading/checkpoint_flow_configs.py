"""Configurations of the components of Stable Diffusion 3 and 3.5 and of FLUX.1."""

from collections.abc import Mapping
from dataclasses import replace

from .checkpoint_configs import CLIP_L, OPENCLIP_BIG_G, VAE
from .checkpoint_layout import CLIP, OPENCLIP, T5, Layout

_SD3_TRANSFORMER = {
    "_class_name": "SD3Transformer2DModel",
    "attention_head_dim": 64,
    "caption_projection_dim": 1536,
    "dual_attention_layers": [],
    "in_channels": 16,
    "joint_attention_dim": 4096,
    "num_attention_heads": 24,
    "num_layers": 24,
    "out_channels": 16,
    "patch_size": 2,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 192,
    "qk_norm": None,
    "sample_size": 128,
}
_FLUX_TRANSFORMER = {
    "_class_name": "FluxTransformer2DModel",
    "attention_head_dim": 128,
    "axes_dims_rope": [16, 56, 56],
    "guidance_embeds": True,
    "in_channels": 64,
    "joint_attention_dim": 4096,
    "num_attention_heads": 24,
    "num_layers": 19,
    "num_single_layers": 38,
    "patch_size": 1,
    "pooled_projection_dim": 768,
}
# The VAEs of flow models have 16 channels, shifted latents and no convolutions around them.
_VAE = {
    **VAE,
    "force_upcast": True,
    "latent_channels": 16,
    "sample_size": 1024,
    "use_post_quant_conv": False,
    "use_quant_conv": False,
}
_T5_XXL = {
    "architectures": ["T5EncoderModel"],
    "model_type": "t5",
    "classifier_dropout": 0.0,
    "d_ff": 10240,
    "d_kv": 64,
    "d_model": 4096,
    "decoder_start_token_id": 0,
    "dense_act_fn": "gelu_new",
    "dropout_rate": 0.1,
    "eos_token_id": 1,
    "feed_forward_proj": "gated-gelu",
    "is_encoder_decoder": True,
    "is_gated_act": True,
    "layer_norm_epsilon": 1e-06,
    "num_decoder_layers": 24,
    "num_heads": 64,
    "num_layers": 24,
    "pad_token_id": 0,
    "relative_attention_max_distance": 128,
    "relative_attention_num_buckets": 32,
    "tie_word_embeddings": False,
    "vocab_size": 32128,
}
_FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000}
_FLUX_SCHEDULER = {
    **_FLOW,
    "base_image_seq_len": 256,
    "base_shift": 0.5,
    "max_image_seq_len": 4096,
    "max_shift": 1.15,
}

_SD3 = Layout(
    pipeline="StableDiffusion3Pipeline",
    denoiser=_SD3_TRANSFORMER,
    vae={**_VAE, "scaling_factor": 1.5305, "shift_factor": 0.0609},
    text_encoders={
        "text_encoder": {**CLIP_L, "architectures": ["CLIPTextModelWithProjection"]},
        "text_encoder_2": OPENCLIP_BIG_G,
        "text_encoder_3": _T5_XXL,
    },
    tokenizers={"tokenizer": CLIP, "tokenizer_2": OPENCLIP, "tokenizer_3": T5},
    scheduler={**_FLOW, "shift": 3.0},
    optional=("text_encoder_3",),
)
_FLUX_DEV = Layout(
    pipeline="FluxPipeline",
    denoiser=_FLUX_TRANSFORMER,
    vae={**_VAE, "scaling_factor": 0.3611, "shift_factor": 0.1159},
    text_encoders={"text_encoder": CLIP_L, "text_encoder_2": _T5_XXL},
    tokenizers={"tokenizer": CLIP, "tokenizer_2": T5},
    scheduler={**_FLUX_SCHEDULER, "shift": 3.0, "use_dynamic_shifting": True},
)
# By the type that diffusers infers from the weights.
FLOW_LAYOUTS: Mapping[str, Layout] = {
    "sd3": _SD3,
    "sd35_medium": replace(
        _SD3,
        denoiser={
            **_SD3_TRANSFORMER,
            "dual_attention_layers": list(range(13)),
            "pos_embed_max_size": 384,
            "qk_norm": "rms_norm",
        },
    ),
    "sd35_large": replace(
        _SD3,
        denoiser={
            **_SD3_TRANSFORMER,
            "caption_projection_dim": 2432,
            "num_attention_heads": 38,
            "num_layers": 38,
            "qk_norm": "rms_norm",
        },
    ),
    "flux-dev": _FLUX_DEV,
    "flux-schnell": replace(
        _FLUX_DEV,
        denoiser={**_FLUX_TRANSFORMER, "guidance_embeds": False},
        scheduler={**_FLUX_SCHEDULER, "shift": 1.0, "use_dynamic_shifting": False},
    ),
    "flux-fill": replace(
        _FLUX_DEV,
        pipeline="FluxFillPipeline",
        denoiser={**_FLUX_TRANSFORMER, "in_channels": 384, "out_channels": 64},
    ),
}
