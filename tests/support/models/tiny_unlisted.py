"""Tiny random models of pipelines that are not in the table of families, in the format of diffusers."""

import inspect
import json
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderDC, AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, VQModel
from diffusers.pipelines.kandinsky.text_encoder import MCLIPConfig, MultilingualCLIP
from transformers import (
    CLIPImageProcessor,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    Gemma2Config,
    Gemma2Model,
    Qwen3Model,
    Siglip2ImageProcessor,
    Siglip2VisionConfig,
    Siglip2VisionModel,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from img2img.worker.pipelines.image_processors import ImageOnlyProcessor
from tests.support.models.tiny_families import (
    amplify,
    flux_components,
    qwen3_config,
    qwen_text_encoder,
    qwen_tokenizer,
    shifted_autoencoder,
    t5,
    t5_tokenizer,
    tiny_klein,
    tiny_sd3,
)
from tests.support.models.tiny_models import text_config, tiny_sd, tiny_sdxl, tokenizer

DDIM = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "linear", "clip_sample": False}


def tiny_pag(kind: Any, folder: Path) -> Path:
    """Stable Diffusion with perturbed-attention guidance: other attention processors during a call."""
    make, base = (tiny_sdxl, diffusers.StableDiffusionXLPipeline)
    if "3" in kind.__name__:
        make, base = tiny_sd3, diffusers.StableDiffusion3Pipeline
    elif "XL" not in kind.__name__:
        make, base = tiny_sd, diffusers.StableDiffusionPipeline
    pipeline = base.from_pretrained(make(folder / "base"))
    layers = ["blocks.0"] if "3" in kind.__name__ else ["mid"]
    takes = inspect.signature(kind.__init__).parameters
    components = {
        name: part for name, part in pipeline.components.items() if name in takes and name != "safety_checker"
    }
    safe = {"safety_checker": None, "requires_safety_checker": False} if make is tiny_sd else {}
    kind(**components, **safe, pag_applied_layers=layers).save_pretrained(folder / "model")
    return folder / "model"


def tiny_chroma(kind: Any, folder: Path) -> Path:
    """Chroma: FLUX without the guidance embedding."""
    components = flux_components()
    torch.manual_seed(0)
    transformer = diffusers.ChromaTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        axes_dims_rope=(4, 4, 8),
        approximator_num_channels=16,
        approximator_hidden_dim=16,
        approximator_layers=1,
    )
    kind(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=components["vae"],
        text_encoder=components["text_encoder_2"],
        tokenizer=components["tokenizer_2"],
        transformer=amplify(transformer),
    ).save_pretrained(folder)
    return folder


def tiny_klein_variant(kind: Any, folder: Path) -> Path:
    """FLUX.2 klein in another pipeline."""
    base = diffusers.Flux2KleinPipeline.from_pretrained(tiny_klein(folder / "base"))
    kind(**base.components).save_pretrained(folder / "model")
    return folder / "model"


def movq() -> VQModel:
    return VQModel(
        block_out_channels=(32,) * 4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        num_vq_embeddings=12,
        vq_embed_dim=4,
        norm_type="spatial",
    )


def kandinsky_unet(channels: int, encoder: dict[str, Any]) -> diffusers.UNet2DConditionModel:
    return diffusers.UNet2DConditionModel(
        in_channels=channels,
        out_channels=8,
        sample_size=8,
        block_out_channels=(32, 64),
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        layers_per_block=1,
        cross_attention_dim=32,
        attention_head_dim=4,
        resnet_time_scale_shift="scale_shift",
        **encoder,
    )


def kandinsky_prior() -> dict[str, Any]:
    vision = CLIPVisionConfig(
        hidden_size=32,
        image_size=32,
        projection_dim=32,
        intermediate_size=37,
        num_hidden_layers=1,
        num_attention_heads=4,
        patch_size=8,
    )
    prior = diffusers.PriorTransformer(
        num_attention_heads=2, attention_head_dim=8, num_layers=1, embedding_dim=32, additional_embeddings=4
    )
    with torch.no_grad():
        prior.clip_std.fill_(1.0)
    return {
        "prior_prior": prior,
        "prior_image_encoder": CLIPVisionModelWithProjection(vision),
        "prior_text_encoder": CLIPTextModelWithProjection(text_config()),
        "prior_tokenizer": tokenizer(),
        "prior_scheduler": diffusers.UnCLIPScheduler(
            variance_type="fixed_small_log", prediction_type="sample", num_train_timesteps=1000, clip_sample_range=5.0
        ),
        "prior_image_processor": CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
    }


def tiny_kandinsky22(kind: Any, folder: Path) -> Path:
    """Kandinsky 2.2 with its prior: two pipelines in one."""
    torch.manual_seed(0)
    encoder = {"addition_embed_type": "image", "encoder_hid_dim": 32, "encoder_hid_dim_type": "image_proj"}
    kind(
        unet=kandinsky_unet(9 if "Inpaint" in kind.__name__ else 4, encoder),
        scheduler=diffusers.DDPMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="linear", variance_type="learned_range"
        ),
        movq=movq(),
        **kandinsky_prior(),
    ).save_pretrained(folder)
    return folder


