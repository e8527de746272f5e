"""Decodes untrusted images: bytes to upright RGB pixels of the size that the model sees.

`EncodedImage` is for decoder processes, which may crash. The API server opens images through `sandbox_pool`.
"""

from collections.abc import Callable
from io import BytesIO
from itertools import chain

from PIL import Image, ImageChops, ImageCms, ImageOps, UnidentifiedImageError

from img2img.domain.parameters import Resize
from img2img.errors import ImageError
from img2img.imaging import jpeg, png
from img2img.imaging.file_types import identify
from img2img.imaging.parts import check_parts
from img2img.png import UP_FILTER, png_file

SRGB = ImageCms.createProfile("sRGB")
# A progressive JPEG has about ten scans. Each takes a few bytes and costs a pass over the image.
MAX_SCANS = 64
# The largest side of a JPEG.
MAX_SIDE = 65_535
# Images are first reduced by a whole factor to no less than this times the size, then resized with a better filter.
REDUCING_GAP = 3.0
# EXIF orientations in which the stored height is the width of the upright image.
SIDEWAYS = range(5, 9)
# Inserted where the end marker of a JPEG is missing: pixels that change with them were not in the file. The first bits
# of the first differ from those that a decoder adds itself.
FILLERS = (b"\xfe" * 1000, b"\xa5\x3c" * 500, b"\x5a\xc3" * 500)
# The smallest and the largest value of all channels in the black and the white part of a mask.
MASK_BLACK, MASK_WHITE = 32, 223
# Share of the visible pixels of a mask with transparency that may have other colours.
MASK_COLOURED = 0.01

# Pillow's limit warns at one size and raises at another. `max_pixels` is checked before anything is decoded.
Image.MAX_IMAGE_PIXELS = None


