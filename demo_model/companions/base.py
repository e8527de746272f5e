"""The frozen demo model for training companions, with its velocity targets."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from rich.progress import track
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from ..autoencoder import as_pixels
from ..dataset import Images, sample
from ..diffusion import noise_schedule
from ..recipe import TEXT_LENGTH, TRAIN_TIMESTEPS
from ..workers import is_first_worker, wait_for_workers

ENCODE_BATCH = 50


@dataclass(frozen=True)
class Base:
    """The components of the demo model, all frozen."""

    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    vae: AutoencoderKL
    unet: UNet2DConditionModel
    schedule: DDPMScheduler
    device: torch.device

    @torch.no_grad()
    def words(self, captions: Sequence[str]) -> torch.Tensor:
        """Encode captions to (n, 77, 128) text embeddings."""
        tokens = self.tokenizer(
            list(captions), padding="max_length", max_length=TEXT_LENGTH, truncation=True, return_tensors="pt"
        ).input_ids.to(self.device)
        return self.text_encoder(tokens).last_hidden_state  # type: ignore[no-any-return]

    @torch.no_grad()
    def encode(self, images: Images) -> torch.Tensor:
        """Encode (n, height, width, 3) bytes to (n, 4, height / 4, width / 4) latents."""
        return self.encode_pixels(as_pixels(images, self.device))

    @torch.no_grad()
    def encode_pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        """The same for (n, 3, height, width) in [-1, 1]."""
        with torch.autocast(self.device.type, dtype=torch.bfloat16):
            return self.vae.encode(pixels).latent_dist.mode().float()  # type: ignore[no-any-return]


def load_base(weights: Path, device: torch.device) -> Base:
    pipeline = StableDiffusionPipeline.from_pretrained(weights, torch_dtype=torch.float32)
    for module in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        module.requires_grad_(False).eval().to(device)
    return Base(
        pipeline.tokenizer, pipeline.text_encoder, pipeline.vae, with_plain_attention(pipeline.unet),
        noise_schedule(), device,
    )  # fmt: skip


def with_plain_attention(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """Use plain attention, which trains 20 % faster than the fused one on a CPU at these sizes."""
    unet.set_attn_processor(AttnProcessor())
    return unet


def encoded(base: Base, images: Images, path: Path, batch: int = ENCODE_BATCH) -> torch.Tensor:
    """Return half-precision latents (n, 4, ...) of all images, cached in a file."""
    if not path.exists() and is_first_worker():
        starts = range(0, len(images), batch)
        batches = [
            base.encode(images[start : start + batch]).half().cpu() for start in track(starts, f"encoding {path.stem}")
        ]
        torch.save(torch.cat(batches), path.with_suffix(".part"))
        path.with_suffix(".part").rename(path)
    wait_for_workers()
    return torch.load(path, weights_only=True)  # type: ignore[no-any-return]


def captions_of(seeds: Sequence[int], dropout: float, rng: random.Random) -> list[str]:
    """Return random captions of training images, some of them empty."""
    return ["" if rng.random() < dropout else sample(seed).caption(rng) for seed in seeds]


def timesteps_for(count: int, lean: float = 1.0) -> torch.Tensor:
    """Return one timestep from each of `count` equal intervals; `lean` below 1 prefers noisy timesteps."""
    shares = (torch.arange(count) + torch.rand(count)) / count
    return (TRAIN_TIMESTEPS * shares**lean).long().clamp(max=TRAIN_TIMESTEPS - 1)


def widened(unet: UNet2DConditionModel, in_channels: int) -> UNet2DConditionModel:
    """Return a copy of the UNet with more input channels, which have no effect at first, without the middle block.

    The middle block, a fifth of the weights, works on 4 x 4 latents; the image in the extra channels replaces it.
    """
    config = {**unet.config, "in_channels": in_channels, "mid_block_type": None}
    wide = UNet2DConditionModel.from_config(config)
    own = wide.state_dict()
    weights = {name: value for name, value in unet.state_dict().items() if name in own}
    first = torch.zeros_like(own["conv_in.weight"])
    first[:, : unet.config.in_channels] = weights["conv_in.weight"]
    wide.load_state_dict({**weights, "conv_in.weight": first})
    return with_plain_attention(wide)


def save_half(module: nn.Module, folder: Path) -> None:
    """Save in half precision as safetensors, in the format of diffusers or transformers."""
    if is_first_worker():
        module.to(device="cpu", dtype=torch.float16).save_pretrained(folder, safe_serialization=True)  # type: ignore[operator]
        config = json.loads((folder / "config.json").read_text())
        config.pop("_name_or_path", None)  # a local path
        (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    wait_for_workers()
