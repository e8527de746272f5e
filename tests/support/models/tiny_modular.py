"""Tiny random models of modular pipelines, in the format of diffusers."""

import json
from pathlib import Path
from typing import Any

import diffusers
import torch
from transformers import (
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
    Qwen3Model,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from img2img.domain.parameters import Task
from img2img.worker.pipelines.image_processors import ImageOnlyProcessor, image_only_processor
from tests.support.models.tiny_families import (
    amplify,
    flux2_autoencoder,
    qwen3_config,
    qwen_autoencoder,
    qwen_tokenizer,
    t5_tokenizer,
    tiny_flux,
    tiny_klein,
    tiny_qwen_image,
    tiny_sd3,
    tiny_z_image,
)
from tests.support.models.tiny_models import tiny_sdxl

# Makers of ordinary models of modular pipelines, and the tasks of these.
ORDINARY: dict[str, tuple[Any, tuple[Task, ...]]] = {
    "StableDiffusionXLModularPipeline": (tiny_sdxl, (Task.IMG2IMG, Task.INPAINT)),
    "StableDiffusion3ModularPipeline": (tiny_sd3, (Task.IMG2IMG,)),
    "FluxModularPipeline": (tiny_flux, (Task.IMG2IMG,)),
    "Flux2KleinBaseModularPipeline": (tiny_klein, (Task.EDIT,)),
    "QwenImageModularPipeline": (tiny_qwen_image, (Task.IMG2IMG, Task.INPAINT)),
    "ZImageModularPipeline": (tiny_z_image, (Task.IMG2IMG,)),
}
# FLUX.3 reads eight layers of the text encoder, the last of which is this one.
TEXT_LAYERS, TEXT_SIZE = 32, 8


def flux3_blocks(kind: Any = diffusers.Flux3ModularPipeline) -> Any:
    """Return the blocks of FLUX.3 without the language model that rewrites prompts, as its documentation removes it."""
    blocks = getattr(diffusers, kind.default_blocks_name)()
    blocks.sub_blocks.pop("prompt_upsampler")
    return blocks


def tiny_flux3(folder: Path, *, kind: Any = diffusers.Flux3ModularPipeline) -> Path:
    """FLUX.3 in miniature, as `ModularPipeline.save_pretrained` writes it."""
    torch.manual_seed(0)
    tokens = qwen_tokenizer("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
    text = {
        "vocab_size": len(tokens),
        "hidden_size": TEXT_SIZE,
        "intermediate_size": 8,
        "num_hidden_layers": TEXT_LAYERS,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10_000.0},
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 0,
    }
    vision = {
        "depth": 1,
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_heads": 1,
        "out_hidden_size": TEXT_SIZE,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0],
    }
    transformer = diffusers.Flux3Transformer2DModel(
        in_channels=16,
        cond_in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=8 * TEXT_SIZE,
        timestep_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
        flow_map="Distilled" in kind.__name__,
    )
    pipeline = flux3_blocks(kind).init_pipeline()
    pipeline.update_components(
        text_encoder=Qwen3VLForConditionalGeneration(Qwen3VLConfig(text_config=text, vision_config=vision)),
        tokenizer=ImageOnlyProcessor(Qwen2VLImageProcessorPil(), tokens, chat_template=tokens.chat_template),
        vae=flux2_autoencoder(),
        transformer=amplify(transformer),
    )
    pipeline.save_pretrained(str(folder), overwrite_modular_index=True)
    # The class that transformers can load without torchvision.
    change_index(folder, tokenizer=["transformers", "Qwen2VLProcessor"])
    return folder


