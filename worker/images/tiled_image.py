"""A picture that is made larger: cut into tiles for the model, and put together from them without seams."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from img2img.domain.spec import UpscaleSpec

from .png import Pixels

Weights = npt.NDArray[np.float32]


class TiledImage:
    """The tiles of one picture, by number: row by row."""

    def __init__(self, picture: Image.Image, spec: UpscaleSpec) -> None:
        """picture: RGB, of the spec's size."""
        self.grid = spec.grid
        self._size = spec.result_size
        # An upscaler model enlarges the tiles itself; image-to-image gets an enlarged image.
        self._scale = spec.upscale if spec.tiling.upscaler else 1
        if not spec.tiling.upscaler:
            picture = picture.resize(self._size, Image.Resampling.LANCZOS)
        width, height = self.grid.canvas
        self._picture = _padded(picture.convert("RGB"), width // self._scale, height // self._scale)

    def tile(self, number: int) -> Image.Image:
        """What the model gets for a tile."""
        left, top, right, bottom = (side // self._scale for side in self.grid.boxes[number])
        return self._picture.crop((left, top, right, bottom))

    def joined(self, tiles: Sequence[Pixels]) -> Pixels:
        """The whole result. Where tiles overlap, one fades into the other.

        Holds no more than one row of tiles in floating point: a result may have fifty million pixels.
        """
        grid = self.grid
        across = _weights(grid.lefts, grid.tile[0], grid.canvas[0])
        down = _weights(grid.tops, grid.tile[1], grid.canvas[1])
        whole = np.empty((grid.canvas[1], grid.canvas[0], 3), np.uint8)
        band = np.zeros((grid.tile[1], grid.canvas[0], 3), np.float32)
        for row, top in enumerate(grid.tops):
            for column, left in enumerate(grid.lefts):
                weights = down[row][:, None, None] * across[column][None, :, None]
                band[:, left : left + grid.tile[0]] += weights * tiles[row * len(grid.lefts) + column]
            done = grid.tops[row + 1] - top if row + 1 < len(grid.tops) else grid.tile[1]
            whole[top : top + done] = band[:done].round()
            band = np.concatenate([band[done:], np.zeros_like(band[:done])])
        return np.ascontiguousarray(whole[: self._size[1], : self._size[0]])


def _padded(picture: Image.Image, width: int, height: int) -> Image.Image:
    """The picture with mirrored rows and columns on the right and below: a model should not see an edge there."""
    if picture.size == (width, height):
        return picture
    beyond = ((0, height - picture.height), (0, width - picture.width), (0, 0))
    return Image.fromarray(np.pad(np.asarray(picture), beyond, mode="symmetric"))


def _weights(starts: Sequence[int], side: int, length: int) -> list[Weights]:
    """How much each tile counts along one side of the canvas. At every pixel they add up to 1."""
    weights, total = [], np.zeros(length, np.float32)
    for i, start in enumerate(starts):
        weight = np.ones(side, np.float32)
        if i > 0:
            overlap = starts[i - 1] + side - start
            weight[:overlap] *= _rising(overlap)
        if i + 1 < len(starts):
            overlap = start + side - starts[i + 1]
            weight[side - overlap :] *= _rising(overlap)[::-1]
        weights.append(weight)
        total[start : start + side] += weight
    return [weight / total[start : start + side] for weight, start in zip(weights, starts, strict=True)]


def _rising(count: int) -> Weights:
    """From nearly 0 to nearly 1, without a kink at either end. Backwards it is what is missing to 1."""
    return (np.sin(np.pi / 2 * (np.arange(count, dtype=np.float32) + 0.5) / count) ** 2).astype(np.float32)
