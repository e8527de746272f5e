"""Where on a picture the model works, and at which size."""

import math
from collections.abc import Iterable

from img2img.domain.conditioning import Padding
from img2img.domain.model_card import ModelCard, nearest_bucket

Box = tuple[int, int, int, int]  # left, top, right, bottom
BUCKET_TOLERANCE = 0.02  # of the aspect ratio: a stretch that nobody sees


def working_size(box: Box, card: ModelCard) -> tuple[int, int]:
    """Width and height at which a model sees a box of a picture: about its native pixel count, in the box's shape.

    A bucket if one has nearly that shape, so that jobs can share their passes; else as near as the model's grid allows.
    """
    width, height = box[2] - box[0], box[3] - box[1]
    ratio = width / height
    bucket = nearest_bucket(card.sizes, width, height)
    if abs(math.log(bucket[0] / bucket[1] / ratio)) < BUCKET_TOLERANCE:
        return bucket
    longest = min(card.max_size, card.native_size * math.sqrt(max(ratio, 1 / ratio)))
    scale = longest / max(width, height)
    return _side(width * scale, card), _side(height * scale, card)


def _side(pixels: float, card: ModelCard) -> int:
    multiple = card.size_multiple
    return max(multiple, multiple * round(min(pixels, card.max_size) / multiple))


def margin_boxes(margins: Padding, canvas: tuple[int, int]) -> list[Box]:
    """The margins of a canvas as boxes."""
    width, height = canvas
    boxes = [
        (0, 0, margins.left, height),
        (0, 0, width, margins.top),
        (width - margins.right, 0, width, height),
        (0, height - margins.bottom, width, height),
    ]
    return [box for box in boxes if box[0] < box[2] and box[1] < box[3]]


def union(boxes: Iterable[Box]) -> Box:
    """The smallest box around all of them, of which there is at least one."""
    lefts, tops, rights, bottoms = zip(*boxes, strict=True)
    return min(lefts), min(tops), max(rights), max(bottoms)


def expand_box(box: Box, padding: int, canvas: tuple[int, int], card: ModelCard) -> Box:
    """The box with padding around it, made wider or higher on the canvas to the shape of a bucket, if there is room.

    No smaller than the model's smallest size: to make pixels up from nothing gains no detail.
    """
    left, top = max(0, box[0] - padding), max(0, box[1] - padding)
    right, bottom = min(canvas[0], box[2] + padding), min(canvas[1], box[3] + padding)
    width, height = nearest_bucket(card.sizes, right - left, bottom - top)
    wanted_width = max(right - left, round((bottom - top) * width / height), card.min_size)
    wanted_height = max(bottom - top, round((right - left) * height / width), card.min_size)
    left, right = _widened(left, right, wanted_width, canvas[0])
    top, bottom = _widened(top, bottom, wanted_height, canvas[1])
    return left, top, right, bottom


def _widened(low: int, high: int, wanted: int, limit: int) -> tuple[int, int]:
    """The stretch low..high, grown to `wanted` on both sides as far as 0..limit allows."""
    wanted = min(wanted, limit)
    low = max(0, min(low - (wanted - (high - low)) // 2, limit - wanted))
    return low, max(high, low + wanted)
