"""Converts masks of other APIs to ours: inverts them, resizes image and mask, fills the masked part."""

from PIL import Image, ImageChops, ImageFilter

from img2img.domain.parameters import Resize
from img2img.errors import ParameterError
from img2img.imaging.decode import encode_png, fit, to_binary

from ...backends.decoder_share import DecoderShare
from ...submission.image_reader import error_field

# Blur radii in pixels: from the average colour of the surroundings to the colours at the edge.
FILL_RADII = (256, 64, 16, 4, 2)


def convert_mask(
    image: bytes,
    mask: bytes,
    size: tuple[int | None, int | None, Resize] | None,
    *,
    invert: bool,
    fill: bool,
    decoders: DecoderShare,
    is_soft: bool = False,
) -> tuple[bytes, bytes]:
    """Return image and mask as PNGs of one size.

    Args:
        size: Size of the PNGs, and how to resize to it. A side that is None is that of the image.
        invert: Whether black is the masked part of `mask`.
        fill: Whether to fill the masked part of the image with the colours around it.
        is_soft: Whether grey of the mask is kept, and not rounded to black and white.

    Raises:
        ImageError, ParameterError: The images cannot be used.
    """
    with decoders.open(image) as opened:
        pixels = opened.rgb()
    with error_field("mask"), decoders.open(mask) as opened:
        transparent = opened.transparency()
        # As in the web UI, the opaque part of a mask with transparency counts, whatever its colours.
        masked = ImageChops.invert(transparent) if transparent.getbbox() else opened.luminance()
    if not is_soft:
        masked = to_binary(masked)
    if masked.size != pixels.size:
        raise ParameterError("mask", f"It should have the size of the image, {pixels.width} x {pixels.height}")
    if size is not None:
        width, height, resize = size[0] or pixels.width, size[1] or pixels.height, size[2]
        masked = fit(masked, width, height, resize, Image.Resampling.BOX)
        if not is_soft:
            # A pixel of the smaller mask is white if any part of it is, so that no thin mask is lost.
            masked = masked.point(lambda value: 255 * (value > 0))
        pixels = fit(pixels, width, height, resize)
    if invert:
        masked = ImageChops.invert(masked)
    if fill:
        pixels = _fill(pixels, masked)
    return encode_png(pixels), encode_png(masked)


def _fill(image: Image.Image, mask: Image.Image) -> Image.Image:
    """Fill the masked part with blurs of the unmasked part, each over the wider ones as far as it reaches."""
    unmasked = image.convert("RGBA")
    unmasked.putalpha(ImageChops.invert(mask))
    premultiplied = unmasked.convert("RGBa")
    result = Image.new("RGBA", image.size)
    for radius in FILL_RADII:
        result.alpha_composite(premultiplied.filter(ImageFilter.GaussianBlur(radius)).convert("RGBA"))
    filled = image.copy()
    filled.paste(result.convert("RGB"), (0, 0), mask)
    return filled
