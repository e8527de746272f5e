"""Images as arguments of the client: bytes, files, Pillow images, and references to images that the service has."""

import errno
import re
from collections.abc import Callable, Iterable, Mapping
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
# Fields of requests that are images, lists of images, and lists of entries with images.
IMAGE_FIELDS = ("image", "mask")
IMAGE_LISTS = ("images",)
NESTED_IMAGE_FIELDS = ("controls", "image_prompts", "regions")
MAX_SHOWN = 80


class NotAnImage(InvalidArgument, TypeError):
    """A value in place of an image is none."""


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


def map_images(fields: Mapping[str, Any], convert: Callable[[Any], Any]) -> dict[str, Any]:
    """Return the fields of a request that are given, with `convert` applied to every image in them.

    A value of another structure than its field is left as it is: the service names it in its error.
    """
    return {name: _mapped(name, value, convert) for name, value in fields.items() if value is not None}


def _mapped(name: str, value: Any, convert: Callable[[Any], Any]) -> Any:
    if name in IMAGE_FIELDS and not isinstance(value, Mapping):
        return convert(value)
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        return value
    if name in IMAGE_LISTS:
        return [convert(image) for image in value]
    if name in NESTED_IMAGE_FIELDS:
        return [map_images(entry, convert) if isinstance(entry, Mapping) else entry for entry in value]
    return value


def load_image(value: ImageInput) -> bytes | str:
    """Return the bytes of an image, or the text by which the service knows it.

    Raises:
        OSError: The file cannot be read.
        InvalidArgument: `value` is a URL, or a text that can be no path.
        NotAnImage: `value` is no image.
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
            return _read(fspath(value))
    if hasattr(value, "mode") and hasattr(value, "save"):
        buffer = BytesIO()
        value.save(buffer, "PNG")
        return buffer.getvalue()
    if hasattr(value, "read"):
        return value.read()
    raise NotAnImage(f"an image is bytes, a path, a binary file, a Pillow image or a reference, not {type(value)}")


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    # The path contains NUL.
    except ValueError as error:
        raise InvalidArgument(f"{path[:MAX_SHOWN]!r} is no path of a file: {error}") from None
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        message = f"{path[:MAX_SHOWN]!r}... is too long for the path of a file; base64 is given as a data: URI"
        raise InvalidArgument(message) from None


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