def add_prompt_upsampler(folder: Path) -> None:
    """Add the language model that rewrites prompts to a model of FLUX.3."""
    torch.manual_seed(5)
    image, start, end = "<|image_pad|>", "<|vision_start|>", "<|vision_end|>"
    tokens = qwen_tokenizer(start, end, image, "<|video_pad|>")
    tokens.chat_template = (
        "{% for message in messages %}{% for part in message.content %}{% if part.type == 'image' %}"
        + start
        + image
        + end
        + "{% else %}{{ part.text }}{% endif %}{% endfor %}{% endfor %}"
    )
    text = {
        "vocab_size": len(tokens),
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "linear_num_key_heads": 1,
        "linear_num_value_heads": 2,
        "rope_parameters": {
            "rope_type": "default",
            "mrope_section": [2, 1, 1],
            "rope_theta": 10_000.0,
            "partial_rotary_factor": 1.0,
        },
        "bos_token_id": 0,
        "eos_token_id": None,
        "pad_token_id": 0,
    }
    vision = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 1,
        "out_hidden_size": 16,
        "num_position_embeddings": 16,
    }
    upsampler = Qwen3_5ForConditionalGeneration(
        Qwen3_5Config(
            text_config=text,
            vision_config=vision,
            image_token_id=tokens.convert_tokens_to_ids(image),
            video_token_id=tokens.convert_tokens_to_ids("<|video_pad|>"),
            vision_start_token_id=tokens.convert_tokens_to_ids(start),
            vision_end_token_id=tokens.convert_tokens_to_ids(end),
        )
    )
    # Without an end, captions have the largest length.
    upsampler.generation_config.eos_token_id = None
    amplify(upsampler).save_pretrained(folder / "prompt_upsampler")
    images = Qwen2VLImageProcessorPil(patch_size=16, size={"shortest_edge": 32 * 32, "longest_edge": 64 * 64})
    processor = ImageOnlyProcessor(images, tokens, chat_template=tokens.chat_template)
    processor.save_pretrained(folder / "prompt_upsampler_processor")
    change_index(
        folder,
        prompt_upsampler=["transformers", "Qwen3_5ForConditionalGeneration"],
        prompt_upsampler_processor=["transformers", "Qwen2VLProcessor"],
    )


def change_index(folder: Path, **classes: list[str]) -> None:
    """Change (library, class) of components in the index of a modular pipeline."""
    file = folder / "modular_model_index.json"
    index = json.loads(file.read_text())
    for name, value in classes.items():
        known = index[name][2] if name in index else {"pretrained_model_name_or_path": str(folder), "subfolder": name}
        index[name] = [*value, {**known, "type_hint": value}]
    file.write_text(json.dumps(index))


def modular_copy(kind: Any, base: Path, folder: Path) -> Path:
    """Write a model of an ordinary pipeline as one of a modular pipeline.

    Args:
        kind: class of the modular pipeline.
        base: folder of the ordinary one.
    """
    ordinary = diffusers.DiffusionPipeline.from_pretrained(base, **image_only_processor(str(base)))
    pipeline = getattr(diffusers, kind.default_blocks_name)().init_pipeline()
    known = {name: part for name, part in ordinary.components.items() if name in pipeline.components}
    pipeline.update_components(**{name: part for name, part in known.items() if part is not None})
    pipeline.save_pretrained(str(folder), overwrite_modular_index=True)
    return folder


def tiny_anima(folder: Path, *, has_padding_mask: bool = False) -> Path:
    """Anima in miniature. Its latents are 8 x 8 pixels.

    Args:
        has_padding_mask: as the published model, which diffusers then runs with torchvision only.
    """
    torch.manual_seed(0)
    transformer = diffusers.CosmosTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=1,
        text_embed_dim=16,
        adaln_lora_dim=4,
        max_size=(4, 32, 32),
        extra_pos_embed_type=None,
        concat_padding_mask=has_padding_mask,
    )
    conditioner = diffusers.AnimaTextConditioner(
        source_dim=16,
        target_dim=16,
        model_dim=16,
        num_layers=1,
        num_attention_heads=2,
        target_vocab_size=len(t5_tokenizer()),
        min_sequence_length=16,
    )
    pipeline = diffusers.AnimaAutoBlocks().init_pipeline()
    pipeline.update_components(
        text_encoder=Qwen3Model(qwen3_config(2)),
        tokenizer=qwen_tokenizer(),
        t5_tokenizer=t5_tokenizer(),
        text_conditioner=conditioner,
        vae=qwen_autoencoder(halvings=3),
        transformer=amplify(transformer),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    )
    pipeline.save_pretrained(str(folder), overwrite_modular_index=True)
    return folder