class EncodedImage:
    """An untrusted image, of which the headers are read."""

    def __init__(self, data: bytes, max_pixels: int) -> None:
        """Raises UnsupportedMedia or ImageError."""
        kind = identify(data)
        check_parts(kind, data)
        # Whether the pixels of a JPEG without an end marker have to be checked.
        self._may_be_truncated = False
        is_oriented = True
        if kind == "PNG":
            data, is_oriented = png.without_metadata(data)
        elif kind == "JPEG":
            structure = jpeg.parse(data)
            if structure.segments > jpeg.MAX_SEGMENTS:
                raise ImageError(f"The JPEG image has more than {jpeg.MAX_SEGMENTS:,} segments.")
            if structure.scans > MAX_SCANS:
                raise ImageError(f"The JPEG image has more than {MAX_SCANS} scans.")
            self._may_be_truncated = structure.end is None
            if structure.end is None and not structure.has_all_scans:
                raise ImageError("The JPEG image is broken: its end is missing.")
            data = data[: structure.end] if structure.end else data.rstrip(b"\xff") + jpeg.END
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
            self._sideways = is_oriented and _orientation(self._image) in SIDEWAYS
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

    def fit(self, width: int, height: int, resize: Resize, *, is_map: bool = False) -> Image.Image:
        """Return the image, or the control map, brought to a size, in RGB. Raises ImageError."""
        # libjpeg can decode at 1/2, 1/4 or 1/8. Like Pillow's thumbnail(), at no less than twice the size.
        needed = (2 * height, 2 * width) if self._sideways else (2 * width, 2 * height)
        if is_map:
            return fit(self._decoded(needed, to_map), width, height, resize)
        return fit(self._decoded(needed, lambda image: to_rgb(_reduced(image, width, height))), width, height, resize)

    def rgb(self) -> Image.Image:
        """Return the whole image in RGB. Raises ImageError."""
        return self._decoded(None, to_rgb)

    def luminance(self) -> Image.Image:
        """Return the whole image in grey, transparent pixels black. Raises ImageError."""
        return self._decoded(None, to_luminance)

    def transparency(self) -> Image.Image:
        """Return a mask: white where the image is transparent, black where it is opaque. Raises ImageError."""
        return self._decoded(None, to_transparency)

    def _load(self, needed: tuple[int, int] | None = None) -> None:
        if self._kind == "PNG":
            png.check_sums(self._data)
        if needed:
            self._image.draft(None, needed)
        self._image.load()
        if self._may_be_truncated:
            self._check_end(needed)

    def _check_end(self, needed: tuple[int, int] | None) -> None:
        """Raise ImageError if there are pixels that depend on bytes behind the end of a JPEG without end marker."""
        pixels = self._image.tobytes()
        data = self._data.removesuffix(jpeg.END)
        # Data between restart markers may end where a marker is missing.
        restart = jpeg.next_restart_marker(data)
        for filler in (*FILLERS, *(restart + filler for filler in FILLERS)):
            filled = BytesIO(data + filler + jpeg.END)
            with Image.open(filled, formats=("JPEG",)) as other:
                if needed:
                    other.draft(None, needed)
                if other.tobytes() != pixels:
                    raise ImageError("The JPEG image is broken: its end is missing.")

    def _decoded(self, needed: tuple[int, int] | None, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
        try:
            self._load(needed)
            # In place: the copy of an image that is upright already would take as long as shrinking it.
            ImageOps.exif_transpose(self._image, in_place=True)
            return convert(self._image)
        except (ImageError, MemoryError):
            raise
        except Exception as error:
            raise _unreadable(self._kind, error) from None


def _orientation(image: Image.Image) -> int | None:
    """Return the EXIF orientation, if it can be read. Broken metadata is no reason to refuse an image."""
    try:
        return image.getexif().get(0x0112)
    except MemoryError:
        raise
    except Exception:
        return None


def _unreadable(kind: str, error: Exception) -> ImageError:
    reason = ": its header cannot be read" if isinstance(error, UnidentifiedImageError) else f": {error}"
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
    """Convert a mask to 8-bit grey. Alpha is blended over black.

    Raises ImageError for a mask with transparent pixels and colours, of which either could be meant.
    """
    if image.mode == "I;16":
        return _to_8_bit(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        _check_mask_with_transparency(image)
        image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image)
    return image.convert("L")


def _check_mask_with_transparency(mask: Image.Image) -> None:
    red, green, blue, alpha = mask.split()
    if alpha.getextrema()[0] == 255:
        return
    visible = to_binary(alpha)
    lowest = ImageChops.darker(ImageChops.darker(red, green), blue)
    highest = ImageChops.lighter(ImageChops.lighter(red, green), blue)
    is_black = highest.point(lambda value: 255 * (value < MASK_BLACK))
    is_white = lowest.point(lambda value: 255 * (value > MASK_WHITE))
    coloured = ImageChops.darker(visible, ImageChops.invert(ImageChops.lighter(is_black, is_white)))
    if coloured.histogram()[255] > MASK_COLOURED * visible.histogram()[255]:
        raise ImageError(
            "The mask has transparent pixels and colours, so it is not clear which part is meant. For its white part, "
            "send it without transparency. For its transparent part, send this file as `image`, with `mask=alpha`."
        )


def to_map(image: Image.Image) -> Image.Image:
    """Convert a control map to 8-bit RGB. Alpha is blended over black: published maps are light on black."""
    if image.mode == "I;16" or not image.has_transparency_data:
        return to_rgb(image)
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "black"), image).convert("RGB")


def to_binary(mask: Image.Image) -> Image.Image:
    """Return the mask in black and white: grey counts as white from 128 on."""
    return mask.point(lambda value: 255 * (value >= 128))


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


def fit(
    image: Image.Image,
    width: int,
    height: int,
    resize: Resize,
    resample: Image.Resampling = Image.Resampling.LANCZOS,
) -> Image.Image:
    """Return the image at exactly width x height."""
    size = (width, height)
    if image.size == size:
        return image
    if resize is Resize.STRETCH:
        return image.resize(size, resample, reducing_gap=REDUCING_GAP)
    ratios = (width / image.width, height / image.height)
    if resize is Resize.CROP:
        scale = max(ratios)
        left = max(0.0, image.width - width / scale) / 2
        top = max(0.0, image.height - height / scale) / 2
        box = (left, top, image.width - left, image.height - top)
        return image.resize(size, resample, box=box, reducing_gap=REDUCING_GAP)
    scale = min(ratios)
    inner = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    canvas = Image.new(image.mode, size)
    shrunk = image.resize(inner, resample, reducing_gap=REDUCING_GAP)
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
