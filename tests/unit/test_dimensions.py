"""Pixels in headers, and how long it takes to read them from hostile bytes."""

import random
import time

import pytest
from PIL import Image

from img2img.imaging.dimensions import pixel_count
from img2img.imaging.parts import MAX_SEGMENTS
from tests.support.images import encoded, gradient

SIZE = (160, 121)
PIXELS = SIZE[0] * SIZE[1]
OPTIONS: list[dict[str, object]] = [
    {"kind": "PNG"},
    {"kind": "JPEG"},
    {"kind": "JPEG", "progressive": True},
    {"kind": "JPEG", "comment": b"x" * 60_000, "icc_profile": b"y" * 200_000},
    {"kind": "WEBP"},
    {"kind": "WEBP", "lossless": True},
    {"kind": "WEBP", "icc_profile": b"y" * 1000},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
def test_pixels_are_those_of_the_image(options: dict[str, object], mode: str) -> None:
    if mode == "RGBA" and options["kind"] == "JPEG":
        mode = "CMYK"
    if mode == "L" and options["kind"] == "WEBP":
        mode = "RGB"
    assert pixel_count(encoded(gradient(*SIZE).convert(mode), **options)) == PIXELS  # type: ignore[arg-type]


def test_largest_sizes() -> None:
    assert pixel_count(encoded(Image.new("L", (16_383, 10)), "WEBP")) == 163_830
    assert pixel_count(encoded(Image.new("L", (65_500, 9)), "JPEG")) == 589_500


def test_scans_beyond_the_usual_number_count_as_pixels() -> None:
    data = encoded(gradient(*SIZE), "JPEG", progressive=True)
    scans = data.count(b"\xff\xda")
    more = data[:-2] + data[data.rindex(b"\xff\xda") : -2] * (54 - scans) + data[-2:]
    assert pixel_count(more) == 3 * PIXELS


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"GIF89a",
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff",
        b"\xff\xd8\xff\xe0\x00\x00" * 100,
        b"\xff\xd8" + b"\xff" * 30_000_000,
        b"\xff\xd8" + b"\xff\xe0\x00\x02" * 5_000_000,
        b"\xff\xd8" + b"\xff\xda" * 10_000_000,
        b"RIFF\0\0\0\0WEBPVP8X",
        b"RIFF\0\0\0\0WEBPVP8L",
    ],
    ids=lambda data: f"{data[:12]!r} {len(data)}",
)
def test_unreadable_headers_have_no_pixels_and_cost_no_time(data: bytes) -> None:
    started_at = time.process_time()
    assert pixel_count(data) == 0
    assert time.process_time() - started_at < 1


def test_metadata_of_too_many_segments_hide_the_size() -> None:
    data = encoded(gradient(*SIZE), "JPEG")
    comment = b"\xff\xfe\x00\x02"
    assert pixel_count(data[:2] + comment * (MAX_SEGMENTS // 2) + data[2:]) == PIXELS
    assert pixel_count(data[:2] + comment * MAX_SEGMENTS + data[2:]) == 0


def test_random_bytes_raise_nothing() -> None:
    random.seed(0)
    for start in (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF0000WEBPVP8 ", b"RIFF0000WEBPVP8X", b"RIFF0000WEBPVP8L"):
        for _ in range(500):
            assert pixel_count(start + random.randbytes(random.randrange(60))) >= 0
