"""Chunks of PNG files (ISO/IEC 15948): metadata are removed before the image is decoded."""

import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

from PIL import PngImagePlugin

from ..http.errors import ImageError

SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Ancillary chunks that change the pixels, or show that the image is animated.
NEEDED = frozenset({b"tRNS", b"iCCP", b"eXIf", b"acTL", b"fcTL", b"fdAT"})
TEXTS = frozenset({b"tEXt", b"zTXt", b"iTXt"})
# Texts that can hold an orientation.
ORIENTATIONS = (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")
# Bytes of a text or a colour profile that are decompressed. Larger ones are removed.
MAX_DECOMPRESSED = PngImagePlugin.MAX_TEXT_CHUNK = 8 * 1024 * 1024


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
    """Return the file without what is not needed for its pixels, and whether it can have an orientation.

    Like libpng, ignores ancillary chunks with a wrong checksum.
    """
    view = memoryview(data)
    parts, is_oriented = [view[: len(SIGNATURE)]], False
    for chunk in chunks(data):
        if chunk.kind[:1].isupper() or _is_needed(view, chunk):
            parts.append(view[chunk.start : chunk.end])
            is_oriented |= chunk.kind in (b"eXIf", *TEXTS)
    size = sum(map(len, parts))
    return (data if size == len(data) else b"".join(parts)), is_oriented


def _is_needed(data: memoryview, chunk: Chunk) -> bool:
    """Return whether a valid ancillary chunk changes how the image looks."""
    content = data[chunk.start + 8 : chunk.end - 4]
    has_orientation = chunk.kind in TEXTS and bytes(content[:40]).startswith(ORIENTATIONS)
    is_needed = has_orientation or chunk.kind in NEEDED
    if not (is_needed and chunk.is_complete and is_valid(data, chunk)):
        return False
    return chunk.kind not in (b"iCCP", *TEXTS) or _decompressed_size(chunk.kind, bytes(content)) < MAX_DECOMPRESSED


def _decompressed_size(kind: bytes, content: bytes) -> int:
    """Return the size of a text or a profile, at most MAX_DECOMPRESSED."""
    _keyword, _, rest = content.partition(b"\0")
    try:
        return len(_decompressed(rest[1:]) if kind == b"iCCP" else _read_text(kind, rest))
    except (zlib.error, UnicodeDecodeError):
        return 0


def read_texts(data: bytes) -> dict[str, str]:
    """Return the texts of a PNG by keyword. Leaves out those that are broken or longer than MAX_DECOMPRESSED."""
    texts = {}
    for chunk in chunks(data):
        if chunk.kind not in TEXTS or not chunk.is_complete:
            continue
        keyword, _, content = data[chunk.start + 8 : chunk.end - 4].partition(b"\0")
        with suppress(zlib.error, UnicodeDecodeError):
            texts[keyword.decode("latin-1")] = _read_text(chunk.kind, content)
    return texts


def _read_text(kind: bytes, content: bytes) -> str:
    if kind == b"iTXt":
        # Whether it is compressed, compression method, language, translated keyword, text.
        text = content[2:].split(b"\0", 2)[-1]
        return (_decompressed(text) if content[:1] == b"\1" else text).decode()
    return (_decompressed(content[1:]) if kind == b"zTXt" else content).decode("latin-1")


def _decompressed(data: bytes) -> bytes:
    return zlib.decompressobj().decompress(data, MAX_DECOMPRESSED)


def check_sums(data: bytes) -> None:
    """Check the checksums of the critical chunks: Pillow ignores those of the pixels. Raises ImageError."""
    view = memoryview(data)
    for chunk in chunks(data):
        if chunk.kind[:1].isupper() and chunk.is_complete and not is_valid(view, chunk):
            raise ImageError("The PNG image is broken: a checksum is wrong.")
