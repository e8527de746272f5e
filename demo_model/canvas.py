"""A canvas that draws an image and its segmentation with the same shapes, so that the two match exactly."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

from .palette import RGB, FloatArray

SUPERSAMPLING = 3
CLASSES = ("sky", "cloud", "sun", "mountain", "hill", "ground", "water", "road", "tree", "house")
Point = tuple[float, float]


class Canvas:
    """Draws shapes from far to near, in fractions of the side. Every part has a class and a nearness."""

    def __init__(self, size: int, sky_top: RGB, sky_bottom: RGB, horizon: float) -> None:
        self.size = size
        self._big = size * SUPERSAMPLING
        self._image = self.vertical_gradient(sky_top, sky_bottom, 0.0, horizon)
        self._parts = Image.new("L", (self._big, self._big), 0)
        self._class_of_part = [CLASSES.index("sky")]
        self._nearness_of_part: list[tuple[float, float]] = [(0.0, 0.0)]

    def polygon(self, points: Sequence[Point], colour: RGB | Image.Image) -> None:
        self._stamp(lambda draw: draw.polygon([self._scaled(p) for p in points], fill=255), colour)

    def ellipse(self, x: float, y: float, half_width: float, half_height: float, colour: RGB | Image.Image) -> None:
        corners = [self._scaled((x - half_width, y - half_height)), self._scaled((x + half_width, y + half_height))]
        self._stamp(lambda draw: draw.ellipse(corners, fill=255), colour)

    def rectangle(self, left: float, top: float, right: float, bottom: float, colour: RGB | Image.Image) -> None:
        self.polygon([(left, top), (right, top), (right, bottom), (left, bottom)], colour)

    def part(self, class_name: str, nearness_top: float, nearness_bottom: float | None = None) -> None:
        """Start a new part for the shapes that follow; its nearness can grow from the horizon to the bottom edge."""
        self._class_of_part.append(CLASSES.index(class_name))
        bottom = nearness_top if nearness_bottom is None else nearness_bottom
        self._nearness_of_part.append((nearness_top, bottom))

    def decorate(self) -> None:
        """Draw the shapes that follow on the sky only, without a part (stars)."""
        self._class_of_part.append(CLASSES.index("sky"))
        self._nearness_of_part.append((0.0, 0.0))

    def vertical_gradient(self, top: RGB, bottom: RGB, y_top: float, y_bottom: float) -> Image.Image:
        """Return a fill that changes from one colour to another between two heights."""
        rows = (np.arange(self._big, dtype=np.float32) + 0.5) / self._big
        share = np.clip((rows - y_top) / max(y_bottom - y_top, 1e-6), 0.0, 1.0)[:, None]
        column = np.asarray(top, np.float32) * (1 - share) + np.asarray(bottom, np.float32) * share
        pixels = np.round(column * 255).astype(np.uint8)[:, None, :]
        return Image.fromarray(pixels).resize((self._big, self._big), Image.Resampling.NEAREST)

    def _stamp(self, shape: Callable[[ImageDraw.ImageDraw], None], colour: RGB | Image.Image) -> None:
        mask = Image.new("L", (self._big, self._big), 0)
        shape(ImageDraw.Draw(mask))
        box = mask.getbbox()
        if box is None:
            return
        mask = mask.crop(box)
        paint = colour.crop(box) if isinstance(colour, Image.Image) else tuple(round(255 * c) for c in colour)
        self._image.paste(paint, box, mask)
        self._parts.paste(len(self._class_of_part) - 1, box, mask)

    def _scaled(self, point: Point) -> Point:
        return point[0] * self._big, point[1] * self._big

    def image(self) -> FloatArray:
        """Return the antialiased image, (size, size, 3) in [0, 1]."""
        return np.asarray(self._image.reduce(SUPERSAMPLING), np.float32) / 255.0

    def parts(self) -> npt.NDArray[np.uint8]:
        """Return the part at the centre of each pixel, (size, size)."""
        middle = SUPERSAMPLING // 2
        return np.asarray(self._parts)[middle::SUPERSAMPLING, middle::SUPERSAMPLING]

    def segmentation(self) -> npt.NDArray[np.uint8]:
        """Return the index into CLASSES of each pixel, (size, size)."""
        return np.asarray(self._class_of_part, np.uint8)[self.parts()]

    def nearness(self, horizon: float) -> FloatArray:
        """Return the relative inverse depth, (size, size): 0 at infinity, 1 at the bottom edge."""
        table = np.asarray(self._nearness_of_part, np.float32)[self.parts()]
        rows = (np.arange(self.size, dtype=np.float32) + 0.5) / self.size
        share = np.clip((rows - horizon) / (1.0 - horizon), 0.0, 1.0)[:, None]
        return np.asarray(table[..., 0] * (1 - share) + table[..., 1] * share, np.float32)

    def outline(self) -> FloatArray:
        """Return the coverage of each pixel by outlines about 1.3 pixels wide, (size, size)."""
        ink = Image.fromarray(_borders(self._solid(np.asarray(self._parts)))).filter(ImageFilter.MaxFilter(3))
        return np.asarray(ink.reduce(SUPERSAMPLING), np.float32) / 255.0

    def edges(self) -> npt.NDArray[np.uint8]:
        """Return 255 at the borders of parts and 0 elsewhere, (size, size)."""
        return _borders(self._solid(self.parts()))

    def _solid(self, parts: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Return the parts with the decorations of the sky merged into the sky."""
        is_sky = np.asarray(self._class_of_part) == CLASSES.index("sky")
        return np.where(is_sky[parts], 0, parts).astype(np.uint8)


def _borders(parts: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    line = np.zeros(parts.shape, np.uint8)
    line[1:][np.diff(parts, axis=0) != 0] = 255
    line[:, 1:][np.diff(parts, axis=1) != 0] = 255
    return line
