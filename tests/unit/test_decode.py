"""Decoding of untrusted images, and fitting to a size."""

import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from io import BytesIO
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageChops, ImageCms, PngImagePlugin

from img2img.domain.parameters import Resize
from img2img.errors import ImageError, UnsupportedMedia
from img2img.imaging.decode import encode_png, fit
from img2img.imaging.sandbox_limits import SandboxLimits
from img2img.imaging.sandbox_pool import DecoderPool
from tests.support.images import encoded, gradient
from tests.support.invalid_images import BROKEN, MAX_PIXELS, OTHER_FILES, SIZE, chunk

DECODERS = DecoderPool(SandboxLimits(MAX_PIXELS, max_bytes=4_000_000))
RED, WHITE = (255, 0, 0), (255, 255, 255)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
# A profile with red and blue exchanged.
SWAPPED = SRGB.replace(b"rXYZ", b"?XYZ").replace(b"bXYZ", b"rXYZ").replace(b"?XYZ", b"bXYZ")


@pytest.fixture(scope="module", autouse=True)
def _decoders() -> Iterator[None]:
    yield
    DECODERS.close()


def decoded(data: bytes, size: tuple[int, int] = SIZE) -> Image.Image:
    """Return the image at the size of the job."""
    with DECODERS.open(data) as image:
        return image.fit(*size, Resize.CROP)


def difference(one: Image.Image, other: Image.Image) -> int:
    """Return the largest difference of any channel of any pixel."""
    return max(high for _, high in ImageChops.difference(one, other).getextrema())


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_supported_formats_are_decoded(kind: str) -> None:
    options = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
    result = decoded(encoded(gradient(*SIZE), kind, **options))
    assert (result.mode, result.size) == ("RGB", SIZE)
    assert difference(result, gradient(*SIZE)) <= (4 if kind == "JPEG" else 0)


@pytest.mark.parametrize("name", OTHER_FILES)
def test_other_formats_are_rejected(name: str) -> None:
    with pytest.raises(UnsupportedMedia, match="PNG, JPEG or WebP"), DECODERS.open(OTHER_FILES[name]()):
        pass


@pytest.mark.parametrize("name", BROKEN)
def test_broken_images_are_rejected_with_a_reason(name: str) -> None:
    make, reason = BROKEN[name]
    with pytest.raises(ImageError, match=reason):
        decoded(make())


