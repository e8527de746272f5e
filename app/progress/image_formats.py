"""Converts a result to the format that a client requests."""

from io import BytesIO

from PIL import Image

from img2img.errors import ParameterError

from ..schemas.responses import ImageFormat

DEFAULT_QUALITY = 90
NO_ALPHA = "A JPEG cannot be transparent; input should be png or webp"


def etag_suffix(image_format: ImageFormat, quality: int | None) -> str:
    """Return the suffix that distinguishes this representation's ETag from the PNG's, which has none.

    Raises ParameterError for a PNG with a quality.
    """
    if image_format is ImageFormat.PNG:
        if quality is not None:
            raise ParameterError("quality", "PNG is lossless; use quality with format=webp or format=jpeg", got=quality)
        return ""
    return f"-{image_format}-{quality or DEFAULT_QUALITY}"


def convert_image(png: bytes, image_format: ImageFormat, quality: int | None) -> bytes:
    """Return the image in another format. Only the PNG contains the parameters of the job.

    Raises ParameterError for a JPEG of a transparent image.
    """
    if image_format is ImageFormat.PNG:
        return png
    buffer = BytesIO()
    with Image.open(BytesIO(png), formats=("PNG",)) as image:
        is_transparent = image.mode == "RGBA"
        if is_transparent and image_format is ImageFormat.JPEG:
            raise ParameterError("format", NO_ALPHA, got=image_format)
        image.convert("RGBA" if is_transparent else "RGB").save(
            buffer, image_format.upper(), quality=quality or DEFAULT_QUALITY
        )
    return buffer.getvalue()
