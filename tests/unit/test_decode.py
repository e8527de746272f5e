"""What comes in as a picture, and what the model sees of it."""

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


def seen(data: bytes, size: tuple[int, int] = SIZE) -> Image.Image:
    """The picture as the model sees it."""
    with DECODERS.open(data) as image:
        return image.fit(*size, Resize.CROP)


def difference(one: Image.Image, other: Image.Image) -> int:
    """The largest difference of any channel of any pixel."""
    return max(high for _, high in ImageChops.difference(one, other).getextrema())


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_the_three_formats_are_taken(kind: str) -> None:
    options = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
    picture = seen(encoded(gradient(*SIZE), kind, **options))
    assert (picture.mode, picture.size) == ("RGB", SIZE)
    assert difference(picture, gradient(*SIZE)) <= (4 if kind == "JPEG" else 0)


@pytest.mark.parametrize("name", OTHER_FILES)
def test_other_files_are_unsupported(name: str) -> None:
    with pytest.raises(UnsupportedMedia, match="PNG, JPEG or WebP"), DECODERS.open(OTHER_FILES[name]()):
        pass


@pytest.mark.parametrize("name", BROKEN)
def test_broken_pictures_are_refused_by_name(name: str) -> None:
    make, reason = BROKEN[name]
    with pytest.raises(ImageError, match=reason):
        seen(make())


def test_only_the_pixels_of_a_polyglot_count() -> None:
    picture = seen(encoded(gradient(*SIZE)) + b"<script>alert(1)</script>")
    assert difference(picture, gradient(*SIZE)) == 0


def test_the_first_frame_of_an_mpo_is_taken() -> None:
    data = encoded(Image.new("RGB", SIZE, RED), "MPO", save_all=True, append_images=[Image.new("RGB", SIZE)])
    assert difference(seen(data), Image.new("RGB", SIZE, RED)) <= 4


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
def test_pictures_are_turned_upright(kind: str, orientation: int, undo: Image.Transpose) -> None:
    upright = gradient(*SIZE)
    exif = Image.Exif()
    exif[0x0112] = orientation
    with DECODERS.open(encoded(upright.transpose(undo), kind, exif=exif.tobytes(), quality=95)) as picture:
        assert picture.size == SIZE
        assert difference(picture.fit(*SIZE, Resize.CROP), upright) <= 6


def test_a_png_may_say_how_it_lies_behind_its_pixels() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    plain = encoded(gradient(*SIZE).transpose(Image.Transpose.ROTATE_90))
    late = plain[:-12] + chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")) + plain[-12:]
    with DECODERS.open(late) as picture:
        assert picture.size == SIZE
        assert difference(picture.fit(*SIZE, Resize.CROP), gradient(*SIZE)) == 0


def test_a_broken_exif_block_is_no_reason_to_refuse() -> None:
    assert seen(encoded(gradient(*SIZE), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")).size == SIZE


def test_sixteen_bits_are_scaled_and_not_clipped() -> None:
    grey = Image.frombytes("I;16", (256, 1), b"".join(struct.pack("<H", 257 * value) for value in range(256)))
    picture = seen(encoded(grey), (256, 1))
    assert [picture.getpixel((x, 0)) for x in range(256)] == [(x, x, x) for x in range(256)]


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
    picture = seen(encoded(image, **options))
    assert picture.getpixel((5, 5)) == WHITE
    assert picture.getpixel((90, 5)) == (RED if mode != "LA" else (76, 76, 76))


def test_half_transparency_is_half_white() -> None:
    assert seen(encoded(Image.new("RGBA", SIZE, (0, 0, 0, 128)))).getpixel((0, 0)) == (127, 127, 127)


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
def test_every_mode_becomes_rgb(mode: str, kind: str, red: int | tuple[int, ...] | None) -> None:
    image = Image.new("RGB", SIZE, RED).quantize(2) if mode == "P" else Image.new(mode, SIZE, red)
    expected = {"L": (76, 76, 76), "1": WHITE}.get(mode, RED)
    assert difference(seen(encoded(image, kind)), Image.new("RGB", SIZE, expected)) <= 2


def test_colour_profiles_are_converted_to_srgb() -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = srgb.replace(b"rXYZ", b"?XYZ").replace(b"bXYZ", b"rXYZ").replace(b"?XYZ", b"bXYZ")  # red is blue there
    tagged = encoded(Image.new("RGB", SIZE, RED), icc_profile=swapped)
    assert difference(seen(tagged), Image.new("RGB", SIZE, "blue")) <= 2


@pytest.mark.parametrize("profile", [b"nonsense", ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()])
def test_a_profile_that_does_not_fit_is_ignored(profile: bytes) -> None:
    assert difference(seen(encoded(gradient(*SIZE), icc_profile=profile)), gradient(*SIZE)) == 0


def test_the_blob_is_pixels_and_nothing_else() -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("secret", "where I live")
    data = encoded(gradient(*SIZE), pnginfo=info, exif=Image.Exif().tobytes(), dpi=(72, 72))
    blob = encode_png(seen(data))
    stored = Image.open(BytesIO(blob))
    assert (stored.format, stored.mode, stored.size, stored.info) == ("PNG", "RGB", SIZE, {})
    assert blob == encode_png(seen(encoded(gradient(*SIZE))))


def test_a_large_jpeg_is_decoded_at_a_fraction() -> None:
    large = gradient(1600, 1200)
    picture = seen(encoded(large, "JPEG", quality=95), (160, 120))
    assert difference(picture, fit(large, 160, 120, Resize.CROP)) <= 6


def test_crop_keeps_the_middle() -> None:
    image = Image.new("RGB", (300, 100), "blue")
    image.paste(RED, (100, 0, 200, 100))
    middle = fit(image, 64, 64, Resize.CROP).crop((2, 0, 62, 64))  # Lanczos sees a little beyond the cut
    assert difference(middle, Image.new("RGB", (60, 64), RED)) <= 2


def test_pad_keeps_everything_between_black_bars() -> None:
    padded = fit(Image.new("RGB", (200, 100), RED), 64, 64, Resize.PAD)
    assert padded.getpixel((32, 15)) == (0, 0, 0)
    assert padded.crop((0, 16, 64, 48)).getcolors() == [(64 * 32, RED)]
    assert padded.getpixel((32, 48)) == (0, 0, 0)


def test_stretch_keeps_everything_and_fills_everything() -> None:
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
def test_fit_gives_exactly_the_size_and_no_colour_that_was_not_there(
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
def test_no_bytes_do_more_than_be_refused(noise: bytes, kind: str, at: int, patch: bytes) -> None:
    data = noise
    if kind:
        whole = encoded(gradient(48, 32), kind)
        data = whole[:at] + patch + whole[at + len(patch) :]
    with suppress(ImageError, UnsupportedMedia):
        assert seen(data).size == SIZE