def tiny_kandinsky(kind: Any, folder: Path) -> Path:
    """Kandinsky 2.1 with its prior and a multilingual text encoder."""
    torch.manual_seed(0)
    encoder = {
        "addition_embed_type": "text_image",
        "addition_embed_type_num_heads": 2,
        "encoder_hid_dim": 32,
        "encoder_hid_dim_type": "text_image_proj",
    }
    config = MCLIPConfig(
        numDims=32,
        transformerDimensions=32,
        hidden_size=32,
        intermediate_size=37,
        num_attention_heads=4,
        num_hidden_layers=1,
        vocab_size=1005,
    )
    kind(
        text_encoder=MultilingualCLIP(config),
        tokenizer=xlm_tokenizer(),
        unet=kandinsky_unet(9 if "Inpaint" in kind.__name__ else 4, encoder),
        scheduler=diffusers.DDIMScheduler(**DDIM, set_alpha_to_one=False, steps_offset=1),
        movq=movq(),
        **kandinsky_prior(),
    ).save_pretrained(folder)
    return folder


def xlm_tokenizer() -> Any:
    from transformers import XLMRobertaTokenizer

    letters = "▁abcdefghijklmnopqrstuvwxyz0123456789,.!"
    special = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    return XLMRobertaTokenizer(
        vocab=[*special, *((letter, -2.0) for letter in letters), ("<mask>", 0.0)], model_max_length=77
    )


def tiny_kandinsky3(kind: Any, folder: Path) -> Path:
    torch.manual_seed(0)
    kind(
        tokenizer=t5_tokenizer(),
        text_encoder=t5(),
        unet=diffusers.Kandinsky3UNet(
            time_embedding_dim=4,
            groups=2,
            attention_head_dim=4,
            layers_per_block=3,
            block_out_channels=(32, 64),
            cross_attention_dim=4,
            encoder_hid_dim=32,
        ),
        scheduler=diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2", clip_sample=True),
        movq=movq(),
    ).save_pretrained(folder)
    return folder


def tiny_if(kind: Any, folder: Path) -> Path:
    """DeepFloyd IF: a model of pixels."""
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        sample_size=32,
        layers_per_block=1,
        block_out_channels=(32, 64),
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        in_channels=3,
        out_channels=6,
        cross_attention_dim=32,
        encoder_hid_dim=32,
        attention_head_dim=8,
        addition_embed_type="text",
        addition_embed_type_num_heads=2,
        cross_attention_norm="group_norm",
        resnet_time_scale_shift="scale_shift",
        act_fn="gelu",
    )
    kind(
        tokenizer=t5_tokenizer(),
        text_encoder=t5(),
        unet=unet,
        scheduler=diffusers.DDPMScheduler(
            beta_schedule="squaredcos_cap_v2", thresholding=True, variance_type="learned_range"
        ),
        safety_checker=None,
        feature_extractor=None,
        watermarker=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


def tiny_amused(kind: Any, folder: Path) -> Path:
    """aMUSEd: predicts tokens of a vector-quantised autoencoder."""
    torch.manual_seed(0)
    transformer = diffusers.UVit2DModel(
        hidden_size=8,
        cond_embed_dim=32,
        micro_cond_encode_dim=2,
        micro_cond_embed_dim=10,
        encoder_hidden_size=32,
        vocab_size=32,
        codebook_size=8,
        in_channels=8,
        block_out_channels=8,
        num_res_blocks=1,
        downsample=True,
        upsample=True,
        block_num_heads=1,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=32,
        sample_size=32,
    )
    vqvae = VQModel(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        latent_channels=8,
        num_vq_embeddings=8,
        mid_block_add_attention=False,
        lookup_from_codebook=True,
    )
    kind(
        vqvae=vqvae,
        tokenizer=tokenizer(),
        text_encoder=CLIPTextModelWithProjection(text_config()),
        transformer=transformer,
        scheduler=diffusers.AmusedScheduler(mask_token_id=31),
    ).save_pretrained(folder)
    return folder


def tiny_sana_sprint(kind: Any, folder: Path) -> Path:
    torch.manual_seed(0)
    tokens = qwen_tokenizer()
    transformer = diffusers.SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=4,
        num_cross_attention_heads=2,
        cross_attention_head_dim=4,
        cross_attention_dim=8,
        caption_channels=8,
        sample_size=32,
        guidance_embeds=True,
        guidance_embeds_scale=0.1,
        qk_norm="rms_norm_across_heads",
    )
    vae = AutoencoderDC(
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
        scaling_factor=0.4,
    )
    text_encoder = Gemma2Model(
        Gemma2Config(
            vocab_size=len(tokens),
            head_dim=16,
            hidden_size=8,
            intermediate_size=64,
            num_attention_heads=2,
            num_hidden_layers=1,
            num_key_value_heads=2,
        )
    )
    kind(
        tokenizer=tokens,
        text_encoder=text_encoder,
        vae=vae,
        transformer=transformer,
        scheduler=diffusers.SCMScheduler(),
    ).save_pretrained(folder)
    return folder


