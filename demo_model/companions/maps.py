"""Control maps of the scenes: lines by the service's own annotators, depth and segmentation as they were painted."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from img2img.domain.conditioning import ControlType
from img2img.worker.images.control_maps import PREPROCESSORS
from img2img.worker.pipelines.conditioning.ade20k import PALETTE

from ..canvas import CLASSES
from ..dataset import SIZE, Pictures, cached, sample
from ..painting import paint
from ..scenes import Scene

Bytes = npt.NDArray[np.uint8]

LINES = (ControlType.CANNY, ControlType.SCRIBBLE, ControlType.LINEART, ControlType.SOFTEDGE)
LINE_SHARES = (35, 35, 15, 15)
_ADE20K = {
    "sky": 2, "cloud": 131, "sun": 82, "mountain": 16, "hill": 68, "ground": 9,
    "water": 21, "road": 6, "tree": 4, "house": 25,
}  # fmt: skip
ADE20K_LABELS = [_ADE20K[name] for name in CLASSES]
"""ADE20K's class for each of the scenes'; it knows no clouds and no sun, which get those of other things."""
CLASS_COLOURS: Bytes = PALETTE[ADE20K_LABELS]
"""(classes, 3)."""


def lines(picture: Bytes, kind: ControlType) -> Bytes:
    """(128, 128, 3): the line map that the service makes of this picture."""
    return np.asarray(PREPROCESSORS[kind](Image.fromarray(picture)))


def some_lines(picture: Bytes, rng: random.Random) -> Bytes:
    return lines(picture, rng.choices(LINES, LINE_SHARES)[0])


def depth(scene: Scene) -> Bytes:
    """(128, 128, 3): near is bright, far is dark, stretched over all greys as the service stretches its maps."""
    return depth_picture(paint(scene, SIZE).nearness(scene.horizon))


def depth_picture(nearness: npt.NDArray[np.float32]) -> Bytes:
    spread = max(float(np.ptp(nearness)), 1e-6)
    grey = np.round((nearness - nearness.min()) / spread * 255).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


def segmentation(scene: Scene) -> Bytes:
    """(128, 128, 3): each class in its colour."""
    return CLASS_COLOURS[paint(scene, SIZE).segmentation()]


def painted_maps(work_dir: Path, count: int) -> Pictures:
    """(count, 128, 128, 2) memory map for seeds 0 to count - 1: the class, and the nearness in 0..255."""
    return cached(work_dir / f"maps-{count}.npy", range(count), _paint_maps, (SIZE, SIZE, 2))


def _paint_maps(seed: int) -> Pictures:
    scene = sample(seed).scene
    canvas = paint(scene, SIZE)
    near = np.round(canvas.nearness(scene.horizon) * 255).astype(np.uint8)
    return np.stack([canvas.segmentation(), near], axis=2)
