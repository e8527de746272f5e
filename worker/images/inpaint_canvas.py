"""A picture of which a part is painted anew: its margins, the view that the model gets, and the way back."""

import numpy as np
from PIL import Image, ImageChops, ImageFilter

from img2img.domain.conditioning import InpaintRegion
from img2img.errors import JobError

from .png import Pixels

BINARY = 128  # a mask pixel from here on is painted; below, it only fades


class InpaintCanvas:
    """The picture with its margins, and the mask of what is painted on it."""

    def __init__(self, picture: Image.Image, mask: Image.Image | None, region: InpaintRegion) -> None:
        """picture: RGB; mask: greyscale of its size, white where it is painted, or None: on the margins only."""
        self._region = region
        self._picture = _with_margins(picture, region)
        self.mask = Image.new("L", region.canvas, 255)
        inner = mask or Image.new("L", picture.size)
        self.mask.paste(inner, (region.margins.left, region.margins.top))

    def view(self, size: tuple[int, int]) -> tuple[Image.Image, Image.Image]:
        """What the model sees, at (width, height): the picture, and the mask in pure black and white."""
        return self.cut(self._picture, size), self.cut(self.mask, size).point(lambda value: 255 * (value >= BINARY))

    def cut(self, picture: Image.Image, size: tuple[int, int]) -> Image.Image:
        """The box of a picture of the canvas' size, at (width, height)."""
        return picture.resize(size, Image.Resampling.LANCZOS, box=self._region.box)

    def cut_along(self, picture: Image.Image, size: tuple[int, int]) -> Image.Image:
        """The same of another picture: of the canvas' size, or of that of the picture on it, and then extended alike.

        Raises JobError for one of any other size.
        """
        if picture.size == self._region.image_size:
            picture = _with_margins(picture, self._region)
        if picture.size != self._region.canvas:
            wanted = "{}x{}".format(*self._region.canvas)
            raise JobError(f"a control's picture is {picture.width}x{picture.height}, not {wanted}")
        return self.cut(picture, size)

    def paste(self, result: Pixels) -> Pixels:
        """The whole picture with the result in its place. Where the mask is black, every pixel is as it was."""
        left, top, right, bottom = box = self._region.box
        painted = Image.fromarray(result).resize((right - left, bottom - top), Image.Resampling.LANCZOS)
        whole = self._picture.copy()
        whole.paste(painted, (left, top), _faded(self.mask, self._region.blur).crop(box))
        return np.asarray(whole)


def _faded(mask: Image.Image, blur: int) -> Image.Image:
    """The mask, its edge softened inwards only: a Gaussian of half the width has fallen to a half at the edge, so that
    twice what is above a half is 0 there."""
    if not blur:
        return mask
    soft = mask.filter(ImageFilter.GaussianBlur(blur / 2)).point(lambda value: max(0, 2 * value - 255))
    return ImageChops.darker(soft, mask)


def _with_margins(picture: Image.Image, region: InpaintRegion) -> Image.Image:
    """Margins filled with what is mirrored at the edge: nearer to what will be there than black or a flat colour."""
    margins = region.margins
    if not margins.any:
        return picture
    pixels = np.asarray(picture)
    widths = ((margins.top, margins.bottom), (margins.left, margins.right), (0, 0))
    return Image.fromarray(np.pad(pixels, widths, mode="symmetric"))