def tiny_z_image_omni(kind: Any, folder: Path) -> Path:
    """Z-Image Omni: images are read by SigLIP and by the autoencoder."""
    torch.manual_seed(0)
    transformer = diffusers.ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        siglip_feat_dim=16,
        axes_dims=[4, 6, 6],
        axes_lens=[1024, 64, 64],
    )
    with torch.no_grad():
        for name, token in transformer.named_parameters():
            if name.endswith("pad_token"):
                token.normal_()
    siglip = Siglip2VisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, patch_size=8, num_patches=64
    )
    tokens = qwen_tokenizer("<|vision_start|>", "<|vision_end|>")
    text = qwen3_config(3)
    text.vocab_size = len(tokens)
    kind(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=shifted_autoencoder(4),
        text_encoder=Qwen3Model(text),
        tokenizer=tokens,
        transformer=amplify(transformer),
        siglip=Siglip2VisionModel(siglip),
        siglip_processor=Siglip2ImageProcessor(patch_size=8, max_num_patches=64),
    ).save_pretrained(folder)
    return folder


def with_published_processor(folder: Path, name: str) -> Path:
    """Name the class of the published model in model_index.json: without torchvision, another one was saved."""
    index = folder / "model_index.json"
    changed = {**json.loads(index.read_text()), name: ["transformers", "Qwen2VLProcessor"]}
    index.write_text(json.dumps(changed))
    return folder


def tiny_longcat(kind: Any, folder: Path) -> Path:
    torch.manual_seed(0)
    tokens = qwen_tokenizer("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
    size = {"shortest_edge": 28 * 28, "longest_edge": 4 * 28 * 28}
    transformer = diffusers.LongCatImageTransformer2DModel(
        in_channels=64,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        axes_dims_rope=[4, 4, 8],
    )
    kind(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=shifted_autoencoder(16, widths=(4, 4, 4, 8)),
        text_encoder=qwen_text_encoder(tokens),
        tokenizer=tokens,
        text_processor=ImageOnlyProcessor(Qwen2VLImageProcessorPil(size=size), tokens),
        transformer=amplify(transformer),
    ).save_pretrained(folder)
    return with_published_processor(folder, "text_processor")


def wan_autoencoder() -> AutoencoderKLWan:
    return AutoencoderKLWan(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[1.5, 0.5, 2.0, 1.0],
    )


def tiny_fibo_edit(kind: Any, folder: Path) -> Path:
    torch.manual_seed(0)
    tokens = qwen_tokenizer()
    transformer = diffusers.BriaFiboTransformer2DModel(
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=64,
        text_encoder_dim=32,
        axes_dims_rope=[0, 4, 4],
    )
    text_encoder = SmolLM3ForCausalLM(
        SmolLM3Config(
            vocab_size=len(tokens),
            hidden_size=32,
            intermediate_size=37,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            pad_token_id=0,
        )
    )
    kind(
        transformer=amplify(transformer),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=wan_autoencoder(),
        text_encoder=text_encoder,
        tokenizer=tokens,
    ).save_pretrained(folder)
    return folder


def tiny_omnigen(kind: Any, folder: Path) -> Path:
    torch.manual_seed(0)
    tokens = qwen_tokenizer()
    transformer = diffusers.OmniGenTransformer2DModel(
        hidden_size=16,
        num_attention_heads=4,
        num_key_value_heads=4,
        intermediate_size=32,
        num_layers=1,
        vocab_size=len(tokens),
        pad_token_id=0,
        time_step_dim=4,
        rope_scaling={"long_factor": [1.0, 1.0], "short_factor": [1.0, 1.0]},
    )
    kind(
        transformer=amplify(transformer),
        scheduler=FlowMatchEulerDiscreteScheduler(invert_sigmas=True, num_train_timesteps=1),
        vae=shifted_autoencoder(4, widths=(4, 4, 4, 8)),
        tokenizer=tokens,
    ).save_pretrained(folder)
    return folder


def tiny_kandinsky5(kind: Any, folder: Path) -> Path:
    torch.manual_seed(0)
    tokens = qwen_tokenizer("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
    size = {"shortest_edge": 28 * 28, "longest_edge": 4 * 28 * 28}
    transformer = diffusers.Kandinsky5Transformer3DModel(
        in_visual_dim=4,
        out_visual_dim=4,
        in_text_dim=16,
        in_text_dim2=32,
        time_dim=16,
        model_dim=16,
        ff_dim=16,
        num_text_blocks=1,
        num_visual_blocks=1,
        axes_dims=(2, 2, 4),
        visual_cond=True,
    )
    kind(
        transformer=amplify(transformer),
        vae=shifted_autoencoder(4, widths=(4, 4, 4, 8)),
        text_encoder=qwen_text_encoder(tokens),
        tokenizer=ImageOnlyProcessor(Qwen2VLImageProcessorPil(size=size), tokens),
        text_encoder_2=CLIPTextModel(text_config()),
        tokenizer_2=tokenizer(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    ).save_pretrained(folder)
    return with_published_processor(folder, "tokenizer")
