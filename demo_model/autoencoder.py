"""The autoencoder: 128 x 128 x 3 pixels to 32 x 32 x 4 latents and back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from rich.progress import track
from torch import nn

from .dataset import SIZE, Images
from .recipe import LATENT_CHANNELS, Recipe
from .stage import StageTrainer
from .workers import is_first_worker, wait_for_workers, worker_count, worker_rank

CROP = 64
KL_WEIGHT = 1e-4
GRADIENT_WEIGHT = 0.25


def new_autoencoder(widths: tuple[int, ...]) -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        block_out_channels=widths,
        layers_per_block=1,
        norm_num_groups=8,
        latent_channels=LATENT_CHANNELS,
        mid_block_add_attention=False,
        sample_size=SIZE,
    )


def train_autoencoder(
    recipe: Recipe, rendered: Images, crude: Images, work_dir: Path, device: torch.device
) -> AutoencoderKL:
    """Train from scratch or from the checkpoint for the time of the recipe. Returns the model with averaged weights."""
    torch.manual_seed(1)
    vae = new_autoencoder(recipe.autoencoder_widths).to(device)
    checkpoint = work_dir / "autoencoder.pt"
    trainer = StageTrainer("autoencoder", vae, recipe.autoencoder, checkpoint, recipe.checkpoint_every_min)
    rng = np.random.default_rng([2, trainer.steps, worker_rank()])
    torch.manual_seed(1000 * trainer.steps + worker_rank())
    with trainer.bar() as bar:
        while trainer.progress < 1.0:
            pixels = as_pixels(_next_images(recipe, trainer, rendered, crude, rng), device)
            with torch.autocast(device.type, dtype=torch.bfloat16):
                posterior = vae.encode(pixels).latent_dist
                restored = vae.decode(posterior.sample()).sample
            kl = posterior.kl().mean() / posterior.mean[0].numel()
            trainer.step(_image_loss(pixels, restored.float()) + KL_WEIGHT * kl, bar)
    if is_first_worker():
        trainer.save()
    trainer.use_averaged_weights()
    return vae.eval()


def polish_decoder(
    recipe: Recipe, vae: AutoencoderKL, rendered: Images, crude: Images, work_dir: Path, device: torch.device
) -> None:
    """Train the decoder alone. Latents do not change, so the denoiser stays valid."""
    decoder = nn.ModuleList([vae.post_quant_conv, vae.decoder])
    checkpoint = work_dir / "decoder.pt"
    trainer = StageTrainer("decoder", decoder, recipe.polish, checkpoint, recipe.checkpoint_every_min)
    rng = np.random.default_rng([3, trainer.steps, worker_rank()])
    with trainer.bar() as bar:
        while trainer.progress < 1.0:
            pixels = as_pixels(_next_images(recipe, trainer, rendered, crude, rng), device)
            with torch.autocast(device.type, dtype=torch.bfloat16):
                with torch.no_grad():
                    latents = vae.encode(pixels).latent_dist.mode()
                restored = vae.decode(latents).sample
            trainer.step(_image_loss(pixels, restored.float()), bar)
    if is_first_worker():
        trainer.save()
    trainer.use_averaged_weights()


@torch.no_grad()
def encode_all(vae: AutoencoderKL, images: Images, work_dir: Path, device: torch.device) -> torch.Tensor:
    """Return standardised latents of all images, half precision, (n, 4, 32, 32).

    The standardisation is folded into the autoencoder, so that it produces the same latents afterwards.
    """
    shares = [work_dir / f"latents-{rank + 1}-of-{worker_count()}.pt" for rank in range(worker_count())]
    share = shares[worker_rank()]
    if not share.exists():
        batches = [
            _encode(vae, images[start : start + 50], device)
            for start in track(
                range(50 * worker_rank(), len(images), 50 * worker_count()), "encoding", disable=not is_first_worker()
            )
        ]
        torch.save(torch.stack(batches), share)
    wait_for_workers()
    # Each worker encoded every n-th batch; restore the order of the images.
    latents = torch.stack([torch.load(path, weights_only=True) for path in shares], dim=1).flatten(0, 2)
    sample = latents[:4000].float()
    mean, deviation = sample.mean(dim=(0, 2, 3)), sample.std(dim=(0, 2, 3))
    _standardise(vae, mean.to(device), deviation.to(device))
    return ((latents - mean.half()[:, None, None]) / deviation.half()[:, None, None]).contiguous()


def _encode(vae: AutoencoderKL, images: Images, device: torch.device) -> torch.Tensor:
    with torch.autocast(device.type, dtype=torch.bfloat16):
        latents: torch.Tensor = vae.encode(as_pixels(images, device)).latent_dist.mode()
    return latents.half().cpu()


def _standardise(vae: AutoencoderKL, mean: torch.Tensor, deviation: torch.Tensor) -> None:
    """Fold `(latents - mean) / deviation` into the 1 x 1 convolutions before and after the latents.

    Diffusion works best with channels of mean 0 and deviation 1; a pipeline has one factor for all channels.
    """
    encoder_conv, decoder_conv = vae.quant_conv, vae.post_quant_conv
    means, log_variances = slice(0, LATENT_CHANNELS), slice(LATENT_CHANNELS, None)
    encoder_conv.weight[means] /= deviation[:, None, None, None]
    encoder_conv.bias[means] = (encoder_conv.bias[means] - mean) / deviation
    encoder_conv.bias[log_variances] -= 2 * deviation.log()
    decoder_conv.bias += decoder_conv.weight[:, :, 0, 0] @ mean
    decoder_conv.weight *= deviation[None, :, None, None]
    vae.register_to_config(scaling_factor=1.0)


def as_pixels(images: Images, device: torch.device) -> torch.Tensor:
    """Convert (n, height, width, 3) bytes to (n, 3, height, width) in [-1, 1]."""
    pixels = torch.from_numpy(np.ascontiguousarray(images)).to(device)
    return pixels.permute(0, 3, 1, 2).float().div(127.5).sub(1.0).contiguous()


def _next_images(
    recipe: Recipe, trainer: StageTrainer, rendered: Images, crude: Images, rng: np.random.Generator
) -> Images:
    """Return this worker's next batch: crops at first, later a quarter as many whole images."""
    if trainer.progress < recipe.crop_share:
        return _pick(rendered, crude, trainer.worker_batch, CROP, rng)
    return _pick(rendered, crude, max(trainer.worker_batch // 4, 1), SIZE, rng)


def _pick(rendered: Images, crude: Images, count: int, side: int, rng: np.random.Generator) -> Images:
    """Return random images, one in ten of them crude, cropped to side x side at a multiple of 4 pixels (one latent)."""
    picked = np.empty((count, side, side, 3), np.uint8)
    for index in range(count):
        source = crude if rng.random() < 0.1 else rendered
        top, left = rng.integers(0, (SIZE - side) // 4 + 1, 2) * 4
        picked[index] = source[rng.integers(len(source)), top : top + side, left : left + side]
    return picked


def _image_loss(pixels: torch.Tensor, restored: torch.Tensor) -> torch.Tensor:
    """L1 and L2 loss of the colours, and L1 loss of the gradients."""
    error = restored - pixels
    across, down = error.diff(dim=3).abs().mean(), error.diff(dim=2).abs().mean()
    return error.abs().mean() + error.square().mean() + GRADIENT_WEIGHT * (across + down)
