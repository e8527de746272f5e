"""Image prompts: a small image encoder for styles, times of day and seasons, and an IP-Adapter."""

from __future__ import annotations

import random
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from rich.progress import track
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from ..autoencoder import as_pixels
from ..captions import subject
from ..dataset import SIZE, Images, rendered_images, sample
from ..diffusion import offset_noise
from ..judge import HEADS, word_indices
from ..recipe import TEXT_WIDTH
from ..stage import StageTrainer
from ..workers import is_first_worker, worker_rank
from .base import Base, encoded, save_half, timesteps_for
from .recipe import CompanionRecipe

TOKENS = 4
"""Image tokens, in addition to the 77 text tokens."""
EMBEDDING = 128
IMAGE_DROPOUT = 0.1
LEAN = 0.6
ENCODER_FOLDER, ADAPTER_FILE = "image_encoder", "ip_adapter.safetensors"


def new_image_encoder() -> CLIPVisionModelWithProjection:
    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=EMBEDDING,
            intermediate_size=4 * EMBEDDING,
            projection_dim=EMBEDDING,
            num_hidden_layers=4,
            num_attention_heads=4,
            image_size=SIZE,
            patch_size=16,
        )
    )


class EncoderWithHeads(nn.Module):
    """The image encoder with one classification head per property, for training."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = new_image_encoder()
        self.heads = nn.ModuleDict({name: nn.Linear(EMBEDDING, len(words)) for name, words in HEADS.items()})


def train_image_prompts(recipe: CompanionRecipe, base: Base, work_dir: Path, out: Path) -> None:
    """Train the encoder to classify images, then the adapter on its frozen embeddings."""
    images = rendered_images(work_dir, recipe.images)
    encoder = _train_encoder(recipe, base, images, work_dir)
    embeddings = _embedded(encoder, images, base.device)
    save_half(encoder, out / "image_prompt" / ENCODER_FOLDER)
    latents = encoded(base, images, work_dir / f"companion-latents-{recipe.images}.pt")
    _train_adapter(recipe, base, latents, embeddings, work_dir, out / "image_prompt" / ADAPTER_FILE)


def _train_encoder(
    recipe: CompanionRecipe, base: Base, images: Images, work_dir: Path
) -> CLIPVisionModelWithProjection:
    torch.manual_seed(11)
    trained = EncoderWithHeads().to(base.device).train()
    stage, checkpoint = recipe.stages["image_encoder"], work_dir / "image_encoder.pt"
    trainer = StageTrainer("image_encoder", trained, stage, checkpoint, recipe.checkpoint_every_min)
    torch.manual_seed(1000 * trainer.steps + worker_rank())
    with trainer.bar() as bar:
        while trainer.progress < 1.0:
            seeds = torch.randint(len(images), (trainer.worker_batch,)).sort().values
            right = torch.tensor([word_indices(sample(seed)) for seed in seeds.tolist()], device=base.device)
            pixels = clip_pixels(as_pixels(images[seeds.numpy()], base.device))
            with torch.autocast(base.device.type, dtype=torch.bfloat16):
                seen = trained.encoder(pixels).image_embeds
                loss = sum(F.cross_entropy(trained.heads[name](seen), right[:, i]) for i, name in enumerate(HEADS))
            assert isinstance(loss, torch.Tensor)
            trainer.step(loss.float(), bar)
    if is_first_worker():
        trainer.save()
    trainer.use_averaged_weights()
    return trained.encoder.eval()


def clip_pixels(pixels: torch.Tensor) -> torch.Tensor:
    """Convert from [-1, 1] to the scale of CLIP's image processor, which the service uses."""
    mean, deviation = (torch.tensor(each).view(3, 1, 1).to(pixels) for each in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    return (pixels / 2 + 0.5 - mean) / deviation


@torch.inference_mode()
def _embedded(encoder: CLIPVisionModelWithProjection, images: Images, device: torch.device) -> torch.Tensor:
    """Embed images; returns (n, 128)."""
    return torch.cat(
        [
            encoder(clip_pixels(as_pixels(images[start : start + 50], device))).image_embeds.cpu()
            for start in track(range(0, len(images), 50), "embedding images", disable=not is_first_worker())
        ]
    )


def _train_adapter(
    recipe: CompanionRecipe, base: Base, latents: torch.Tensor, embeddings: torch.Tensor, work_dir: Path, file: Path
) -> None:
    torch.manual_seed(12)
    unet, adapter = _adapted(base)
    stage, checkpoint = recipe.stages["image_prompt"], work_dir / "image_prompt.pt"
    trainer = StageTrainer("image_prompt", adapter, stage, checkpoint, recipe.checkpoint_every_min)
    torch.manual_seed(1000 * trainer.steps + worker_rank())
    rng = random.Random(f"image prompts {trainer.steps} {worker_rank()}")
    with trainer.bar() as bar:
        while trainer.progress < 1.0:
            seeds = torch.randint(len(latents), (trainer.worker_batch,)).tolist()
            clean = latents[seeds].to(base.device, torch.float32)
            shown = embeddings[seeds].to(base.device)
            shown = shown * (torch.rand(len(seeds), 1, device=base.device) >= IMAGE_DROPOUT)
            noise = offset_noise(clean)
            timesteps = timesteps_for(len(seeds), LEAN).to(base.device)
            noisy = base.schedule.add_noise(clean, noise, timesteps)
            words = base.words([_few_words(seed, rng) for seed in seeds])
            with torch.autocast(base.device.type, dtype=torch.bfloat16):
                velocity = unet(noisy, timesteps, words, added_cond_kwargs={"image_embeds": [shown[:, None]]}).sample
            target = base.schedule.get_velocity(clean, noise, timesteps)
            trainer.step((velocity.float() - target).square().mean(), bar)
    if is_first_worker():
        trainer.save()
    trainer.use_averaged_weights()
    if is_first_worker():
        save_file(_exported(unet), file)


def _few_words(seed: int, rng: random.Random) -> str:
    """Return a caption of the objects, seldom of the style: that is for the image prompt."""
    drawn = sample(seed)
    return rng.choice((lambda: "", lambda: subject(drawn.scene, rng), lambda: drawn.caption(rng)))()


def _adapted(base: Base) -> tuple[UNet2DConditionModel, nn.Module]:
    """Return the frozen UNet with a new IP-Adapter, and the trainable layers of the adapter."""
    unet = base.unet
    blank: dict[str, dict[str, torch.Tensor]] = {
        "image_proj": {
            "proj.weight": 0.05 * torch.randn(TOKENS * TEXT_WIDTH, EMBEDDING),
            "proj.bias": torch.zeros(TOKENS * TEXT_WIDTH),
            "norm.weight": torch.ones(TEXT_WIDTH),
            "norm.bias": torch.zeros(TEXT_WIDTH),
        },
        "ip_adapter": {},
    }
    for key, attention in zip(_keys(unet), _cross_attentions(unet), strict=True):
        # Start from the projections of the text tokens, which the UNet already uses.
        blank["ip_adapter"][f"{key}.to_k_ip.weight"] = attention.to_k.weight.detach().clone()
        blank["ip_adapter"][f"{key}.to_v_ip.weight"] = attention.to_v.weight.detach().clone()
    unet._load_ip_adapter_weights([blank])
    processors = [attention.processor for attention in _cross_attentions(unet)]
    adapter = nn.ModuleList([unet.encoder_hid_proj, *processors])
    return unet, adapter.requires_grad_(True).to(base.device).train()


def _exported(unet: UNet2DConditionModel) -> dict[str, torch.Tensor]:
    """Return the weights of the adapter under the names of published adapters."""
    projection = unet.encoder_hid_proj.image_projection_layers[0]
    weights = {
        "image_proj.proj.weight": projection.image_embeds.weight,
        "image_proj.proj.bias": projection.image_embeds.bias,
        "image_proj.norm.weight": projection.norm.weight,
        "image_proj.norm.bias": projection.norm.bias,
    }
    for key, attention in zip(_keys(unet), _cross_attentions(unet), strict=True):
        weights[f"ip_adapter.{key}.to_k_ip.weight"] = attention.processor.to_k_ip[0].weight
        weights[f"ip_adapter.{key}.to_v_ip.weight"] = attention.processor.to_v_ip[0].weight
    return {name: weight.detach().half().cpu().contiguous() for name, weight in weights.items()}


def _cross_attentions(unet: UNet2DConditionModel) -> list[nn.Module]:
    """Return cross-attention layers in the order in which IP-Adapter files number them."""
    names = [name.removesuffix(".processor") for name in unet.attn_processors if "attn2" in name]
    return [unet.get_submodule(name) for name in names]


def _keys(unet: UNet2DConditionModel) -> range:
    return range(1, 2 * len(_cross_attentions(unet)), 2)
