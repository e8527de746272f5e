"""Reads the number of pixels from the header of an image, before it costs anything to decode it.

The bytes are untrusted. An image that these functions misread is measured by a decoder, which has its own limits.
"""

import struct

from img2img.imaging.decode import MAX_SCANS
from img2img.imaging.parts import BARE_MARKERS, MAX_SEGMENTS

# Markers of a JPEG with its size: SOF0 to SOF15, except DHT, JPG and DAC.
FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
SCAN = b"\xff\xda"
# Scans that a usual progressive JPEG has at most: one with four channels. Every scan is a pass over the whole image.
USUAL_SCANS = 18
# How many times the pixels of an accepted JPEG can count.
MOST_PASSES = MAX_SCANS / USUAL_SCANS


def pixel_count(data: bytes) -> int:
    """Return the pixels to decode; 0 if the header cannot be read. Many scans of a JPEG count as more pixels."""
    try:
        if data.startswith(b"\x89PNG\r\n\x1a\n"):
            width, height = struct.unpack_from(">II", data, 16)
            return int(width * height)
        if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            return _webp_pixels(data)
        if data.startswith(b"\xff\xd8\xff"):
            return _jpeg_pixels(data)
    except (struct.error, IndexError):
        return 0
    return 0


def _webp_pixels(data: bytes) -> int:
    kind = data[12:16]
    if kind == b"VP8X":
        sides = struct.unpack_from("<3s3s", data, 24)
        width, height = (int.from_bytes(side, "little") + 1 for side in sides)
    elif kind == b"VP8L":
        bits = struct.unpack_from("<I", data, 21)[0]
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    else:
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, 26))
    return int(width * height)


def _jpeg_pixels(data: bytes) -> int:
    at = 2
    for _ in range(MAX_SEGMENTS):
        if data[at] != 0xFF:
            return 0
        marker = data[at + 1]
        if marker in BARE_MARKERS or marker == 0xFF:
            at += 1 if marker == 0xFF else 2
            continue
        size = struct.unpack_from(">H", data, at + 2)[0]
        if marker in FRAMES:
            height, width = struct.unpack_from(">HH", data, at + 5)
            return int(width * height * max(1.0, data.count(SCAN, at) / USUAL_SCANS))
        at += 2 + size
    return 0
