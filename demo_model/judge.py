"""A small network that classifies images, for the evaluation of the demo model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from rich.progress import track
from torch import nn

from .autoencoder import as_pixels
from .canvas import CLASSES
from .dataset import Images, Sample, sample
from .painting import paint
from .scenes import HOUSE_COLOURS, SEASONS, STYLES, TIMES

MAP_SIZE = 32
"""Side of the segmentation maps of the judge: one cell per 4 x 4 pixels."""
HEADS: dict[str, tuple[str, ...]] = {
    "style": STYLES,
    "time": TIMES,
    "season": SEASONS,
    "house": (*HOUSE_COLOURS, "none"),
}
TRAIN_IMAGES, EPOCHS, BATCH = 8_000, 4, 64
CPU_DEVICE = torch.device("cpu")


@dataclass(frozen=True)
class Verdict:
    """Predictions for n images: a word per image and head, and a class per map cell (n, 32, 32)."""

    words: dict[str, list[str]]
    segmentation: torch.Tensor


class Judge(nn.Module):
    """Four downsampling levels to 8 x 8; heads pool by mean and maximum, the map is upsampled again."""

    def __init__(self) -> None:
        super().__init__()
        self.to_64 = _halving(3, 24)
        self.to_32 = _halving(24, 48)
        self.to_16 = _halving(48, 96)
        self.to_8 = _halving(96, 128)
        self.heads = nn.ModuleDict({name: nn.Linear(2 * (48 + 128), len(words)) for name, words in HEADS.items()})
        self.map = nn.Sequential(
            nn.Conv2d(48 + 96 + 128, 48, 1),
            nn.ReLU(),
            nn.Conv2d(48, 48, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(48, len(CLASSES), 1),
        )

    def forward(self, pixels: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Return logits: one (n, words) per head, and (n, classes, 32, 32)."""
        at_32 = self.to_32(self.to_64(pixels))
        at_16 = self.to_16(at_32)
        at_8 = self.to_8(at_16)
        summary = torch.cat([*_mean_and_maximum(at_32), *_mean_and_maximum(at_8)], dim=1)
        wide = [at_32, *(F.interpolate(level, size=MAP_SIZE, mode="bilinear") for level in (at_16, at_8))]
        return {name: head(summary) for name, head in self.heads.items()}, self.map(torch.cat(wide, dim=1))

    @torch.inference_mode()
    def look_at(self, images: Images) -> Verdict:
        logits, maps = self(as_pixels(images, CPU_DEVICE))
        words = {name: [HEADS[name][index] for index in logits[name].argmax(1).tolist()] for name in HEADS}
        return Verdict(words, maps.argmax(1))


def trained_judge(work_dir: Path, images: Images) -> Judge:
    """Return the judge, trained on the first training images if necessary (minutes on a CPU)."""
    judge, path = Judge(), work_dir / "judge.pt"
    if path.exists():
        judge.load_state_dict(torch.load(path, weights_only=True))
        return judge.eval()
    torch.manual_seed(5)
    seeds = range(min(TRAIN_IMAGES, len(images)))
    words = torch.tensor([word_indices(sample(seed)) for seed in seeds])
    maps = torch.stack([scene_map(sample(seed)) for seed in track(seeds, "drawing the judge's maps")])
    steps = EPOCHS * (len(seeds) // BATCH)
    optimizer = torch.optim.AdamW(judge.parameters(), weight_decay=0.02)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=steps)
    for _ in track(range(steps), "training the judge"):
        picked = torch.randint(len(seeds), (BATCH,))
        pixels = _blemished(as_pixels(images[np.sort(picked.numpy())], CPU_DEVICE))
        picked = picked.sort().values
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits, map_logits = judge(pixels)
        loss = F.cross_entropy(map_logits.float(), maps[picked])
        for column, name in enumerate(HEADS):
            loss = loss + F.cross_entropy(logits[name].float(), words[picked, column])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        rates.step()
    work_dir.mkdir(parents=True, exist_ok=True)
    torch.save(judge.state_dict(), path)
    return judge.eval()


def word_indices(drawn: Sample) -> list[int]:
    """Return the labels of a sample, one index per head."""
    house = drawn.scene.house.colour if drawn.scene.house else "none"
    labels = {"style": drawn.style, "time": drawn.scene.time, "season": drawn.scene.season, "house": house}
    return [HEADS[name].index(labels[name]) for name in HEADS]


def scene_map(drawn: Sample) -> torch.Tensor:
    """Return the exact class of each map cell, (32, 32)."""
    return torch.from_numpy(paint(drawn.scene, MAP_SIZE).segmentation().astype(np.int64))


def _blemished(pixels: torch.Tensor) -> torch.Tensor:
    """Augment with blur and noise: generated images are softer and noisier than rendered ones."""
    blurred = F.avg_pool2d(F.pad(pixels, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    softness = torch.rand(len(pixels), 1, 1, 1) * 0.8
    noise = torch.randn_like(pixels) * torch.rand(len(pixels), 1, 1, 1) * 0.1
    return pixels * (1 - softness) + blurred * softness + noise


def _halving(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 4, stride=2, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


def _mean_and_maximum(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return features.mean(dim=(2, 3)), features.amax(dim=(2, 3))
