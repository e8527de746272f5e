"""The PNG encoder against an independent decoder."""

import io
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from img2img.worker.images.png import decode_png, encode_png


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
