"""The web UI's way with masks, brought to ours: masks inverted, pictures resized, masked parts filled beforehand."""

from collections.abc import Callable

from PIL import Image, ImageChops, ImageFilter

from img2img.domain.parameters import Resize
from img2img.errors import ParameterError

from ..imaging.decode import encode_png, fit
from ..imaging.sandbox_pool import SandboxedImage
from ..submission.spec_builder import error_field

FILL_RADII = (256, 64, 16, 4, 2)  # pixels: from the colour of the surroundings at large to what is next to the edge


def convert_mask(
    image: bytes,
    mask: bytes,
    size: tuple[int, int, Resize] | None,
    *,
    invert: bool,
    fill: bool,
    open_picture: Callable[[bytes], SandboxedImage],
) -> tuple[bytes, bytes]:
    """Image and mask as PNG, of one size: that of the image, or `size`. Raises PictureError or ParameterError."""
    picture = open_picture(image).rgb()
    with error_field("mask"):
        painted = open_picture(mask).luminance()
    if painted.size != picture.size:
        raise ParameterError("mask", f"It should have the size of the image, {picture.width} x {picture.height}")
    if size is not None:
        width, height, resize = size
        picture, painted = fit(picture, width, height, resize), fit(painted, width, height, resize)
    if invert:
        painted = ImageChops.invert(painted)
    if fill:
        picture = _filled(picture, painted)
    return encode_png(picture), encode_png(painted)


def _filled(picture: Image.Image, mask: Image.Image) -> Image.Image:
    """The masked part filled with the colours around it: the unmasked part blurred, wide first and then narrow, each
    laid over the one before as far as it reaches."""
    hole = mask.point(lambda value: 255 * (value >= 128))
    kept = picture.convert("RGBA")
    kept.putalpha(ImageChops.invert(hole))
    premultiplied = kept.convert("RGBa")
    result = Image.new("RGBA", picture.size)
    for radius in FILL_RADII:
        result.alpha_composite(premultiplied.filter(ImageFilter.GaussianBlur(radius)).convert("RGBA"))
    filled = picture.copy()
    filled.paste(result.convert("RGB"), (0, 0), hole)
    return filled
