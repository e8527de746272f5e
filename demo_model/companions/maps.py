"""Control maps of scenes: lines by the service's preprocessors, exact depth and segmentation by the renderer."""

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
from ..dataset import SIZE, Images, cached, sample
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
"""The ADE20K class of each scene class. ADE20K has no clouds and no sun; they use other classes."""
CLASS_WORDS = ["ground, grass" if name == "ground" else name for name in CLASSES]
"""The words of each scene class for masks."""
CLASS_COLOURS: Bytes = PALETTE[ADE20K_LABELS]
"""RGB colours, (classes, 3)."""


def lines(image: Bytes, kind: ControlType) -> Bytes:
    """Return the line map that the service makes of an image, (128, 128, 3)."""
    return np.asarray(PREPROCESSORS[kind](Image.fromarray(image)))


def some_lines(image: Bytes, rng: random.Random) -> Bytes:
    return lines(image, rng.choices(LINES, LINE_SHARES)[0])


def depth(scene: Scene) -> Bytes:
    """Return the depth map, (128, 128, 3): near is bright. Stretched to all greys, as the service does."""
    return depth_image(paint(scene, SIZE).nearness(scene.horizon))


def depth_image(nearness: npt.NDArray[np.float32]) -> Bytes:
    spread = max(float(np.ptp(nearness)), 1e-6)
    grey = np.round((nearness - nearness.min()) / spread * 255).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


def segmentation(scene: Scene) -> Bytes:
    """Return the segmentation map in ADE20K colours, (128, 128, 3)."""
    return CLASS_COLOURS[paint(scene, SIZE).segmentation()]


def painted_maps(work_dir: Path, count: int) -> Images:
    """Return a memory map (count, 128, 128, 2) of class and nearness (0 to 255) for seeds 0 to count - 1."""
    return cached(work_dir / f"maps-{count}.npy", range(count), _paint_maps, (SIZE, SIZE, 2))


def _paint_maps(seed: int) -> Images:
    scene = sample(seed).scene
    canvas = paint(scene, SIZE)
    near = np.round(canvas.nearness(scene.horizon) * 255).astype(np.uint8)
    return np.stack([canvas.segmentation(), near], axis=2)
