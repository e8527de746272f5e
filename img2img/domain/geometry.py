"""Sizes and boxes: the part of an image that the model sees, and the size at which it works."""

import math
from collections.abc import Iterable

from img2img.domain.conditioning import Padding
from img2img.domain.model_card import ModelCard

# Left, top, right, bottom.
Box = tuple[int, int, int, int]
# Relative difference of aspect ratios below which the distortion is invisible.
BUCKET_TOLERANCE = 0.02


def nearest_bucket(sizes: Iterable[tuple[int, int]], width: int, height: int) -> tuple[int, int]:
    """Return the bucket with the aspect ratio nearest to width / height, by the logarithm of the ratio."""
    return min(sizes, key=lambda size: abs(math.log(size[0] / size[1] * height / width)))


def kept_share(image: tuple[int, int], size: tuple[int, int]) -> float:
    """Return the share of an image that is left when it is cropped to the aspect ratio of a size."""
    ratio = image[0] / image[1] * size[1] / size[0]
    return min(ratio, 1 / ratio)


def working_size(box: Box, card: ModelCard) -> tuple[int, int]:
    """Return the width and height at which the model works on a box: about its native number of pixels.

    A bucket with nearly the aspect ratio of the box is preferred: jobs of equal sizes can be batched.
    """
    width, height = box[2] - box[0], box[3] - box[1]
    ratio = width / height
    bucket = nearest_bucket(card.sizes, width, height)
    if abs(math.log(bucket[0] / bucket[1] / ratio)) < BUCKET_TOLERANCE:
        return bucket
    longest = min(card.max_size, card.native_size * math.sqrt(max(ratio, 1 / ratio)))
    scale = longest / max(width, height)
    return _round_side(width * scale, card), _round_side(height * scale, card)


def _round_side(pixels: float, card: ModelCard) -> int:
    multiple = card.size_multiple
    return max(multiple, multiple * round(min(pixels, card.max_size) / multiple))


def margin_boxes(margins: Padding, canvas: tuple[int, int]) -> list[Box]:
    """Return the margins of a canvas as boxes."""
    width, height = canvas
    boxes = [
        (0, 0, margins.left, height),
        (0, 0, width, margins.top),
        (width - margins.right, 0, width, height),
        (0, height - margins.bottom, width, height),
    ]
    return [box for box in boxes if box[0] < box[2] and box[1] < box[3]]


def union(boxes: Iterable[Box]) -> Box:
    """Return the smallest box around at least one box."""
    lefts, tops, rights, bottoms = zip(*boxes, strict=True)
    return min(lefts), min(tops), max(rights), max(bottoms)


def visible_box(
    masked: Box | None,
    margins: Padding,
    canvas: tuple[int, int],
    padding: int | None,
    card: ModelCard,
    size: tuple[int, int] | None = None,
) -> Box:
    """Return the part of the canvas that the model sees.

    Args:
        masked: Smallest box around the masked pixels of the image, without its margins.
        padding: Pixels of context around the regenerated pixels; None: the whole canvas.
        size: Width and height at which the model works, if they are known before the box.
    """
    if padding is None:
        return (0, 0, *canvas)
    boxes = margin_boxes(margins, canvas)
    if masked:
        left, top, right, bottom = masked
        boxes.append((left + margins.left, top + margins.top, right + margins.left, bottom + margins.top))
    return expand_box(union(boxes), padding, canvas, card, size)


def expand_box(
    box: Box, padding: int, canvas: tuple[int, int], card: ModelCard, size: tuple[int, int] | None = None
) -> Box:
    """Return the box with padding, expanded on the canvas to the aspect ratio of a size if there is space.

    The result is at least as large as the model's smallest size: enlarging a smaller box would not add detail.

    Args:
        size: Width and height with that ratio; None: the nearest bucket.
    """
    left, top = max(0, box[0] - padding), max(0, box[1] - padding)
    right, bottom = min(canvas[0], box[2] + padding), min(canvas[1], box[3] + padding)
    width, height = size or nearest_bucket(card.sizes, right - left, bottom - top)
    wanted_width = max(right - left, round((bottom - top) * width / height), card.min_size)
    wanted_height = max(bottom - top, round((right - left) * height / width), card.min_size)
    left, right = _expand(left, right, wanted_width, canvas[0])
    top, bottom = _expand(top, bottom, wanted_height, canvas[1])
    return left, top, right, bottom


def _expand(low: int, high: int, wanted: int, limit: int) -> tuple[int, int]:
    """Return the interval low..high, expanded on both sides to `wanted` as far as 0..limit allows."""
    wanted = min(wanted, limit)
    low = max(0, min(low - (wanted - (high - low)) // 2, limit - wanted))
    return low, max(high, low + wanted)
