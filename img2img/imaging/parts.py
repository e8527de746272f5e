"""Limits on the number of chunks of a PNG and of segments of a JPEG: each costs time, also a small one."""

import struct

from img2img.errors import ImageError

# Encoders write pixels in chunks of 8 kB or more, and metadata in a few.
MAX_CHUNKS = 20_000
# Before the pixels: a colour profile can have 255 segments, and large XMP about as many.
MAX_SEGMENTS = 1000
# Markers of a JPEG without a length: TEM, RST0 to RST7, SOI.
BARE_MARKERS = {0x01, *range(0xD0, 0xD9)}
START_OF_SCAN = 0xDA


def check_parts(kind: str, data: bytes) -> None:
    """Check the number of parts without looking at their content. Raises ImageError."""
    try:
        if kind == "PNG":
            _check_chunks(data)
        elif kind == "JPEG":
            _check_segments(data)
    except (struct.error, IndexError):
        # The file ends within a part. The decoder describes the error.
        return


def _check_chunks(data: bytes) -> None:
    at = 8
    for _ in range(MAX_CHUNKS):
        size, kind = struct.unpack_from(">I4s", data, at)
        if kind == b"IEND":
            return
        at += 12 + size
    raise ImageError(f"The PNG image has more than {MAX_CHUNKS:,} chunks.")


def _check_segments(data: bytes) -> None:
    at = 2
    for _ in range(MAX_SEGMENTS):
        marker = data[at + 1]
        if data[at] != 0xFF or marker == START_OF_SCAN:
            return
        if marker == 0xFF:
            at += 1
        elif marker in BARE_MARKERS:
            at += 2
        else:
            at += 2 + int(struct.unpack_from(">H", data, at + 2)[0])
    raise ImageError(f"The JPEG image has more than {MAX_SEGMENTS:,} segments before its pixels.")
