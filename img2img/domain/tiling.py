"""Division of an image into overlapping tiles. The API server counts them, the worker makes them."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

# Left, top, right, bottom.
Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Grid:
    """Positions of tiles of one size that cover a canvas, in pixels.

    Attributes:
        canvas: Width and height: those of the image, extended to the right and below.
        tile: Width and height of each tile.
        lefts: Left edges of the columns.
        tops: Top edges of the rows.
    """

    canvas: tuple[int, int]
    tile: tuple[int, int]
    lefts: tuple[int, ...]
    tops: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.lefts) * len(self.tops)

    @property
    def boxes(self) -> list[Box]:
        """The tiles, row by row."""
        width, height = self.tile
        return [(left, top, left + width, top + height) for top in self.tops for left in self.lefts]


class Tiling(BaseModel):
    """Parameters of the tiles of the upscale task, in pixels of the result.

    Attributes:
        upscaler: A super-resolution model makes the tiles; otherwise image-to-image does, from the enlarged image.
        side: Side of a tile, unless the result is smaller.
        overlap: Overlap of neighbouring tiles, at least. Less than `side`, and a multiple of `multiple`.
        multiple: Sides and positions of tiles are multiples of this.
        work: Cost of a pixel, relative to image-to-image by the same model.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    upscaler: bool
    side: Annotated[int, Field(gt=0)]
    overlap: Annotated[int, Field(ge=0)]
    multiple: Annotated[int, Field(gt=0)]
    work: Annotated[float, Field(gt=0)] = 1.0

    def grid(self, size: tuple[int, int]) -> Grid:
        """Return the tiles of a result of width x height."""
        (across, width, lefts), (down, height, tops) = map(self._along, size)
        return Grid((across, down), (width, height), lefts, tops)

    def _along(self, length: int) -> tuple[int, int, tuple[int, ...]]:
        """Return the sides of the canvas and of a tile, and the evenly spread positions of the tiles.

        No tile is smaller than half its usual side, because models make poor images of smaller ones.
        """
        canvas = self._rounded_up(max(length, self.side // 2))
        side = min(self._rounded_up(self.side), canvas)
        beyond = canvas - side
        gaps = -(-beyond // (side - self.overlap)) if beyond else 0
        steps = beyond // self.multiple
        starts = tuple(self.multiple * round(steps * i / gaps) for i in range(1, gaps + 1))
        return canvas, side, (0, *starts)

    def _rounded_up(self, length: int) -> int:
        return self.multiple * -(-length // self.multiple)
