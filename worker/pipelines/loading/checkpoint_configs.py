"""Configurations of the components of Stable Diffusion 1, 2 and XL: the files beside the weights in diffusers' format.

A single-file checkpoint has weights only.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .clip_tokenizer import END

Config = Mapping[str, Any]

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
_VAE = {
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
_CLIP_L = {
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
_OPENCLIP_BIG_G = {
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


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The components of a kind of checkpoint.

    Attributes:
        pads: padding token by tokenizer.
        v_prediction: whether the denoiser predicts v if the file does not name its prediction type.
        index: fields of model_index.json beside the components.
    """

    pipeline: str
    unet: Config
    vae: Config
    text_encoders: Mapping[str, Config]
    pads: Mapping[str, str]
    scheduler: Config
    v_prediction: bool = False
    index: Mapping[str, Any]

    def write(self, folder: Path, *, in_channels: int, prediction_type: str | None, zero_snr: bool) -> None:
        """Write the configurations to a folder in diffusers' format. Tokenizers have no files.

        Args:
            in_channels: input channels of the UNet: 4, or 8 or 9 with an image beside the latents.
            prediction_type: `epsilon` or `v_prediction`; None for that of the layout.
            zero_snr: whether the noise schedule ends at a signal-to-noise ratio of zero.
        """
        chosen = prediction_type or ("v_prediction" if self.v_prediction else "epsilon")
        scheduler = {**self.scheduler, "prediction_type": chosen}
        if zero_snr:
            scheduler |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        unet = {**self.unet, "in_channels": in_channels}
        # Stable Diffusion 2 was published for 512 pixels with epsilon, for 768 pixels with v.
        unet.setdefault("sample_size", 96 if chosen == "v_prediction" else 64)
        parts = {"unet": unet, "vae": self.vae, **self.text_encoders}
        index = {
            **self.index,
            "_class_name": self.pipeline,
            "scheduler": ["diffusers", scheduler["_class_name"]],
            **{name: ["transformers", "CLIPTokenizer"] for name in self.pads},
            **{name: _reference(config) for name, config in parts.items()},
        }
        _write(folder / "model_index.json", index)
        _write(folder / "scheduler" / "scheduler_config.json", scheduler)
        for name, config in parts.items():
            _write(folder / name / "config.json", config)


def _reference(config: Config) -> list[str]:
    """Return the library and the class of a component."""
    if "_class_name" in config:
        return ["diffusers", config["_class_name"]]
    return ["transformers", *config["architectures"]]


def _write(file: Path, content: Mapping[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))


_SD1 = Layout(
    pipeline="StableDiffusionPipeline",
    unet=_SD1_UNET,
    vae={**_VAE, "sample_size": 512, "scaling_factor": 0.18215},
    text_encoders={"text_encoder": _CLIP_L},
    pads={"tokenizer": END},
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
    unet=_SD2_UNET,
    vae={**_VAE, "sample_size": 768, "scaling_factor": 0.18215},
    text_encoders={"text_encoder": _OPENCLIP_H},
    pads={"tokenizer": "!"},
    scheduler={**_SCHEDULER, "_class_name": "DDIMScheduler"},
)
_SDXL_INDEX = {"feature_extractor": [None, None], "image_encoder": [None, None]}
_SDXL = Layout(
    pipeline="StableDiffusionXLPipeline",
    unet=_SDXL_BASE_UNET,
    vae={**_VAE, "sample_size": 1024, "scaling_factor": 0.13025, "force_upcast": True},
    text_encoders={"text_encoder": _CLIP_L, "text_encoder_2": _OPENCLIP_BIG_G},
    pads={"tokenizer": END, "tokenizer_2": "!"},
    scheduler=_EULER,
    index={**_SDXL_INDEX, "force_zeros_for_empty_prompt": True},
)
# By the type that diffusers infers from the weights.
LAYOUTS: Mapping[str, Layout] = {
    "v1": _SD1,
    "inpainting": _SD1,
    "instruct-pix2pix": _SD1,
    "v2": replace(_SD2_INPAINTING, unet={**_SD2_UNET, "upcast_attention": True}, v_prediction=True),
    "inpainting_v2": _SD2_INPAINTING,
    "xl_base": _SDXL,
    "xl_inpaint": _SDXL,
    "xl_refiner": replace(
        _SDXL,
        pipeline="StableDiffusionXLImg2ImgPipeline",
        unet=_SDXL_REFINER_UNET,
        text_encoders={"text_encoder_2": _OPENCLIP_BIG_G},
        pads={"tokenizer_2": "!"},
        index={
            **_SDXL_INDEX,
            "text_encoder": [None, None],
            "tokenizer": [None, None],
            "force_zeros_for_empty_prompt": False,
            "requires_aesthetics_score": True,
        },
    ),
}