def test_refused_type_is_named() -> None:
    with pytest.raises(UnsupportedMedia, match="a GIF file"), DECODERS.open(OTHER_FILES["gif"]()):
        pass
    with pytest.raises(UnsupportedMedia, match="a HEIC file"), DECODERS.open(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"):
        pass


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_data_after_the_image_are_ignored(kind: str) -> None:
    """As in motion photos, which end with a video."""
    data = encoded(gradient(*SIZE), kind)
    behind = b"<script>alert(1)</script>" + b"\xff\xda\0\2\xff\xd9\0\0\0\4IDAT" * 1000
    assert difference(decoded(data + behind), decoded(data)) == 0


def test_markers_inside_of_jpeg_segments_are_ignored() -> None:
    """As in thumbnails and content credentials."""
    data = encoded(gradient(*SIZE), "JPEG")
    segment = b"\xff\xeb\xff\xff" + (b"\xff\xda\xff\xd9" * 20_000)[:65_533]
    assert difference(decoded(data[:2] + segment * 3 + data[2:]), decoded(data)) == 0


JPEGS = {
    "baseline": {},
    "progressive": {"progressive": True},
    "restart markers": {"restart_marker_blocks": 2},
    "grey": {"grey": True},
}


@pytest.mark.parametrize("options", JPEGS.values(), ids=JPEGS)
@pytest.mark.parametrize("size", [SIZE, (24, 16)])
def test_jpeg_without_end_marker_is_decoded(options: dict[str, Any], size: tuple[int, int]) -> None:
    data = jpeg(**options)
    assert difference(decoded(data[:-2], size), decoded(data, size)) == 0
    assert difference(decoded(data[:-1], size), decoded(data, size)) == 0


@pytest.mark.parametrize("options", JPEGS.values(), ids=JPEGS)
def test_truncated_jpeg_is_refused_unless_all_pixels_are_there(options: dict[str, Any]) -> None:
    data = jpeg(**options)
    whole, refused = decoded(data), 0
    # Without its first bytes it is no JPEG file.
    for missing in (*range(1, 60), *range(60, len(data) - 16, 97)):
        try:
            assert difference(decoded(data[:-missing]), whole) == 0
        except ImageError:
            refused += 1
    assert refused > 50


@pytest.mark.parametrize("blocks", [1, 2, 5])
def test_jpeg_that_ends_before_a_restart_marker_is_refused(blocks: int) -> None:
    """A decoder finds no marker there, and adds grey blocks as behind the end."""
    data = jpeg(restart_marker_blocks=blocks)
    markers = [found.start() for found in re.finditer(rb"\xff[\xd0-\xd7]", data)]
    for at in (markers[0], markers[-1], *markers[7:60:7]):
        for end in (at, at + 1, at + 2):
            with pytest.raises(ImageError, match="end is missing"):
                decoded(data[:end])


def jpeg(*, grey: bool = False, **options: Any) -> bytes:
    noise = gradient(*SIZE)
    noise.paste(Image.effect_noise(SIZE, 60).convert("RGB"), (0, 40))
    return encoded(noise.convert("L") if grey else noise, "JPEG", **options)


def text(kind: bytes, size: int) -> bytes:
    """Return a PNG chunk of text, compressed if its kind allows it."""
    words = b"x" * size
    content = {
        b"tEXt": b"key\0" + words,
        b"zTXt": b"key\0\0" + zlib.compress(words),
        b"iTXt": b"key\0\1\0\0\0" + zlib.compress(words),
    }
    return chunk(kind, content[kind])


CHUNKS = {
    "long text": text(b"tEXt", 3_000_000),
    "compressed text": text(b"zTXt", 3_000_000),
    "international text": text(b"iTXt", 3_000_000),
    "text bomb": text(b"zTXt", 50_000_000) * 2,
    "XMP bomb": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(b"x" * 50_000_000)),
    "profile bomb": chunk(b"iCCP", b"p\0\0" + zlib.compress(b"x" * 50_000_000)),
    "broken text": chunk(b"iTXt", b"key"),
    "broken compression": chunk(b"zTXt", b"key\0\0nonsense"),
    "broken orientation": chunk(b"tEXt", b"Raw profile type exif\0\n\n\nnot hex"),
    "broken gamma": chunk(b"gAMA", b"\1"),
    "broken density": chunk(b"pHYs", b""),
    "private": chunk(b"prVt", b"data"),
}
WRONG_SUMS = {
    f"{kind.decode()} with a wrong checksum": chunk(kind, b"a\0b")[:-1] + b"?"
    for kind in (b"tEXt", b"eXIf", b"iCCP", b"tRNS", b"acTL", b"pHYs")
}


@pytest.mark.parametrize("extra", (CHUNKS | WRONG_SUMS).values(), ids=CHUNKS | WRONG_SUMS)
@pytest.mark.parametrize("at", [33, -12], ids=["before", "after"])
def test_metadata_of_a_png_are_no_reason_to_refuse_it(extra: bytes, at: int) -> None:
    plain = encoded(gradient(*SIZE))
    assert difference(decoded(plain[:at] + extra + plain[at:]), gradient(*SIZE)) == 0


def test_large_colour_profile_is_applied() -> None:
    padded = SWAPPED + bytes(2_000_000)
    padded = struct.pack(">I", len(padded)) + padded[4:]
    tagged = encoded(Image.new("RGB", SIZE, RED), icc_profile=padded)
    assert difference(decoded(tagged), Image.new("RGB", SIZE, "blue")) <= 2


