"""The PNG encoder against an independent decoder, and the texts of other PNGs."""

import io
import json
import time
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from img2img.imaging.png import SIGNATURE, read_texts, without_metadata
from img2img.worker.images.png import decode_png, encode_png
from tests.support.invalid_images import chunk


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1))
@settings(max_examples=50)
def test_pillow_reads_back_every_pixel(width: int, height: int, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    with Image.open(io.BytesIO(encode_png(pixels, {}))) as image:
        image.verify()
    with Image.open(io.BytesIO(encode_png(pixels, {}))) as image:
        assert image.mode == "RGB"
        assert np.array_equal(np.asarray(image), pixels)


def test_parameters_are_stored_unchanged() -> None:
    parameters = {"prompt": 'a häuschen 家 \n "quoted"', "seed": 2**63 - 1, "strength": 0.1}
    with Image.open(io.BytesIO(encode_png(np.zeros((2, 2, 3), np.uint8), parameters))) as image:
        assert json.loads(image.text["img2img"]) == parameters


def test_equal_pixels_and_parameters_give_equal_bytes() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    assert encode_png(pixels, {"a": 1, "b": 2}) == encode_png(pixels, {"b": 2, "a": 1})


@pytest.mark.parametrize(("mode", "expected_mode"), [("RGB", "RGB"), ("L", "L"), ("P", "RGB")])
def test_decode_png_returns_grey_or_rgb(mode: str, expected_mode: str) -> None:
    file = io.BytesIO()
    Image.new(mode, (5, 3)).save(file, "PNG")
    image = decode_png(file.getvalue())
    assert (image.mode, image.size) == (expected_mode, (5, 3))


@pytest.mark.parametrize("text", ["a h\xe4uschen\nSteps: 1", "\u5bb6, \U0001f3e0", ""])
def test_parameters_for_other_software_are_stored(text: str) -> None:
    with Image.open(io.BytesIO(encode_png(np.zeros((2, 2, 3), np.uint8), {}, text))) as image:
        assert image.text["parameters"] == text


def broken_stream(size: int) -> bytes:
    """Return a zlib stream of `size` bytes that ends in an invalid block."""
    compressor = zlib.compressobj(9)
    return compressor.compress(bytes(size)) + compressor.flush(zlib.Z_FULL_FLUSH) + b"\7"


def test_texts_that_end_in_an_error_cost_little() -> None:
    """In all they have 12 GB. Without a limit for all of them it took 23 s."""
    text = chunk(b"zTXt", b"x\0\0" + broken_stream(8_000_000))
    orientation = chunk(b"zTXt", b"Raw profile type exif\0\0" + broken_stream(8_000_000))
    started_at = time.process_time()
    assert read_texts(SIGNATURE + 1500 * text) == {}
    data, is_oriented = without_metadata(SIGNATURE + 1500 * orientation + chunk(b"eXIf", b"exif"))
    assert time.process_time() - started_at < 5
    assert data.endswith(chunk(b"eXIf", b"exif"))
    assert is_oriented
    assert len(data) < 50_000, "the first ones"


def test_broken_text_leaves_the_others() -> None:
    data = SIGNATURE + chunk(b"zTXt", b"x\0\0" + broken_stream(100)) + chunk(b"tEXt", b"a\0b")
    assert read_texts(data) == {"a": "b"}
