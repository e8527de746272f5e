"""Images as arguments of the client: bytes, files, Pillow images, and references to images that the service has."""

import re
from io import BytesIO
from os import PathLike, fspath
from pathlib import Path
from typing import IO, Any, Protocol, TypeAlias

from .errors import InvalidArgument
from .models import JobImage, Upload, UploadedImage

REFERENCE = re.compile(r"[0-9a-f]{64}|/jobs/[0-9a-f]{32}/(?:images/[0-9]|result)|/uploads/[0-9a-fx-]+")
URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
# The EXIF tag, and the first of its values in which the stored height is the width of the upright image.
ORIENTATION, SIDEWAYS = 0x0112, 5


def source_of(value: Any) -> str | None:
    """Return the path of an image that is given as a path or an open file, None for another one."""
    path = value if isinstance(value, str | PathLike) else getattr(value, "name", None)
    return fspath(path) if isinstance(path, str | PathLike) else None


class PillowImage(Protocol):
    """A `PIL.Image.Image`. The client needs no Pillow itself."""

    def save(self, fp: Any, format: str | None = None, **params: Any) -> None: ...

    @property
    def mode(self) -> str: ...


ImageInput: TypeAlias = bytes | str | PathLike[str] | IO[bytes] | PillowImage | JobImage | UploadedImage | Upload
"""An image: its encoded bytes (PNG, JPEG or WebP), the path of a file, an open binary file, a Pillow image, or an image
that the service has: a `JobImage`, an `UploadedImage`, an `Upload`, the sha256 of an uploaded image or the path
`/jobs/{id}/images/0`. `data:` URIs and, as a mask, `alpha` are sent as they are."""


def is_image_reference(text: str) -> bool:
    """Return whether `text` refers to an image that the service has, rather than to a file."""
    return REFERENCE.fullmatch(text) is not None


def load_image(value: ImageInput) -> bytes | str:
    """Return the bytes of an image, or the text by which the service knows it.

    Raises:
        OSError: The file cannot be read.
        InvalidArgument: `value` is a URL.
        TypeError: `value` is no image.
    """
    match value:
        case bytes():
            return value
        case JobImage():
            return value.url
        case UploadedImage():
            return value.sha256
        case Upload():
            return value.image
        case str() if is_image_reference(value) or value == "alpha" or value.startswith("data:"):
            return value
        case str() if URL.match(value):
            raise InvalidArgument(f"URLs are not fetched: download {value} and pass its bytes or the path of the file")
        case str() | PathLike():
            return Path(fspath(value)).read_bytes()
    if hasattr(value, "mode") and hasattr(value, "save"):
        buffer = BytesIO()
        value.save(buffer, "PNG")
        return buffer.getvalue()
    if hasattr(value, "read"):
        return value.read()
    raise TypeError(f"an image is bytes, a path, a binary file, a Pillow image or a reference, not {type(value)}")


def media_type(image: bytes) -> str | None:
    """Return the media type of an image that the service accepts, None for other data."""
    if image.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if image.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    return "image/webp" if image[:4] == b"RIFF" and image[8:12] == b"WEBP" else None


def upright_size(image: bytes) -> tuple[int, int] | None:
    """Return width and height after applying the EXIF orientation; None if Pillow is missing or cannot read them."""
    try:
        from PIL import Image

        with Image.open(BytesIO(image)) as opened:
            width, height = opened.size
            is_sideways = opened.getexif().get(ORIENTATION, 1) >= SIDEWAYS
    # Pillow raises many kinds of exceptions for a broken file, which the service reports.
    except Exception:
        return None
    return (height, width) if is_sideways else (width, height)