def test_first_frame_of_an_mpo_is_decoded() -> None:
    data = encoded(Image.new("RGB", SIZE, RED), "MPO", save_all=True, append_images=[Image.new("RGB", SIZE)])
    assert difference(decoded(data), Image.new("RGB", SIZE, RED)) <= 4


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize(
    ("orientation", "undo"),
    [
        (2, Image.Transpose.FLIP_LEFT_RIGHT),
        (3, Image.Transpose.ROTATE_180),
        (4, Image.Transpose.FLIP_TOP_BOTTOM),
        (5, Image.Transpose.TRANSPOSE),
        (6, Image.Transpose.ROTATE_90),
        (7, Image.Transpose.TRANSVERSE),
        (8, Image.Transpose.ROTATE_270),
    ],
)
def test_exif_orientation_is_applied(kind: str, orientation: int, undo: Image.Transpose) -> None:
    upright = gradient(*SIZE)
    exif = Image.Exif()
    exif[0x0112] = orientation
    with DECODERS.open(encoded(upright.transpose(undo), kind, exif=exif.tobytes(), quality=95)) as result:
        assert result.size == SIZE
        assert difference(result.fit(*SIZE, Resize.CROP), upright) <= 6


def test_exif_after_the_pixels_of_a_png_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    plain = encoded(gradient(*SIZE).transpose(Image.Transpose.ROTATE_90))
    late = plain[:-12] + chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")) + plain[-12:]
    with DECODERS.open(late) as result:
        assert result.size == SIZE
        assert difference(result.fit(*SIZE, Resize.CROP), gradient(*SIZE)) == 0


