"""Semantic segmentation as a finder of things: by the names of its classes, by points and by boxes."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from img2img.domain.masks import MaskQuery

from ...images.masks import BoolMask, Corners, Thing, parts, resized
from .class_names import ClassNames
from .finders import PixelFinder


class ClassSegmenter(PixelFinder):
    """A model for semantic segmentation: each connected part of a class is a thing."""

    def __init__(self, processor: Any, tokenizer: Any, model: Any, device: torch.device) -> None:
        super().__init__(processor, tokenizer, model, device)
        self._names = ClassNames(model.config.id2label)
        self.words = self._names.words

    def find(self, image: Image.Image, words: list[str], threshold: float | None) -> list[Thing]:
        classes = self._names.find(words)
        logits = self._logits(image)
        # In the order of confidence, from the probabilities of the classes.
        chosen = sorted(classes)
        things = parts(_margins(logits, chosen, image.size), 0)
        likely = resized(_softmax(logits)[chosen].sum(axis=0), image.size)
        scored = [Thing(thing.mask, float(likely[thing.mask].mean())) for thing in things]
        found = [thing for thing in scored if threshold is None or thing.score > threshold]
        return sorted(found, key=lambda thing: -thing.score)

    def outline(self, image: Image.Image, query: MaskQuery) -> list[Thing]:
        """Return the parts at the points or in the box of a query."""
        logits = self._logits(image)
        if query.box is not None:
            return [_fitting(logits, query.box, image.size)]
        labels = query.labels or (1,) * len(query.points)
        masks: dict[int, BoolMask] = {0: np.zeros((image.height, image.width), np.bool_)}
        masks[1] = masks[0].copy()
        for (x, y), label in zip(query.points, labels, strict=True):
            masks[label] |= _part_at(logits, (x, y), image.size)
        return [Thing(masks[1] & ~masks[0], 1.0)]

    def _logits(self, image: Image.Image) -> npt.NDArray[np.float32]:
        """Return (classes, height, width), smaller than the image."""
        return np.asarray(self._call(image)["logits"][0].numpy(), np.float32)

    def _run(self, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": self.model(pixel_values=inputs["pixel_values"]).logits}


def _margins(logits: npt.NDArray[np.float32], classes: list[int], size: tuple[int, int]) -> npt.NDArray[np.float32]:
    """Return by how much the best of some classes is above the best other one: the outline is smooth where it is 0."""
    chosen = np.zeros(len(logits), np.bool_)
    chosen[classes] = True
    if chosen.all():
        return np.ones((size[1], size[0]), np.float32)
    return resized(logits[chosen].max(axis=0) - logits[~chosen].max(axis=0), size)


def _part_at(logits: npt.NDArray[np.float32], point: tuple[float, float], size: tuple[int, int]) -> BoolMask:
    """Return the connected part of one class that is at a point, or next to it."""
    _, rows, columns = logits.shape
    cell = min(int(point[1] * rows / size[1]), rows - 1), min(int(point[0] * columns / size[0]), columns - 1)
    name = int(logits[:, cell[0], cell[1]].argmax())
    margins = _margins(logits, [name], size)
    x, y = min(int(point[0]), size[0] - 1), min(int(point[1]), size[1] - 1)
    found = parts(margins, 0)
    if not found:
        return np.zeros(margins.shape, np.bool_)

    def distance(thing: Thing) -> float:
        return float(np.square(np.argwhere(thing.mask) - (y, x)).sum(axis=1).min())

    return min(found, key=distance).mask


def _fitting(logits: npt.NDArray[np.float32], box: Corners, size: tuple[int, int]) -> Thing:
    """Return the part of a class whose extent is most like a box."""
    height, width = logits.shape[1:]
    across, down = width / size[0], height / size[1]
    inside = logits.argmax(axis=0)[
        int(box[1] * down) : max(int(box[1] * down) + 1, round(box[3] * down)),
        int(box[0] * across) : max(int(box[0] * across) + 1, round(box[2] * across)),
    ]
    things = [thing for name in np.unique(inside) for thing in parts(_margins(logits, [int(name)], size), 0)]
    empty = Thing(np.zeros((size[1], size[0]), np.bool_), 0.0)
    return max(things, key=lambda thing: _overlap(thing.box, box), default=empty)


def _overlap(a: Corners, b: Corners) -> float:
    """Return the area of the intersection of two boxes, relative to that of their union."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    both = max(0.0, width) * max(0.0, height)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return both / (sum(areas) - both)


def _softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    powers = np.exp(logits - logits.max(axis=0))
    return np.asarray(powers / powers.sum(axis=0), np.float32)
