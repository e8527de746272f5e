"""Photos that scikit-image and scikit-learn ship: images of subjects that the demo model does not know."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from .dataset import SIZE, Images

_FOLDERS = {
    "skimage": ("data", "scikit-image"),
    "sklearn": ("datasets/images", "scikit-learn"),
}
_FILES = {
    "skimage": (
        "astronaut.png", "brick.png", "camera.png", "cell.png", "chelsea.png", "clock_motion.png", "coffee.png",
        "coins.png", "color.png", "grass.png", "gravel.png", "hubble_deep_field.jpg", "ihc.png", "moon.png",
        "motorcycle_left.png", "motorcycle_right.png", "retina.jpg", "rocket.jpg",
    ),
    "sklearn": ("china.jpg", "flower.jpg"),
}  # fmt: skip
CELLS = 16
"""Colours are compared as the means of CELLS x CELLS cells."""


def packaged_photos() -> Images:
    """Return the middle square of 20 photos, (20, 128, 128, 3).

    Raises:
        ModuleNotFoundError: a package is not installed.
    """
    return np.stack(
        [_square(folder / name) for package in _FILES for folder in [_folder(package)] for name in _FILES[package]]
    )


def colour_distance(images: Images, others: Images) -> float:
    """Return the RMSE in [0, 1] of the mean colours of cells."""
    cells = [
        np.stack([cv2.resize(image, (CELLS, CELLS), interpolation=cv2.INTER_AREA) for image in some]) / 255.0
        for some in (images, others)
    ]
    return float(np.sqrt(np.square(cells[0] - cells[1]).mean()))


def _folder(package: str) -> Path:
    folder, distribution = _FOLDERS[package]
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"pip install {distribution}")
    return Path(spec.origin).parent / folder


def _square(file: Path) -> Images:
    with Image.open(file) as photo:
        side = min(photo.size)
        left, top = (photo.width - side) // 2, (photo.height - side) // 2
        middle = photo.convert("RGB").crop((left, top, left + side, top + side))
    return np.asarray(middle.resize((SIZE, SIZE), Image.Resampling.LANCZOS))