def test_broken_exif_is_ignored() -> None:
    assert decoded(encoded(gradient(*SIZE), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")).size == SIZE


def test_sixteen_bit_values_are_scaled() -> None:
    grey = Image.frombytes("I;16", (256, 1), b"".join(struct.pack("<H", 257 * value) for value in range(256)))
    result = decoded(encoded(grey), (256, 1))
    assert [result.getpixel((x, 0)) for x in range(256)] == [(x, x, x) for x in range(256)]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB"])
def test_transparency_is_composited_over_white(mode: str) -> None:
    image = Image.new("RGBA", SIZE, (255, 0, 0, 255))
    image.paste((0, 255, 0, 0), (0, 0, 48, 64))  # green, but fully transparent
    options = {}
    if mode == "LA":
        image = image.convert("LA")
    if mode == "P":
        image = image.quantize(4)
    if mode == "RGB":  # one colour declared transparent
        image, options = image.convert("RGB"), {"transparency": (0, 255, 0)}
    result = decoded(encoded(image, **options))
    assert result.getpixel((5, 5)) == WHITE
    assert result.getpixel((90, 5)) == (RED if mode != "LA" else (76, 76, 76))


def test_half_transparency_is_blended_with_white() -> None:
    assert decoded(encoded(Image.new("RGBA", SIZE, (0, 0, 0, 128)))).getpixel((0, 0)) == (127, 127, 127)


def with_hole(image: Image.Image) -> Image.Image:
    holed = image.convert("RGBA")
    holed.paste((0, 0, 0, 0), (20, 20, 60, 50))
    return holed


def test_control_map_is_composited_over_black() -> None:
    strokes = Image.new("RGBA", SIZE, (255, 255, 255, 0))
    strokes.paste("white", (10, 10, 20, 40))
    with DECODERS.open(encoded(strokes)) as image:
        fitted = image.fit(*SIZE, Resize.CROP, is_map=True)
    assert fitted.getbbox() == (10, 10, 20, 40)


@pytest.mark.parametrize("image", [gradient(*SIZE), Image.new("RGB", SIZE, RED), Image.new("RGB", SIZE, "gray")])
def test_mask_with_transparency_and_colours_is_refused(image: Image.Image) -> None:
    with DECODERS.open(encoded(with_hole(image))) as mask, pytest.raises(ImageError, match="mask=alpha"):
        mask.luminance()


@pytest.mark.parametrize("colour", ["black", "white", (20, 9, 0), (255, 250, 240)])
def test_transparent_pixels_of_a_black_and_white_mask_are_black(colour: str | tuple[int, int, int]) -> None:
    with DECODERS.open(encoded(with_hole(Image.new("RGB", SIZE, colour)))) as mask:
        grey = mask.luminance()
    assert grey.getpixel((30, 30)) == 0
    assert (grey.getpixel((0, 0)) > 128) == (colour in ("white", (255, 250, 240)))


@pytest.mark.parametrize(
    ("mode", "kind", "red"),
    [
        ("CMYK", "JPEG", (0, 255, 255, 0)),
        ("L", "JPEG", 76),
        ("L", "PNG", 76),
        ("P", "PNG", None),
        ("1", "PNG", 1),
        ("RGB", "WEBP", RED),
    ],
)
def test_every_mode_is_converted_to_rgb(mode: str, kind: str, red: int | tuple[int, ...] | None) -> None:
    image = Image.new("RGB", SIZE, RED).quantize(2) if mode == "P" else Image.new(mode, SIZE, red)
    expected = {"L": (76, 76, 76), "1": WHITE}.get(mode, RED)
    assert difference(decoded(encoded(image, kind)), Image.new("RGB", SIZE, expected)) <= 2


def test_colour_profiles_are_converted_to_srgb() -> None:
    tagged = encoded(Image.new("RGB", SIZE, RED), icc_profile=SWAPPED)
    assert difference(decoded(tagged), Image.new("RGB", SIZE, "blue")) <= 2


@pytest.mark.parametrize("profile", [b"nonsense", ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()])
def test_unusable_profile_is_ignored(profile: bytes) -> None:
    assert difference(decoded(encoded(gradient(*SIZE), icc_profile=profile)), gradient(*SIZE)) == 0


def test_stored_png_has_no_metadata() -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("secret", "where I live")
    data = encoded(gradient(*SIZE), pnginfo=info, exif=Image.Exif().tobytes(), dpi=(72, 72))
    blob = encode_png(decoded(data))
    stored = Image.open(BytesIO(blob))
    assert (stored.format, stored.mode, stored.size, stored.info) == ("PNG", "RGB", SIZE, {})
    assert blob == encode_png(decoded(encoded(gradient(*SIZE))))


def test_large_jpeg_is_decoded_at_a_reduced_size() -> None:
    large = gradient(1600, 1200)
    result = decoded(encoded(large, "JPEG", quality=95), (160, 120))
    assert difference(result, fit(large, 160, 120, Resize.CROP)) <= 6


def test_crop_keeps_the_middle() -> None:
    image = Image.new("RGB", (300, 100), "blue")
    image.paste(RED, (100, 0, 200, 100))
    # Without the edges, as the Lanczos filter reads pixels beyond the crop.
    middle = fit(image, 64, 64, Resize.CROP).crop((2, 0, 62, 64))
    assert difference(middle, Image.new("RGB", (60, 64), RED)) <= 2


def test_pad_keeps_the_image_between_black_bars() -> None:
    padded = fit(Image.new("RGB", (200, 100), RED), 64, 64, Resize.PAD)
    assert padded.getpixel((32, 15)) == (0, 0, 0)
    assert padded.crop((0, 16, 64, 48)).getcolors() == [(64 * 32, RED)]
    assert padded.getpixel((32, 48)) == (0, 0, 0)


def test_stretch_scales_each_side() -> None:
    image = Image.new("RGB", (100, 50), "blue")
    image.paste(RED, (0, 0, 50, 50))
    stretched = fit(image, 64, 64, Resize.STRETCH)
    assert (stretched.getpixel((4, 4)), stretched.getpixel((60, 60))) == (RED, (0, 0, 255))


@settings(max_examples=150, deadline=None)
@given(
    source=st.tuples(st.integers(1, 400), st.integers(1, 400)),
    target=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    resize=st.sampled_from(Resize),
)
def test_fit_returns_the_exact_size_without_new_colours(
    source: tuple[int, int], target: tuple[int, int], resize: Resize
) -> None:
    fitted = fit(Image.new("RGB", source, RED), *target, resize)
    assert (fitted.mode, fitted.size) == ("RGB", target)
    colours = {colour for _, colour in fitted.getcolors() or []}
    assert RED in colours
    assert colours <= ({RED, (0, 0, 0)} if resize is Resize.PAD else {RED})


@settings(max_examples=100, deadline=None)
@given(
    st.binary(max_size=300), st.sampled_from(["", "PNG", "JPEG", "WEBP"]), st.integers(0, 400), st.binary(max_size=8)
)
def test_any_bytes_are_decoded_or_rejected(noise: bytes, kind: str, at: int, patch: bytes) -> None:
    data = noise
    if kind:
        whole = encoded(gradient(48, 32), kind)
        data = whole[:at] + patch + whole[at + len(patch) :]
    with suppress(ImageError, UnsupportedMedia):
        assert decoded(data).size == SIZE
