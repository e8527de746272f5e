"""Things that are found in an image, and the masks that are made of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from img2img.domain.masks import MaskQuery
from img2img.errors import JobError

BoolMask = npt.NDArray[np.bool_]  # (height, width)
Corners = tuple[float, float, float, float]  # left, top, right, bottom

# Share of the image below which a separate part is noise.
MIN_PART = 0.0005


@dataclass(frozen=True)
class Thing:
    """A thing in an image, and how certain it is."""

    mask: BoolMask
    score: float

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, right and bottom of a mask that is not empty."""
        rows, columns = np.flatnonzero(self.mask.any(axis=1)), np.flatnonzero(self.mask.any(axis=0))
        return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def parts(scores: npt.NDArray[np.float32], threshold: float) -> list[Thing]:
    """Return the connected parts of the pixels whose score is higher than a threshold, the most certain first."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats((scores > threshold).astype(np.uint8), connectivity=8)
    least = MIN_PART * scores.size
    # Part 0 is the background.
    found = [labels == i for i in range(1, count) if stats[i, cv2.CC_STAT_AREA] >= least]
    return sorted((Thing(mask, float(scores[mask].max())) for mask in found), key=lambda thing: -thing.score)


def rectangle(box: Corners, size: tuple[int, int]) -> BoolMask:
    """Return the mask of a box in an image of a size (width, height)."""
    mask = np.zeros((size[1], size[0]), np.bool_)
    left, top = max(0, int(box[0])), max(0, int(box[1]))
    mask[top : max(top, round(box[3])), left : max(left, round(box[2]))] = True
    return mask


def resized(values: npt.NDArray[np.float32], size: tuple[int, int]) -> npt.NDArray[np.float32]:
    """Return a map of values, resized to (width, height)."""
    return np.asarray(cv2.resize(values, size, interpolation=cv2.INTER_LINEAR), np.float32)


def grown(mask: BoolMask, pixels: int) -> BoolMask:
    """Return the mask, larger by a number of pixels on all sides, or smaller if it is negative."""
    if not pixels:
        return mask
    side = 2 * abs(pixels) + 1
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    change = cv2.dilate if pixels > 0 else cv2.erode
    return np.asarray(change(mask.astype(np.uint8), kernel), np.bool_)


def query_mask(things: Sequence[Thing], query: MaskQuery) -> Image.Image:
    """Return the mask of all things: greyscale, 255 or 0.

    Raises:
        JobError: There are none, or the mask is empty.
    """
    name = f"`{query.text}`" if query.text else f"anything at the {query.kind} of the mask"
    if not any(thing.mask.any() for thing in things):
        raise JobError(
            f"the model did not find {name} in the image; give other words, a lower `threshold`, or a mask"
            if query.text
            else f"the model did not find {name}; give other ones, or a mask"
        )
    mask = grown(np.logical_or.reduce([thing.mask for thing in things]), query.grow)
    if query.invert:
        mask = ~mask
    if not mask.any():
        change = "`invert`" if query.invert else "`grow`"
        raise JobError(f"nothing is left of the mask of {name} after {change}; give another value")
    return Image.fromarray(mask.astype(np.uint8) * 255)
