"""Tiny random LoRAs and IP-Adapters for tiny models, in the formats of published ones."""

from pathlib import Path

import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import IPAdapterAttnProcessor
from diffusers.models.embeddings import ImageProjection
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
TARGETS = {"unet": ATTENTION, "transformer": ATTENTION, "text_encoder": ["q_proj", "k_proj", "v_proj", "out_proj"]}
KOHYA = {"unet": "lora_unet", "text_encoder": "lora_te", "text_encoder_2": "lora_te2"}
ALPHA = 2.0


def tiny_lora(model: Path, file: Path, *, seed: int, rank: int = 4, text: bool = True, kohya: bool = False) -> Path:
    """Save a LoRA whose two matrices are both random, so that it changes the output of the model.

    Args:
        text: include weights for the text encoders.
        kohya: use the keys of kohya's scripts, with an alpha.
    """
    pipeline = DiffusionPipeline.from_pretrained(model)
    torch.manual_seed(seed)
    layers = {}
    for name in pipeline._lora_loadable_modules:
        module = getattr(pipeline, name, None)
        if module is None or (name.startswith("text") and not text):
            continue
        targets = TARGETS[name.removesuffix("_2")]
        module.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=targets, init_lora_weights=False))
        layers[name] = get_peft_model_state_dict(module, adapter_name="default")
    file.parent.mkdir(parents=True, exist_ok=True)
    if kohya:
        te1 = "lora_te1" if "text_encoder_2" in layers else "lora_te"
        prefixes = {**KOHYA, "text_encoder": te1}
        save_file({k: v for name, part in layers.items() for k, v in _kohya(part, prefixes[name]).items()}, file)
    else:
        pipeline.save_lora_weights(
            file.parent,
            weight_name=file.name,
            **{f"{name}_lora_layers": {k: v.contiguous() for k, v in part.items()} for name, part in layers.items()},
        )
    return file


def _kohya(layers: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    renamed = {}
    for key, tensor in layers.items():
        module, _, half = key.removesuffix(".weight").rpartition(".")
        if prefix.startswith("lora_te") and not module.startswith("text_model."):
            # The only form that the scripts write.
            module = f"text_model.{module}"
        name = f"{prefix}_{module.replace('.', '_')}"
        renamed[f"{name}.{'lora_down' if half == 'lora_A' else 'lora_up'}.weight"] = tensor.contiguous()
        renamed[f"{name}.alpha"] = torch.tensor(ALPHA)
    return renamed


def tiny_ip_adapter(model: Path, folder: Path, *, seed: int = 0) -> Path:
    """Save a plain IP-Adapter (`ip-adapter.safetensors`) with its image encoder in the same folder."""
    unet = UNet2DConditionModel.from_pretrained(model, subfolder="unet")
    torch.manual_seed(seed)
    across = unet.config.cross_attention_dim
    weights = {}
    # Keys have the index of the attention processor; self-attention is even, cross-attention is odd.
    cross = [name for name in unet.attn_processors if not name.endswith("attn1.processor")]
    for index, name in enumerate(cross):
        processor = IPAdapterAttnProcessor(_channels(unet, name), across).state_dict()
        for part in ("to_k_ip", "to_v_ip"):
            weights[f"ip_adapter.{2 * index + 1}.{part}.weight"] = 3 * processor[f"{part}.0.weight"]
    projection = ImageProjection(image_embed_dim=32, cross_attention_dim=across, num_image_text_embeds=4).state_dict()
    for key, tensor in projection.items():
        weights[f"image_proj.{key.replace('image_embeds', 'proj')}"] = tensor
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "ip-adapter.safetensors")
    config = CLIPVisionConfig(
        hidden_size=32,
        projection_dim=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=32,
        intermediate_size=37,
        patch_size=8,
    )
    CLIPVisionModelWithProjection(config).save_pretrained(folder / "image_encoder")
    return folder


def _channels(unet: UNet2DConditionModel, processor: str) -> int:
    channels = unet.config.block_out_channels
    kind, block = processor.split(".")[:2]
    if kind == "mid_block":
        return int(channels[-1])
    return int((channels[::-1] if kind == "up_blocks" else channels)[int(block)])
