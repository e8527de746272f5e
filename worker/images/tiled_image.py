"""Tiled upscaling: cuts an image into overlapping tiles and blends the results."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from img2img.domain.spec import UpscaleSpec

from .png import Pixels

Weights = npt.NDArray[np.float32]


class TiledImage:
    """The tiles of an image, numbered row by row.

    Args:
        image: RGB, of the size in the spec.
        spec: the job.
    """

    def __init__(self, image: Image.Image, spec: UpscaleSpec) -> None:
        self.grid = spec.grid
        self._size = spec.result_size
        # An upscaler model enlarges the tiles. Image-to-image gets tiles of an enlarged image.
        self._scale = spec.upscale if spec.tiling.upscaler else 1
        if not spec.tiling.upscaler:
            image = image.resize(self._size, Image.Resampling.LANCZOS)
        width, height = self.grid.canvas
        self._image = _pad(image.convert("RGB"), width // self._scale, height // self._scale)

    def tile(self, number: int) -> Image.Image:
        """Return the input of the model for a tile."""
        left, top, right, bottom = (side // self._scale for side in self.grid.boxes[number])
        return self._image.crop((left, top, right, bottom))

    def merge(self, tiles: Sequence[Pixels]) -> Pixels:
        """Merge the results of all tiles. Overlapping tiles are blended.

        Only one row of tiles is held in floating point at a time, because a result may have fifty million pixels.
        """
        grid = self.grid
        across = _weights(grid.lefts, grid.tile[0], grid.canvas[0])
        down = _weights(grid.tops, grid.tile[1], grid.canvas[1])
        merged = np.empty((grid.canvas[1], grid.canvas[0], 3), np.uint8)
        band = np.zeros((grid.tile[1], grid.canvas[0], 3), np.float32)
        for row, top in enumerate(grid.tops):
            for column, left in enumerate(grid.lefts):
                weights = down[row][:, None, None] * across[column][None, :, None]
                band[:, left : left + grid.tile[0]] += weights * tiles[row * len(grid.lefts) + column]
            done = grid.tops[row + 1] - top if row + 1 < len(grid.tops) else grid.tile[1]
            merged[top : top + done] = band[:done].round()
            band = np.concatenate([band[done:], np.zeros_like(band[:done])])
        return np.ascontiguousarray(merged[: self._size[1], : self._size[0]])


def _pad(image: Image.Image, width: int, height: int) -> Image.Image:
    """Pad the right and bottom sides with the mirrored image, so that the model sees no edge."""
    if image.size == (width, height):
        return image
    widths = ((0, height - image.height), (0, width - image.width), (0, 0))
    return Image.fromarray(np.pad(np.asarray(image), widths, mode="symmetric"))


def _weights(starts: Sequence[int], side: int, length: int) -> list[Weights]:
    """Return the blending weights of the tiles along one axis. At each pixel they sum to 1.

    Args:
        starts: first pixel of each tile.
        side: pixels of a tile.
        length: pixels of the canvas.
    """
    weights, total = [], np.zeros(length, np.float32)
    for i, start in enumerate(starts):
        weight = np.ones(side, np.float32)
        if i > 0:
            overlap = starts[i - 1] + side - start
            weight[:overlap] *= _ramp(overlap)
        if i + 1 < len(starts):
            overlap = start + side - starts[i + 1]
            weight[side - overlap :] *= _ramp(overlap)[::-1]
        weights.append(weight)
        total[start : start + side] += weight
    return [weight / total[start : start + side] for weight, start in zip(weights, starts, strict=True)]


def _ramp(count: int) -> Weights:
    """Return weights that rise smoothly from 0 to 1 (squared sine). Reversed, they are the complement to 1."""
    return (np.sin(np.pi / 2 * (np.arange(count, dtype=np.float32) + 0.5) / count) ** 2).astype(np.float32)
