"""How a picture is cut into tiles that a model can make: the front end counts them, the worker makes them."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Box = tuple[int, int, int, int]  # left, top, right, bottom


@dataclass(frozen=True)
class Grid:
    """Where tiles of one size lie on a canvas, in pixels. They cover all of it."""

    canvas: tuple[int, int]  # width and height: the picture's, and what is added on the right and below
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
    """How the upscale task makes a result: in overlapping tiles. In pixels of the result."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    upscaler: bool  # a super-resolution model makes the tiles; else image-to-image does, from the enlarged picture
    side: Annotated[int, Field(gt=0)]  # of a tile, unless the result is smaller
    overlap: Annotated[int, Field(ge=0)]  # of two neighbours, at least; less than the side, and a multiple of:
    multiple: Annotated[int, Field(gt=0)]  # sides and places of tiles are multiples of this
    work: Annotated[float, Field(gt=0)] = 1.0  # of a pixel, beside one of image-to-image by the same model

    def grid(self, size: tuple[int, int]) -> Grid:
        """The tiles of a result of width x height."""
        (across, width, lefts), (down, height, tops) = map(self._along, size)
        return Grid((across, down), (width, height), lefts, tops)

    def _along(self, length: int) -> tuple[int, int, tuple[int, ...]]:
        """Along one side of the result: the canvas, a tile, and where the tiles begin, evenly spread.

        No tile is smaller than half its usual side: models make little of less.
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
