"""Tiny random models of the families besides Stable Diffusion 1, 2 and XL, in the format of diffusers."""

import json
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from img2img.worker.pipelines.image_processors import ImageOnlyProcessor
from tests.support.models.tiny_models import autoencoder, text_config, tiny_sd, tokenizer

T5_LETTERS = "▁abcdefghijklmnopqrstuvwxyz0123456789,.!"


def t5_tokenizer() -> T5Tokenizer:
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    return T5Tokenizer(vocab=[*special, *((piece, -2.0) for piece in T5_LETTERS)], extra_ids=0, model_max_length=32)


def t5(width: int = 32) -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(vocab_size=len(T5_LETTERS) + 3, d_model=width, d_kv=8, d_ff=37, num_layers=2, num_heads=4)
    )


def shifted_autoencoder(latent_channels: int, *, widths: tuple[int, ...] = (8, 16)) -> AutoencoderKL:
    """Return a VAE as flow models have it: latents are shifted and scaled."""
    return AutoencoderKL(
        block_out_channels=widths,
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        norm_num_groups=4,
        latent_channels=latent_channels,
        sample_size=64,
        shift_factor=0.1,
        scaling_factor=0.4,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def amplify(denoiser: torch.nn.Module) -> Any:
    """Scale up the weights of a denoiser, so that every input has a visible effect on the output."""
    with torch.no_grad():
        for parameter in denoiser.parameters():
            if parameter.requires_grad and parameter.dim() > 1:
                parameter.mul_(2)
    return denoiser


def flux_components(*, guidance: bool = True, seed: int = 0, masked: bool = False) -> dict[str, Any]:
    """Return the components of a FLUX pipeline.

    Args:
        guidance: whether the guidance scale is an input of the transformer.
        masked: whether the transformer also takes the latents of a masked image, and the mask (2 x 2 pixels a latent).
    """
    torch.manual_seed(seed)
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=16 + (16 + 2 * 2 * 2 * 2) * masked,
        out_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=guidance,
    )
    return {
        "vae": shifted_autoencoder(4),
        "text_encoder": CLIPTextModel(text_config()),
        "tokenizer": tokenizer(),
        "text_encoder_2": t5(),
        "tokenizer_2": t5_tokenizer(),
        "transformer": amplify(transformer),
        "scheduler": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0),
    }


def tiny_flux(folder: Path) -> Path:
    """FLUX.1-dev in miniature: the guidance scale is an input."""
    diffusers.FluxPipeline(**flux_components()).save_pretrained(folder)
    return folder


def tiny_flux_small_latents(folder: Path) -> Path:
    """FLUX.1-dev in miniature, whose latents are 8 times smaller than the image, as those of the published model."""
    components = {**flux_components(), "vae": shifted_autoencoder(4, widths=(8, 8, 16, 16))}
    diffusers.FluxPipeline(**components).save_pretrained(folder)
    return folder


def tiny_schnell(folder: Path) -> Path:
    """FLUX.1-schnell in miniature: no guidance."""
    diffusers.FluxPipeline(**flux_components(guidance=False)).save_pretrained(folder)
    return folder


def tiny_kontext(folder: Path) -> Path:
    """FLUX.1 Kontext in miniature: the same components in another pipeline."""
    diffusers.FluxKontextPipeline(**flux_components()).save_pretrained(folder)
    return folder


def tiny_fill(folder: Path) -> Path:
    """FLUX.1 Fill in miniature: its transformer takes the masked image and the mask."""
    diffusers.FluxFillPipeline(**flux_components(masked=True)).save_pretrained(folder)
    return folder


def tiny_sd3(folder: Path, *, seed: int = 0) -> Path:
    """Stable Diffusion 3 in miniature; native size 64."""
    torch.manual_seed(seed)
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=32,
        patch_size=2,
        in_channels=16,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        caption_projection_dim=32,
        joint_attention_dim=64,
        pooled_projection_dim=64,
        out_channels=16,
        pos_embed_max_size=32,
    )
    pipeline = diffusers.StableDiffusion3Pipeline(
        transformer=amplify(transformer),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=shifted_autoencoder(16),
        text_encoder=CLIPTextModelWithProjection(text_config()),
        tokenizer=tokenizer(),
        text_encoder_2=CLIPTextModelWithProjection(text_config()),
        tokenizer_2=tokenizer(),
        text_encoder_3=t5(64),
        tokenizer_3=t5_tokenizer(),
    )
    pipeline.save_pretrained(folder)
    return folder


