"""What looks at a picture and draws its depth or its segmentation map, so that the service makes these maps itself."""

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
from ..dataset import rendered_pictures
from ..stage import StageTrainer
from ..workers import is_first_worker, worker_rank
from . import maps
from .base import Base, save_half
from .recipe import CompanionRecipe

FARTHEST = 10
"""Distance at infinity; a thing of nearness n is 1 / (n + 1 / FARTHEST) away."""
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def _encoder() -> dict[str, Any]:
    """The one that both kinds have, as small as it goes."""
    return {"hidden_sizes": [24, 48, 96, 128], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 4, 8]}


def new_segmenter() -> SegformerForSemanticSegmentation:
    """Its labels are ADE20K's, for that is what segmentation ControlNets read."""
    return SegformerForSemanticSegmentation(
        SegformerConfig(**_encoder(), decoder_hidden_size=64, num_labels=len(PALETTE))
    )


def new_depth_estimator() -> GLPNForDepthEstimation:
    return GLPNForDepthEstimation(GLPNConfig(**_encoder(), decoder_hidden_size=16, max_depth=FARTHEST))


def train_annotator(name: str, recipe: CompanionRecipe, base: Base, work_dir: Path, out: Path) -> None:
    """`name` is that of its folder: `segmenter` or `depth_estimator`."""
    torch.manual_seed(13)
    new, as_seen, loss_of = _KINDS[name]
    pictures = rendered_pictures(work_dir, recipe.pictures)
    painted = maps.painted_maps(work_dir, recipe.pictures)
    device = base.device
    model = new().to(device).train()
    trainer = StageTrainer(name, model, recipe.stages[name], work_dir / f"{name}.pt", recipe.checkpoint_every_min)
    torch.manual_seed(1000 * trainer.steps + worker_rank())
    with trainer.bar() as bar:
        while trainer.progress < 1.0:
            seeds = torch.randint(len(pictures), (trainer.worker_batch,)).sort().values.numpy()
            right = torch.from_numpy(painted[seeds]).to(device)
            pixels = as_seen(as_pixels(pictures[seeds], device))
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


def as_segformer_sees(pixels: torch.Tensor) -> torch.Tensor:
    mean, deviation = (
        torch.tensor(each).view(3, 1, 1).to(pixels) for each in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    )
    return (pixels / 2 + 0.5 - mean) / deviation


def as_glpn_sees(pixels: torch.Tensor) -> torch.Tensor:
    """0 to 1: its image processor scales and does not normalise."""
    return pixels / 2 + 0.5


_LABELS = torch.tensor(maps.ADE20K_LABELS)


def _segmentation_loss(logits: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """At the (n, 32, 32) cells that the model puts out, each by the pixel in its middle."""
    return F.cross_entropy(logits, _LABELS.to(right.device)[right[:, 2::4, 2::4, 0].long()])


def _depth_loss(distance: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Of the inverse distances, which is what a depth map shows."""
    return (1 / distance.clamp(min=1e-3) - (right[..., 1].float() / 255 + 1 / FARTHEST)).abs().mean()


_KINDS: dict[str, tuple[Callable[[], PreTrainedModel], Callable[[torch.Tensor], torch.Tensor], Loss]] = {
    "segmenter": (new_segmenter, as_segformer_sees, _segmentation_loss),
    "depth_estimator": (new_depth_estimator, as_glpn_sees, _depth_loss),
}
