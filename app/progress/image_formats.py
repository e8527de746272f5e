"""A result as a client wants it: the PNG as it is, or converted on the way out."""

from io import BytesIO

from PIL import Image

from img2img.errors import ParameterError

from ..schemas.responses import ImageFormat

DEFAULT_QUALITY = 90


def etag_suffix(image_format: ImageFormat, quality: int | None) -> str:
    """What tells this representation from others in an ETag; empty for the PNG. Raises ParameterError."""
    if image_format is ImageFormat.PNG:
        if quality is not None:
            raise ParameterError("quality", "A PNG loses nothing; quality is of webp and jpeg", got=quality)
        return ""
    return f"-{image_format}-{quality or DEFAULT_QUALITY}"


def convert_image(png: bytes, image_format: ImageFormat, quality: int | None) -> bytes:
    """The picture in that format. A job's parameters stand in the PNG only."""
    if image_format is ImageFormat.PNG:
        return png
    buffer = BytesIO()
    with Image.open(BytesIO(png), formats=("PNG",)) as image:
        image.convert("RGB").save(buffer, image_format.upper(), quality=quality or DEFAULT_QUALITY)
    return buffer.getvalue()
