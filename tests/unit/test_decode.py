"""Decoding of untrusted images, and fitting to a size."""

import struct
from collections.abc import Iterator
from contextlib import suppress
from io import BytesIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageChops, ImageCms, PngImagePlugin

from img2img.app.http.errors import ImageError, UnsupportedMedia
from img2img.app.imaging.decode import encode_png, fit
from img2img.app.imaging.sandbox_limits import SandboxLimits
from img2img.app.imaging.sandbox_pool import DecoderPool
from img2img.domain.parameters import Resize
from tests.support.images import encoded, gradient
from tests.support.invalid_images import BROKEN, MAX_PIXELS, OTHER_FILES, SIZE, chunk

DECODERS = DecoderPool(SandboxLimits(MAX_PIXELS, max_bytes=4_000_000))
RED, WHITE = (255, 0, 0), (255, 255, 255)


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


def test_data_after_the_image_is_ignored() -> None:
    result = decoded(encoded(gradient(*SIZE)) + b"<script>alert(1)</script>")
    assert difference(result, gradient(*SIZE)) == 0


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
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    # A profile with red and blue exchanged.
    swapped = srgb.replace(b"rXYZ", b"?XYZ").replace(b"bXYZ", b"rXYZ").replace(b"?XYZ", b"bXYZ")
    tagged = encoded(Image.new("RGB", SIZE, RED), icc_profile=swapped)
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
