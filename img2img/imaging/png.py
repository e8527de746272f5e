"""Chunks of PNG files (ISO/IEC 15948): metadata are removed before the image is decoded."""

import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

from PIL import PngImagePlugin

from img2img.errors import ImageError

SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Ancillary chunks that change the pixels, or show that the image is animated.
NEEDED = frozenset({b"tRNS", b"iCCP", b"eXIf", b"acTL", b"fcTL", b"fdAT"})
TEXTS = frozenset({b"tEXt", b"zTXt", b"iTXt"})
# Texts that can hold an orientation.
ORIENTATIONS = (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")
# Bytes of a text or a colour profile that are decompressed. Larger ones are removed.
MAX_DECOMPRESSED = PngImagePlugin.MAX_TEXT_CHUNK = 8 * 1024 * 1024
# The same for all of them in a file. Those that exceed it are removed.
MAX_DECOMPRESSED_IN_ALL = 4 * MAX_DECOMPRESSED
# The most that deflate compresses.
MAX_RATIO = 1032


class Chunk(NamedTuple):
    """A chunk, from `start` to `end` in the file. A chunk that is cut off ends with the file."""

    kind: bytes
    start: int
    end: int
    is_complete: bool


def chunks(data: bytes) -> Iterator[Chunk]:
    """Yield the chunks up to IEND."""
    at, kind = len(SIGNATURE), b""
    while at + 8 <= len(data) and kind != b"IEND":
        size, kind = struct.unpack_from(">I4s", data, at)
        end = at + 12 + size
        yield Chunk(kind, at, min(end, len(data)), end <= len(data))
        at = end


def is_valid(data: memoryview, chunk: Chunk) -> bool:
    """Return whether the checksum of a complete chunk is right."""
    end = chunk.end - 4
    return data[end : chunk.end] == struct.pack(">I", zlib.crc32(data[chunk.start + 4 : end]))


def without_metadata(data: bytes) -> tuple[bytes, bool]:
    """Return the file without the chunks that its pixels do not need, and whether it can have an orientation.

    Like libpng, ignores ancillary chunks with a wrong checksum.
    """
    view = memoryview(data)
    parts, is_oriented, left = [view[: len(SIGNATURE)]], False, MAX_DECOMPRESSED_IN_ALL
    for chunk in chunks(data):
        is_needed = chunk.kind[:1].isupper() or _is_needed(view, chunk)
        if is_needed and chunk.kind in (b"iCCP", *TEXTS):
            limit = min(left, MAX_DECOMPRESSED)
            size = _decompressed_size(view, chunk, limit)
            left -= size
            is_needed = size < limit
        if is_needed:
            parts.append(view[chunk.start : chunk.end])
            is_oriented |= chunk.kind in (b"eXIf", *TEXTS)
    size = sum(map(len, parts))
    return (data if size == len(data) else b"".join(parts)), is_oriented


def _is_needed(data: memoryview, chunk: Chunk) -> bool:
    """Return whether a valid ancillary chunk changes how the image looks."""
    content = data[chunk.start + 8 : chunk.end - 4]
    has_orientation = chunk.kind in TEXTS and bytes(content[:40]).startswith(ORIENTATIONS)
    is_needed = has_orientation or chunk.kind in NEEDED
    return is_needed and chunk.is_complete and is_valid(data, chunk)


def _decompressed_size(data: memoryview, chunk: Chunk, limit: int) -> int:
    """Return the size of a text or a profile, at most `limit`."""
    if limit <= 0:
        return 0
    _keyword, _, rest = bytes(data[chunk.start + 8 : chunk.end - 4]).partition(b"\0")
    try:
        content = _decompressed(rest[1:], limit) if chunk.kind == b"iCCP" else _read_content(chunk.kind, rest, limit)
    except zlib.error:
        return _most_decompressed(rest, limit)
    return min(limit, len(content))


def read_texts(data: bytes) -> dict[str, str]:
    """Return the texts of a PNG by keyword. Leaves out those that are broken, and all after MAX_DECOMPRESSED bytes."""
    texts, left = {}, MAX_DECOMPRESSED
    for chunk in chunks(data):
        if left <= 0:
            break
        if chunk.kind not in TEXTS or not chunk.is_complete:
            continue
        keyword, _, content = data[chunk.start + 8 : chunk.end - 4].partition(b"\0")
        try:
            text = _read_content(chunk.kind, content, left)
        except zlib.error:
            left -= _most_decompressed(content, left)
            continue
        left -= len(text)
        if left > 0:
            with suppress(UnicodeDecodeError):
                texts[keyword.decode("latin-1")] = text.decode("utf-8" if chunk.kind == b"iTXt" else "latin-1")
    return texts


def _most_decompressed(content: bytes, limit: int) -> int:
    """Return the most bytes that were decompressed before an error."""
    return min(limit, MAX_RATIO * len(content))


def _read_content(kind: bytes, content: bytes, limit: int) -> bytes:
    """Return the bytes of a text after its keyword, decompressed up to `limit`. Raises zlib.error."""
    if kind == b"iTXt":
        # Whether it is compressed, compression method, language, translated keyword, text.
        text = content[2:].split(b"\0", 2)[-1]
        return _decompressed(text, limit) if content[:1] == b"\1" else text
    return _decompressed(content[1:], limit) if kind == b"zTXt" else content


def _decompressed(data: bytes, limit: int) -> bytes:
    return zlib.decompressobj().decompress(data, limit)


def check_sums(data: bytes) -> None:
    """Check the checksums of the critical chunks: Pillow ignores those of the pixels. Raises ImageError."""
    view = memoryview(data)
    for chunk in chunks(data):
        if chunk.kind[:1].isupper() and chunk.is_complete and not is_valid(view, chunk):
            raise ImageError("The PNG image is broken: a checksum is wrong.")
