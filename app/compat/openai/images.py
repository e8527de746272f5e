"""Conversion of images: masks by transparency, results in the format that the client asks for."""

from base64 import b64encode
from io import BytesIO
from typing import Literal

from PIL import Image

from img2img.errors import ParameterError
from img2img.imaging.decode import encode_png

from ...backends.decoder_share import DecoderShare
from ...progress.image_formats import convert_image
from ...schemas.request_fields import ALPHA
from ...schemas.responses import ImageFormat
from ...submission.image_reader import error_field


def convert_mask(
    image: bytes, mask: bytes | None, decoders: DecoderShare
) -> tuple[tuple[int, int], bytes | Literal["alpha"] | None]:
    """Return the size of the image, and our mask: white where theirs, or else the image, is transparent."""
    with decoders.open(image) as opened:
        size = opened.size
        if mask is None:
            return size, ALPHA if opened.transparency().getbbox() else None
    with error_field("mask"), decoders.open(mask) as opened:
        transparent = opened.transparency()
    if not transparent.getbbox():
        raise ParameterError("mask", "The mask should be transparent where the image is to be edited")
    return size, encode_png(transparent)


def as_base64(png: bytes, output_format: ImageFormat, quality: int | None) -> str:
    """Return an image in the format, as base64. `quality` is 0 to 100, for webp and jpeg."""
    if output_format is not ImageFormat.PNG:
        png = convert_image(png, output_format, None if quality is None else max(1, quality))
    return b64encode(png).decode()


def png_of_jpeg(jpeg: bytes) -> bytes:
    """Return a preview as PNG."""
    with Image.open(BytesIO(jpeg), formats=("JPEG",)) as image:
        return encode_png(image.convert("RGB"))


def size_of(png: bytes) -> str:
    """Return the size of an image as OpenAI writes it, such as `1024x1024`."""
    with Image.open(BytesIO(png), formats=("PNG",)) as opened:
        return f"{opened.width}x{opened.height}"
