"""Untrusted bytes -> checked, upright RGB pixels of exactly the size that the model will see.

`Upload` is for a process that may die of what it reads: the front end opens pictures by `app.decoding`.
"""

import struct
import zlib
from collections.abc import Callable
from io import BytesIO

from PIL import Image, ImageChops, ImageCms, ImageOps, UnidentifiedImageError

from img2img.domain.parameters import Resize

from ..http.errors import ImageError, UnsupportedMedia

MAGIC = {b"\x89PNG\r\n\x1a\n": "PNG", b"\xff\xd8\xff": "JPEG"}
SRGB = ImageCms.createProfile("sRGB")
MAX_SCANS = 64  # of a progressive JPEG, which has about ten; each costs a pass over the picture, and a few bytes
MAX_SIDE = 65_535  # what a JPEG can have; a thread of pixels is no picture
SIDEWAYS = range(5, 9)  # EXIF orientations whose upright width is the stored height
PNG_TURNS = (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp")  # may stand behind the pixels: Pillow decodes all

# Pillow's own guard warns at one size and raises at another; `max_pixels` is checked here before anything is decoded.
Image.MAX_IMAGE_PIXELS = None


class EncodedImage:
    """A picture that a client sent: looked at, not yet decoded."""

    def __init__(self, data: bytes, max_pixels: int) -> None:
        """Raises UnsupportedMedia or PictureError."""
        kind = _format(data)
        if kind == "JPEG" and data.count(b"\xff\xda") > MAX_SCANS:
            raise ImageError(f"The JPEG picture has more than {MAX_SCANS} scans.")
        try:
            self._image = Image.open(BytesIO(data), formats=(kind,))
            width, height = self._image.size
            if width * height > max_pixels:
                raise ImageError(f"The picture has {width} x {height} pixels; at most {max_pixels:,} are taken.")
            if max(width, height) > MAX_SIDE:
                raise ImageError(f"The picture has {width} x {height} pixels; a side may have {MAX_SIDE:,}.")
            if kind != "JPEG" and getattr(self._image, "n_frames", 1) > 1:  # a JPEG with more frames is MPO: the first
                raise ImageError("The picture is animated; send one frame.")
            turns = kind != "PNG" or any(mark in data for mark in PNG_TURNS)
            self._sideways = turns and self._image.getexif().get(0x0112) in SIDEWAYS
        except (ImageError, MemoryError):
            raise
        except Exception as error:  # Pillow raises nearly anything on a broken file
            raise _unreadable(kind, error) from None
        self._kind = kind
        self._data = data

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the upright picture."""
        width, height = self._image.size
        return (height, width) if self._sideways else (width, height)

    def check(self) -> None:
        """Decodes the picture for nothing but to see that it can be. Raises PictureError or MemoryError."""
        try:
            self._load()
        except (ImageError, MemoryError):
            raise
        except Exception as error:
            raise _unreadable(self._kind, error) from None

    def fit(self, width: int, height: int, resize: Resize) -> Image.Image:
        """Decodes the picture and brings it to a size, in RGB. Raises PictureError."""
        # libjpeg can decode at 1/2, 1/4 or 1/8: down to twice the size, as Pillow's thumbnail() does.
        needed = (2 * height, 2 * width) if self._sideways else (2 * width, 2 * height)
        return fit(self._decoded(needed, to_rgb), width, height, resize)

    def rgb(self) -> Image.Image:
        """The whole picture in RGB. Raises PictureError."""
        return self._decoded(None, to_rgb)

    def luminance(self) -> Image.Image:
        """The whole picture in grey, transparent parts black. Raises PictureError."""
        return self._decoded(None, to_luminance)

    def transparency(self) -> Image.Image:
        """White where the picture is transparent, black where it is opaque. Raises PictureError."""
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
            return convert(ImageOps.exif_transpose(self._image))
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


def _check_sums(encode_png: bytes) -> None:
    """Of the parts that a PNG cannot do without; Pillow does not look at those of the pixels. Raises PictureError."""
    view, at = memoryview(encode_png), 8
    while at + 12 <= len(encode_png):
        size, kind = struct.unpack_from(">I4s", encode_png, at)
        end = at + 12 + size
        is_needed = kind[:1].isupper()
        if (
            is_needed
            and end <= len(encode_png)
            and view[end - 4 : end] != struct.pack(">I", zlib.crc32(view[at + 4 : end - 4]))
        ):
            raise ImageError("The PNG picture is broken: a checksum is wrong.")
        at = end if kind != b"IEND" else len(encode_png)


def _unreadable(kind: str, error: Exception) -> ImageError:
    reason = "" if isinstance(error, UnidentifiedImageError) else f": {error}"
    return ImageError(f"The {kind} picture is broken{reason}.")


def to_rgb(image: Image.Image) -> Image.Image:
    """8-bit sRGB: 16-bit scaled, alpha over white, colour profile applied."""
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


def _to_8_bit(image: Image.Image) -> Image.Image:
    """Of 16-bit grey, for which convert() would clip everything above 255 to white."""
    return image.point(lambda value: value * (1 / 256)).convert("L")


def to_luminance(image: Image.Image) -> Image.Image:
    """8-bit grey, over black where it is transparent."""
    if image.mode == "I;16":
        return _to_8_bit(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image)
    return image.convert("L")


def to_transparency(image: Image.Image) -> Image.Image:
    """8-bit grey: white where the picture is transparent."""
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
    except (ImageCms.PyCMSError, OSError, ValueError):  # a profile that is broken or for other channels
        return image


def fit(image: Image.Image, width: int, height: int, resize: Resize) -> Image.Image:
    """The picture at exactly width x height."""
    size = (width, height)
    if image.size == size:
        return image
    if resize is Resize.STRETCH:
        return image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
    ratios = (width / image.width, height / image.height)
    if resize is Resize.CROP:
        scale = max(ratios)
        left = max(0.0, image.width - width / scale) / 2
        top = max(0.0, image.height - height / scale) / 2
        box = (left, top, image.width - left, image.height - top)
        return image.resize(size, Image.Resampling.LANCZOS, box=box, reducing_gap=3.0)
    scale = min(ratios)
    inner = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    canvas = Image.new(image.mode, size)
    shrunk = image.resize(inner, Image.Resampling.LANCZOS, reducing_gap=3.0)
    canvas.paste(shrunk, ((width - inner[0]) // 2, (height - inner[1]) // 2))
    return canvas


def encode_png(image: Image.Image) -> bytes:
    """A PNG of the pixels and nothing else, quickly: run lengths are nearly all there is to find in filtered pixels."""
    buffer = BytesIO()
    image.info = {}
    image.save(buffer, "PNG", compress_level=1, compress_type=zlib.Z_RLE)
    return buffer.getvalue()