def tiny_refiner(folder: Path, *, seed: int = 0) -> Path:
    """The SDXL refiner in miniature: one text encoder, and an aesthetic score instead of the target size."""
    torch.manual_seed(seed)
    unet = diffusers.UNet2DConditionModel(
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
        # 5 * 8 for sizes, crops and score, and 32 for the pooled text embedding.
        projection_class_embeddings_input_dim=72,
        cross_attention_dim=32,
    )
    diffusers.StableDiffusionXLImg2ImgPipeline(
        vae=autoencoder(),
        text_encoder=None,
        text_encoder_2=CLIPTextModelWithProjection(text_config()),
        tokenizer=None,
        tokenizer_2=tokenizer(),
        unet=unet,
        scheduler=diffusers.EulerDiscreteScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1
        ),
        requires_aesthetics_score=True,
    ).save_pretrained(folder)
    return folder


def tiny_lcm(folder: Path, *, seed: int = 0) -> Path:
    """A distilled Stable Diffusion: the guidance scale is an input of the UNet."""
    torch.manual_seed(seed)
    base = diffusers.StableDiffusionPipeline.from_pretrained(tiny_sd(folder / "base"), safety_checker=None)
    unet = diffusers.UNet2DConditionModel.from_config({**base.unet.config, "time_cond_proj_dim": 32})
    diffusers.LatentConsistencyModelPipeline(
        vae=base.vae,
        text_encoder=base.text_encoder,
        tokenizer=base.tokenizer,
        unet=amplify(unet),
        scheduler=diffusers.LCMScheduler.from_config(base.scheduler.config),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


def qwen_tokenizer(*more: str) -> Qwen2Tokenizer:
    """Return a byte-level tokenizer.

    Args:
        more: special tokens in addition to those of all models.
    """
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *more]
    symbols = [*special, *sorted(ByteLevel.alphabet())]
    return Qwen2Tokenizer(
        vocab={symbol: i for i, symbol in enumerate(symbols)},
        merges=[],
        additional_special_tokens=special[1:],
        chat_template="{% for message in messages %}<|im_start|>{{ message.content }}<|im_end|>{% endfor %}",
    )


def qwen3_config(layers: int) -> Qwen3Config:
    return Qwen3Config(
        vocab_size=len(qwen_tokenizer()),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        pad_token_id=0,
    )


def tiny_z_image(folder: Path, *, seed: int = 0) -> Path:
    """Z-Image in miniature."""
    torch.manual_seed(seed)
    transformer = diffusers.ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[4, 6, 6],
        axes_lens=[1024, 64, 64],
    )
    with torch.no_grad():
        for token in (transformer.x_pad_token, transformer.cap_pad_token):
            token.normal_()
    diffusers.ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=shifted_autoencoder(4),
        text_encoder=Qwen3Model(qwen3_config(3)),
        tokenizer=qwen_tokenizer(),
        transformer=amplify(transformer),
    ).save_pretrained(folder)
    return folder


def flux2_autoencoder() -> diffusers.AutoencoderKLFlux2:
    return diffusers.AutoencoderKLFlux2(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        latent_channels=4,
        sample_size=64,
    )


def tiny_klein(folder: Path, *, seed: int = 0) -> Path:
    """FLUX.2 klein in miniature. The pipeline reads layers 9, 18 and 27 of the text encoder."""
    torch.manual_seed(seed)
    transformer = diffusers.Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=48,
        timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=False,
    )
    diffusers.Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=flux2_autoencoder(),
        text_encoder=Qwen3ForCausalLM(qwen3_config(28)),
        tokenizer=qwen_tokenizer(),
        transformer=amplify(transformer),
    ).save_pretrained(folder)
    return folder


