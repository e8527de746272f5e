"""Masks for training images: boxes, ellipses, margins and objects of the scene."""

from __future__ import annotations

import random

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from ..dataset import SIZE, Sample
from ..scenes import Scene

Mask = npt.NDArray[np.bool_]


def random_mask(drawn: Sample, rng: random.Random) -> Mask:
    """Return a mask, (128, 128), true for pixels to regenerate."""
    make = rng.choices((_box, _oval, _margins, _thing, _everything), (34, 24, 22, 17, 3))[0]
    return make(drawn.scene, rng)


def _box(_scene: Scene, rng: random.Random) -> Mask:
    return _drawn("rectangle", *_random_box(rng))


def _oval(_scene: Scene, rng: random.Random) -> Mask:
    return _drawn("ellipse", *_random_box(rng))


def _margins(_scene: Scene, rng: random.Random) -> Mask:
    """Mask one or two sides, as outpainting does."""
    mask = np.zeros((SIZE, SIZE), np.bool_)
    for side in rng.sample(range(4), rng.choice((1, 1, 2))):
        np.rot90(mask, side)[: rng.randrange(16, 65)] = True
    return mask


def _thing(scene: Scene, rng: random.Random) -> Mask:
    """Mask a box around the house or a tree; a random box if there is none."""
    boxes = [(tree.x, tree.y - tree.height / 2, 0.35 * tree.height, 0.6 * tree.height) for tree in scene.trees]
    if scene.house is not None:
        house = scene.house
        height = house.wall_height + house.roof_height
        boxes += [(house.x, house.y - height / 2, 0.62 * house.width, 0.55 * height)] * 2
    if not boxes:
        return _box(scene, rng)
    x, y, half_width, half_height = rng.choice(boxes)
    return _drawn("rectangle", x - half_width, y - half_height, x + half_width, y + half_height)


def _everything(_scene: Scene, _rng: random.Random) -> Mask:
    return np.ones((SIZE, SIZE), np.bool_)


def _random_box(rng: random.Random) -> tuple[float, float, float, float]:
    width, height = rng.uniform(0.2, 0.75), rng.uniform(0.2, 0.75)
    left, top = rng.uniform(-0.05, 1.05 - width), rng.uniform(-0.05, 1.05 - height)
    return left, top, left + width, top + height


def _drawn(shape: str, left: float, top: float, right: float, bottom: float) -> Mask:
    image = Image.new("1", (SIZE, SIZE))
    getattr(ImageDraw.Draw(image), shape)([left * SIZE, top * SIZE, right * SIZE, bottom * SIZE], fill=1)
    return np.asarray(image, np.bool_).copy()
