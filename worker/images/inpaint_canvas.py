"""Inpainting: extends the image, crops the region that the model sees, and composites the result back."""

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops

from img2img.domain.conditioning import InpaintRegion
from img2img.errors import JobError

from .png import Pixels

# Pixels along a side of the image for one latent. Pipelines read one mask pixel for each latent.
LATENT_CELL = 8
# Rounding errors of a resized mask.
NEGLIGIBLE = 0.001
# Ratio of the radii that `_thickness` distinguishes.
RADIUS_STEP = 1.25


class InpaintCanvas:
    """An image with its margins, and the mask of the area to regenerate.

    Args:
        image: RGB.
        mask: greyscale of the size of `image`, 255 where it is regenerated, else 0. None: only the margins are. If the
            region is soft, the share that changes.
        region: the margins, and the box that the model sees.
    """

    def __init__(self, image: Image.Image, mask: Image.Image | None, region: InpaintRegion) -> None:
        self._region = region
        self._image = _extend(image, region)
        self.mask = Image.new("L", region.canvas, 255)
        inner = mask or Image.new("L", image.size)
        self.mask.paste(inner, (region.margins.left, region.margins.top))

    def model_input(self, size: tuple[int, int]) -> tuple[Image.Image, Image.Image]:
        """Return the image and the mask that the model sees, resized to `size` (width, height).

        The mask is binary, unless the region is soft. Then it has the grey and the blur of the mask, else a pixel is
        white if any part of it is to be regenerated, so that no thin mask is lost.
        """
        if self._region.is_soft:
            change = ImageChops.multiply(self.mask, _soften(_any_of(self.mask), self._region.blur))
            return self.crop(self._image, size), change.resize(size, Image.Resampling.BOX, box=self._region.box)
        share = self.mask.convert("F").resize(size, Image.Resampling.BOX, box=self._region.box)
        return self.crop(self._image, size), Image.fromarray(_with_thin_parts(np.asarray(share) > NEGLIGIBLE))

    def crop(self, image: Image.Image, size: tuple[int, int]) -> Image.Image:
        """Crop an image of the size of the canvas to the box that the model sees, and resize it."""
        return image.resize(size, Image.Resampling.LANCZOS, box=self._region.box)

    def crop_control(self, image: Image.Image, size: tuple[int, int]) -> Image.Image:
        """Crop the image of a control like the image of the job.

        Args:
            image: of the size of the canvas, or of the job's image; the latter is extended first.
            size: width and height of the result.

        Raises:
            JobError: the image has another size.
        """
        if image.size == self._region.image_size:
            image = _extend(image, self._region)
        if image.size != self._region.canvas:
            expected = "{}x{}".format(*self._region.canvas)
            raise JobError(f"the image of a control is {image.width}x{image.height}, not {expected}")
        return self.crop(image, size)

    def paste(self, result: Pixels) -> Pixels:
        """Return the whole image with the result of the model. Pixels with a black mask are unchanged."""
        left, top, right, bottom = box = self._region.box
        resized = Image.fromarray(result).resize((right - left, bottom - top), Image.Resampling.LANCZOS)
        whole = self._image.copy()
        whole.paste(resized, (left, top), _soften(_any_of(self.mask), self._region.blur).crop(box))
        return np.asarray(whole)


def _any_of(mask: Image.Image) -> Image.Image:
    """Return the mask in black and white: white where anything changes."""
    return mask.point(lambda value: 255 * (value > 0))


def _with_thin_parts(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    """Return the mask, 0 or 255, in which parts that are thinner than a latent fill the cells of their latents.

    Pipelines would sample only some pixels of such a part, or none. Other parts are unchanged.
    """
    height, width = mask.shape
    padded = np.pad(mask, ((0, -height % LATENT_CELL), (0, -width % LATENT_CELL)), mode="edge")
    cells = padded.reshape(padded.shape[0] // LATENT_CELL, LATENT_CELL, -1, LATENT_CELL)
    full = np.asarray(cells.all(axis=(1, 3)), np.uint8)
    thick = cv2.dilate(full, np.ones((3, 3), np.uint8)) > 0
    thin = cells.any(axis=(1, 3)) & ~thick
    filled = mask | thin.repeat(LATENT_CELL, 0).repeat(LATENT_CELL, 1)[:height, :width]
    return filled.astype(np.uint8) * 255


def _soften(mask: Image.Image, blur: int) -> Image.Image:
    """Soften the edges of a mask inwards, over `blur` pixels, or over half the thickness of a part that is thinner.

    So no part fades away as a whole. The edge of the image is not softened.
    """
    box = mask.getbbox()
    if not blur or box is None:
        return mask
    # One more pixel on each side, so that the edges of the mask are seen.
    box = max(0, box[0] - 1), max(0, box[1] - 1), min(mask.width, box[2] + 1), min(mask.height, box[3] + 1)
    distance = _distance(np.asarray(mask.crop(box)))
    opacity = np.clip(distance / _thickness(distance, blur), 0, 1)
    soft = mask.copy()
    soft.paste(Image.fromarray((opacity * 255).round().astype(np.uint8)), box[:2])
    return soft


def _thickness(distance: npt.NDArray[np.float32], limit: int) -> npt.NDArray[np.float32]:
    """Return for each pixel the radius of the largest disc in the mask that covers it, in steps, at most `limit`."""
    thickness = np.ones_like(distance)
    radius = 1.0
    while radius < limit:
        radius = min(limit, max(radius + 1, radius * RADIUS_STEP))
        centres = distance >= radius
        if not centres.any():
            break
        thickness[_distance(~centres) < radius] = radius
    return thickness


def _distance(mask: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
    """Return for each pixel the distance to the next one that is 0; a large number if there is none."""
    return np.asarray(cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5), np.float32)


def _extend(image: Image.Image, region: InpaintRegion) -> Image.Image:
    """Add the margins, filled with the mirrored image, which is closer to the result than a flat colour."""
    margins = region.margins
    if not margins.any:
        return image
    widths = ((margins.top, margins.bottom), (margins.left, margins.right), (0, 0))
    return Image.fromarray(np.pad(np.asarray(image), widths, mode="symmetric"))
