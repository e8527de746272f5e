"""Models that estimate depth and segmentation maps of images, so that the service can make these maps itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from transformers import (
    GLPNConfig,
    GLPNForDepthEstimation,
    GLPNImageProcessor,
    PreTrainedModel,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SegformerImageProcessor,
)
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from img2img.worker.pipelines.conditioning.ade20k import PALETTE

from ..autoencoder import as_pixels
from ..dataset import rendered_images
from ..stage import StageTrainer
from ..workers import is_first_worker, worker_rank
from . import maps
from .base import Base, save_half
from .recipe import CompanionRecipe

FARTHEST = 10
"""Maximum distance. An object of nearness n is at distance 1 / (n + 1 / FARTHEST)."""
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def _encoder() -> dict[str, Any]:
    """Return the smallest encoder configuration, shared by both models."""
    return {"hidden_sizes": [24, 48, 96, 128], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 4, 8]}


def new_segmenter() -> SegformerForSemanticSegmentation:
    """Labels are those of ADE20K, which segmentation ControlNets are trained with."""
    names = {number: f"LABEL_{number}" for number in range(len(PALETTE))}
    names |= dict(zip(maps.ADE20K_LABELS, maps.CLASS_WORDS, strict=True))
    return SegformerForSemanticSegmentation(
        SegformerConfig(**_encoder(), decoder_hidden_size=64, id2label=names, label2id={v: k for k, v in names.items()})
    )


def new_depth_estimator() -> GLPNForDepthEstimation:
    return GLPNForDepthEstimation(GLPNConfig(**_encoder(), decoder_hidden_size=16, max_depth=FARTHEST))


def train_annotator(name: str, recipe: CompanionRecipe, base: Base, work_dir: Path, out: Path) -> None:
    """Train one model; `name` is its folder: `segmenter` or `depth_estimator`."""
    torch.manual_seed(13)
    new, as_seen, loss_of = _KINDS[name]
    images = rendered_images(work_dir, recipe.images)
    painted = maps.painted_maps(work_dir, recipe.images)
    device = base.device
    model = new().to(device).train()
    trainer = StageTrainer(name, model, recipe.stages[name], work_dir / f"{name}.pt", recipe.checkpoint_every_min)
    torch.manual_seed(1000 * trainer.steps + worker_rank())
    with trainer.bar() as bar:
        while trainer.progress < 1.0:
            seeds = torch.randint(len(images), (trainer.worker_batch,)).sort().values.numpy()
            right = torch.from_numpy(painted[seeds]).to(device)
            pixels = as_seen(as_pixels(images[seeds], device))
            with torch.autocast(device.type, dtype=torch.bfloat16):
                output = model(pixels)
                answer = output.logits if name == "segmenter" else output.predicted_depth
            trainer.step(loss_of(answer.float(), right), bar)
    if is_first_worker():
        trainer.save()
    trainer.use_averaged_weights()
    save_half(model, out / name)
    if is_first_worker():
        _processor(model).save_pretrained(out / name)


def _processor(model: PreTrainedModel) -> SegformerImageProcessor | GLPNImageProcessor:
    if isinstance(model, SegformerForSemanticSegmentation):
        return SegformerImageProcessor(size={"height": 128, "width": 128})
    return GLPNImageProcessor(size_divisor=32)


def segformer_pixels(pixels: torch.Tensor) -> torch.Tensor:
    mean, deviation = (
        torch.tensor(each).view(3, 1, 1).to(pixels) for each in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    )
    return (pixels / 2 + 0.5 - mean) / deviation


def glpn_pixels(pixels: torch.Tensor) -> torch.Tensor:
    """Convert to [0, 1]: the image processor of GLPN scales and does not normalise."""
    return pixels / 2 + 0.5


_LABELS = torch.tensor(maps.ADE20K_LABELS)


def _segmentation_loss(logits: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Cross entropy at the (n, 32, 32) cells of the output; the target of a cell is its centre pixel."""
    return F.cross_entropy(logits, _LABELS.to(right.device)[right[:, 2::4, 2::4, 0].long()])


def _depth_loss(distance: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Loss of the inverse distances, which a depth map shows."""
    return (1 / distance.clamp(min=1e-3) - (right[..., 1].float() / 255 + 1 / FARTHEST)).abs().mean()


_KINDS: dict[str, tuple[Callable[[], PreTrainedModel], Callable[[torch.Tensor], torch.Tensor], Loss]] = {
    "segmenter": (new_segmenter, segformer_pixels, _segmentation_loss),
    "depth_estimator": (new_depth_estimator, glpn_pixels, _depth_loss),
}