def tiny_flux2(folder: Path, *, seed: int = 0) -> Path:
    """FLUX.2 dev in miniature. The pipeline reads layers 10, 20 and 30 of the text encoder."""
    torch.manual_seed(seed)
    transformer = diffusers.Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=48,
        timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
    )
    text = {
        "model_type": "mistral",
        "vocab_size": 300,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 31,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
    }
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Mistral3Config(text_config=text, vision_config={**vision, "model_type": "pixtral", "head_dim": 8})
    # The published model has a processor instead of a tokenizer, which transformers loads only with torchvision. The
    # pipeline uses it as a tokenizer.
    tokens = qwen_tokenizer()
    parts = "{% for part in turn.content %}[{{ turn.role }}]{{ part.text }}{% endfor %}"
    tokens.chat_template = "{% for turn in messages %}" + parts + "{% endfor %}"
    diffusers.Flux2Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=flux2_autoencoder(),
        text_encoder=Mistral3ForConditionalGeneration(config),
        tokenizer=tokens,
        transformer=amplify(transformer),
    ).save_pretrained(folder)
    return folder


def qwen_transformer() -> Any:
    return amplify(
        diffusers.QwenImageTransformer2DModel(
            in_channels=16,
            out_channels=4,
            num_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=16,
            axes_dims_rope=(4, 6, 6),
        )
    )


def qwen_autoencoder(*, halvings: int = 1) -> diffusers.AutoencoderKLQwenImage:
    """Return a VAE that halves the sides of an image `halvings` times."""
    return diffusers.AutoencoderKLQwenImage(
        base_dim=8 // halvings or 2,
        z_dim=4,
        dim_mult=[1, 2] + [2] * (halvings - 1),
        num_res_blocks=1,
        temperal_downsample=[False] * halvings,
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[1.5, 0.5, 2.0, 1.0],
    )


def qwen_text_encoder(tokens: Qwen2Tokenizer) -> Qwen2_5_VLForConditionalGeneration:
    text = {
        "vocab_size": len(tokens),
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10_000.0},
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 0,
    }
    vision = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "out_hidden_size": 16,
        "fullatt_block_indexes": [0],
    }
    image = tokens.convert_tokens_to_ids("<|image_pad|>")
    return Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(text_config=text, vision_config=vision, **({"image_token_id": image} if image else {}))
    )


def tiny_qwen_image(folder: Path, *, seed: int = 0) -> Path:
    """Qwen-Image in miniature, with its video autoencoder."""
    torch.manual_seed(seed)
    transformer, vae = qwen_transformer(), qwen_autoencoder()
    diffusers.QwenImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=vae,
        text_encoder=qwen_text_encoder(qwen_tokenizer()),
        tokenizer=qwen_tokenizer(),
        transformer=transformer,
    ).save_pretrained(folder)
    return folder


def tiny_qwen_edit(folder: Path, *, kind: Any = diffusers.QwenImageEditPipeline, seed: int = 0) -> Path:
    """Qwen-Image-Edit in miniature. The pipeline resizes images to a megapixel, so a latent is 16 x 16 pixels."""
    torch.manual_seed(seed)
    tokens = qwen_tokenizer("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
    size = {"shortest_edge": 28 * 28, "longest_edge": 4 * 28 * 28}
    kind(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=qwen_autoencoder(halvings=4),
        text_encoder=qwen_text_encoder(tokens),
        tokenizer=tokens,
        processor=ImageOnlyProcessor(Qwen2VLImageProcessorPil(size=size), tokens),
        transformer=qwen_transformer(),
    ).save_pretrained(folder)
    index = folder / "model_index.json"
    # The class that the published model names.
    changed = {**json.loads(index.read_text()), "processor": ["transformers", "Qwen2VLProcessor"]}
    index.write_text(json.dumps(changed))
    return folder


def tiny_qwen_edit_plus(folder: Path) -> Path:
    return tiny_qwen_edit(folder, kind=diffusers.QwenImageEditPlusPipeline)
