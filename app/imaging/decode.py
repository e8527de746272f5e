"""Decodes untrusted images: bytes to upright RGB pixels of the size that the model sees.

`EncodedImage` is for decoder processes, which may crash. The API server opens images through `sandbox_pool`.
"""

import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from itertools import chain

from PIL import Image, ImageChops, ImageCms, ImageOps, UnidentifiedImageError

from img2img.domain.parameters import Resize
from img2img.png import UP_FILTER, png_file

from ..http.errors import ImageError, UnsupportedMedia
from .parts import check_parts

MAGIC = {b"\x89PNG\r\n\x1a\n": "PNG", b"\xff\xd8\xff": "JPEG"}
SRGB = ImageCms.createProfile("sRGB")
# A progressive JPEG has about ten scans. Each takes a few bytes and costs a pass over the image.
MAX_SCANS = 64
# The largest side of a JPEG.
MAX_SIDE = 65_535
# Images are first reduced by a whole factor to no less than this times the size, then resized with a better filter.
REDUCING_GAP = 3.0
# EXIF orientations in which the stored height is the width of the upright image.
SIDEWAYS = range(5, 9)
# Chunks of a PNG that can hold an orientation. Pillow decodes the whole image to find those behind the pixels.
PNG_ORIENTATIONS = (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp")

# Pillow's limit warns at one size and raises at another. `max_pixels` is checked before anything is decoded.
Image.MAX_IMAGE_PIXELS = None


class EncodedImage:
    """An untrusted image, of which the headers are read."""

    def __init__(self, data: bytes, max_pixels: int) -> None:
        """Raises UnsupportedMedia or ImageError."""
        kind = _format(data)
        if kind == "JPEG" and data.count(b"\xff\xda") > MAX_SCANS:
            raise ImageError(f"The JPEG image has more than {MAX_SCANS} scans.")
        check_parts(kind, data)
        try:
            self._image = Image.open(BytesIO(data), formats=(kind,))
            width, height = self._image.size
            if width * height > max_pixels:
                raise ImageError(f"The image has {width} x {height} pixels; at most {max_pixels:,} are accepted.")
            if max(width, height) > MAX_SIDE:
                raise ImageError(f"The image has {width} x {height} pixels; a side may have at most {MAX_SIDE:,}.")
            # Of a JPEG with several frames (MPO) the first one is used.
            if kind != "JPEG" and getattr(self._image, "n_frames", 1) > 1:
                raise ImageError("The image is animated; send one frame.")
            is_oriented = kind != "PNG" or any(mark in data for mark in PNG_ORIENTATIONS)
            self._sideways = is_oriented and self._image.getexif().get(0x0112) in SIDEWAYS
        except (ImageError, MemoryError):
            raise
        # Pillow raises many kinds of exceptions for a broken file.
        except Exception as error:
            raise _unreadable(kind, error) from None
        self._kind = kind
        self._data = data

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the upright image."""
        width, height = self._image.size
        return (height, width) if self._sideways else (width, height)

    def check(self) -> None:
        """Decode the image without using the result. Raises ImageError or MemoryError."""
        try:
            self._load()
        except (ImageError, MemoryError):
            raise
        except Exception as error:
            raise _unreadable(self._kind, error) from None

    def fit(self, width: int, height: int, resize: Resize) -> Image.Image:
        """Return the image brought to a size, in RGB. Raises ImageError."""
        # libjpeg can decode at 1/2, 1/4 or 1/8. Like Pillow's thumbnail(), at no less than twice the size.
        needed = (2 * height, 2 * width) if self._sideways else (2 * width, 2 * height)
        image = self._decoded(needed, lambda image: to_rgb(_reduced(image, width, height)))
        return fit(image, width, height, resize)

    def rgb(self) -> Image.Image:
        """Return the whole image in RGB. Raises ImageError."""
        return self._decoded(None, to_rgb)

    def luminance(self) -> Image.Image:
        """Return the whole image in grey, transparent pixels black. Raises ImageError."""
        return self._decoded(None, to_luminance)

    def transparency(self) -> Image.Image:
        """Return a mask: white where the image is transparent, black where it is opaque. Raises ImageError."""
        return self._decoded(None, to_transparency)

    def _load(self) -> None:
        if self._kind == "PNG":
            _check_sums(self._data)
        self._image.load()

    def _decoded(self, needed: tuple[int, int] | None, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
        try:
            if needed:
                self._image.draft(None, needed)
            self._load()
            # In place: the copy of an image that is upright already would take as long as shrinking it.
            ImageOps.exif_transpose(self._image, in_place=True)
            return convert(self._image)
        except (ImageError, MemoryError):
            raise
        except Exception as error:
            raise _unreadable(self._kind, error) from None


def _format(data: bytes) -> str:
    for magic, kind in MAGIC.items():
        if data.startswith(magic):
            return kind
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    raise UnsupportedMedia


def _check_sums(png: bytes) -> None:
    """Check the checksums of the critical chunks: Pillow ignores those of the pixels. Raises ImageError."""
    view, at = memoryview(png), 8
    while at + 12 <= len(png):
        size, kind = struct.unpack_from(">I4s", png, at)
        end = at + 12 + size
        is_needed = kind[:1].isupper()
        if (
            is_needed
            and end <= len(png)
            and view[end - 4 : end] != struct.pack(">I", zlib.crc32(view[at + 4 : end - 4]))
        ):
            raise ImageError("The PNG image is broken: a checksum is wrong.")
        at = end if kind != b"IEND" else len(png)


def _unreadable(kind: str, error: Exception) -> ImageError:
    reason = "" if isinstance(error, UnidentifiedImageError) else f": {error}"
    return ImageError(f"The {kind} image is broken{reason}.")


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert to 8-bit sRGB: 16 bits are scaled, alpha is blended over white, a colour profile is applied."""
    if image.mode == "I;16":
        image = _to_8_bit(image)
    elif image.has_transparency_data:
        icc_profile = image.info.get("icc_profile")
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
        image.info["icc_profile"] = icc_profile
    elif image.mode not in ("RGB", "L", "CMYK"):
        image = image.convert("RGB")
    return _to_srgb(image).convert("RGB")


def _reduced(image: Image.Image, width: int, height: int) -> Image.Image:
    """Return an image with transparency or in CMYK at no less than REDUCING_GAP times a size, if it is larger.

    Blending and colour conversion take longer than shrinking. Other modes are left to `fit`.
    """
    factor = int(min(image.width / width, image.height / height) / REDUCING_GAP)
    if factor < 2 or not (image.mode == "CMYK" or image.has_transparency_data):
        return image
    icc_profile = image.info.get("icc_profile")
    reduced = (image if image.mode == "CMYK" else image.convert("RGBA")).reduce(factor)
    reduced.info["icc_profile"] = icc_profile
    return reduced


def _to_8_bit(image: Image.Image) -> Image.Image:
    """Convert 16-bit grey. Pillow's convert() would clip everything above 255 to white."""
    return image.point(lambda value: value * (1 / 256)).convert("L")


def to_luminance(image: Image.Image) -> Image.Image:
    """Convert to 8-bit grey. Alpha is blended over black."""
    if image.mode == "I;16":
        return _to_8_bit(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image)
    return image.convert("L")


def to_transparency(image: Image.Image) -> Image.Image:
    """Return 8-bit grey that is white where the image is transparent."""
    if not image.has_transparency_data:
        return Image.new("L", image.size)
    return ImageChops.invert(image.convert("RGBA").getchannel("A"))


def _to_srgb(image: Image.Image) -> Image.Image:
    profile = image.info.get("icc_profile")
    if not profile:
        return image
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        return ImageCms.profileToProfile(image, source, SRGB, outputMode="RGB") or image
    # The profile is broken or for other channels.
    except (ImageCms.PyCMSError, OSError, ValueError):
        return image


def fit(image: Image.Image, width: int, height: int, resize: Resize) -> Image.Image:
    """Return the image at exactly width x height."""
    size = (width, height)
    if image.size == size:
        return image
    if resize is Resize.STRETCH:
        return image.resize(size, Image.Resampling.LANCZOS, reducing_gap=REDUCING_GAP)
    ratios = (width / image.width, height / image.height)
    if resize is Resize.CROP:
        scale = max(ratios)
        left = max(0.0, image.width - width / scale) / 2
        top = max(0.0, image.height - height / scale) / 2
        box = (left, top, image.width - left, image.height - top)
        return image.resize(size, Image.Resampling.LANCZOS, box=box, reducing_gap=REDUCING_GAP)
    scale = min(ratios)
    inner = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    canvas = Image.new(image.mode, size)
    shrunk = image.resize(inner, Image.Resampling.LANCZOS, reducing_gap=REDUCING_GAP)
    canvas.paste(shrunk, ((width - inner[0]) // 2, (height - inner[1]) // 2))
    return canvas


def encode_png(image: Image.Image) -> bytes:
    """Encode the pixels of an image in RGB or grey, without metadata."""
    width, height = image.size
    rows = ImageChops.subtract_modulo(image, ImageChops.offset(image, 0, 1))
    # The row above the first one counts as zeros.
    rows.paste(image.crop((0, 0, width, 1)))
    pixels, channels = memoryview(rows.tobytes()), len(image.getbands())
    stride, filter_type = width * channels, bytes([UP_FILTER])
    parts = ((filter_type, pixels[at : at + stride]) for at in range(0, len(pixels), stride))
    return png_file(width, height, channels, b"".join(chain.from_iterable(parts)))
