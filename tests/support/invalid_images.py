"""Invalid inputs by name: files of other types, corrupt images, and decompression bombs."""

import struct
import zlib
from collections.abc import Callable

from PIL import Image

from tests.support.images import encoded, gradient

SIZE = (96, 64)
# The limit of the services in tests.
MAX_PIXELS = 4_000_000


def chunk(kind: bytes, data: bytes) -> bytes:
    """Return a PNG chunk."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_claiming(width: int, height: int, depth: int = 8, colour: int = 2) -> bytes:
    """Return a PNG with a larger size in its header than its few bytes of pixel data contain."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 100)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def _plain(kind: str = "PNG") -> bytes:
    return encoded(gradient(*SIZE), kind)


def _bad_crc(kind: bytes) -> bytes:
    data = bytearray(_plain())
    at = data.index(kind)
    [size] = struct.unpack(">I", data[at - 4 : at])
    data[at + 4 + size] ^= 0xFF
    return bytes(data)


def _scan_bomb() -> bytes:
    """Return a progressive JPEG that repeats its last scan: every few bytes cost a pass over the whole image."""
    data = encoded(gradient(*SIZE), "JPEG", progressive=True)
    return data[:-2] + data[data.rindex(b"\xff\xda") : -2] * 100 + data[-2:]


def _without_last_scan() -> bytes:
    data = encoded(gradient(*SIZE), "JPEG", progressive=True)
    return data[: data.rindex(b"\xff\xda")]


def _jpeg_claiming(width: int, height: int) -> bytes:
    data = bytearray(_plain("JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def _webp_claiming(width: int, height: int) -> bytes:
    canvas = struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    extended = b"VP8X" + struct.pack("<I", 10) + b"\0\0\0\0" + canvas
    body = b"WEBP" + extended + _plain("WEBP")[12:]
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _animated(kind: str) -> bytes:
    return encoded(gradient(*SIZE), kind, save_all=True, append_images=[gradient(*SIZE, blue=99)])


def _pixel_bomb() -> bytes:
    """Return a PNG of a few kilobytes with four times the accepted number of pixels."""
    return encoded(Image.new("L", (4000, 4000)))


OTHER_FILES: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "text": lambda: b"hello",
    "svg": lambda: b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>",
    "html": lambda: b"<!doctype html><script>alert(1)</script>",
    "gif": lambda: _plain("GIF"),
    "tiff": lambda: _plain("TIFF"),
    "bmp": lambda: _plain("BMP"),
    "ppm": lambda: _plain("PPM"),
    "ico": lambda: _plain("ICO"),
    "icns": lambda: b"icns\0\0\0\x10ic07\0\0\0\x08",
    "tga": lambda: _plain("TGA"),
    "jpeg 2000": lambda: b"\0\0\0\x0cjP  \r\n\x87\n",
    "avif": lambda: b"\0\0\0\x20ftypavif\0\0\0\0",
    "pdf": lambda: _plain("PDF"),
    "eps": lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "psd": lambda: b"8BPS\0\1\0\0\0\0\0\0",
    "fits": lambda: b"SIMPLE  =                    T",
    "wav": lambda: b"RIFF\0\0\0\0WAVE",
    "zip": lambda: b"PK\x03\x04",
    "pickle": lambda: b"\x80\x04cos\nsystem\n",
    "png after a space": lambda: b" " + _plain(),
}

# With a part of the error message.
BROKEN: dict[str, tuple[Callable[[], bytes], str]] = {
    "truncated png": (lambda: _plain()[:-200], "broken"),
    "truncated jpeg": (lambda: _plain("JPEG")[:-200], "broken"),
    "truncated webp": (lambda: _plain("WEBP")[:-200], "broken"),
    "png magic only": (lambda: b"\x89PNG\r\n\x1a\n", "broken"),
    "jpeg without its last scan": (_without_last_scan, "its end is missing"),
    "jpeg magic only": (lambda: b"\xff\xd8\xff", "broken"),
    "webp magic only": (lambda: b"RIFF\0\0\0\0WEBP", "broken"),
    "no pixels": (lambda: _plain().replace(b"IDAT", b"IDAX"), "broken"),
    "too few pixels": (lambda: png_claiming(*SIZE), "broken"),
    "bad header crc": (lambda: _bad_crc(b"IHDR"), "broken"),
    "bad pixel data crc": (lambda: _bad_crc(b"IDAT"), "a checksum is wrong"),
    "corrupt pixel data": (lambda: _plain().replace(b"x\x9c", b"\0\0", 1), "broken"),
    "webp with too large a canvas": (lambda: _webp_claiming(16_383, 16_383), "broken"),
    "no width": (lambda: png_claiming(0, 5), "broken"),
    "0 x 0 png": (lambda: png_claiming(0, 0), "broken"),
    "0 x 0 jpeg": (lambda: _jpeg_claiming(0, 0), "broken"),
    "invalid bit depth": (lambda: png_claiming(*SIZE, depth=7), "broken"),
    "png bomb": (lambda: png_claiming(60_000, 60_000), "60000 x 60000"),
    "jpeg bomb": (lambda: _jpeg_claiming(65_500, 65_500), "65500 x 65500"),
    "webp bomb": (lambda: encoded(Image.new("L", (5000, 5000)), "WEBP", lossless=True), "5000 x 5000"),
    "pixel bomb": (_pixel_bomb, "4000 x 4000"),
    "one row too many": (lambda: encoded(Image.new("L", (2001, 2000))), "2001 x 2000"),
    "one long row": (lambda: encoded(Image.new("L", (100_000, 1))), "100000 x 1"),
    "one long column": (lambda: encoded(Image.new("L", (1, 100_000))), "1 x 100000"),
    "scan bomb": (_scan_bomb, "more than 64 scans"),
    "animated png": (lambda: _animated("PNG"), "animated"),
    "animated webp": (lambda: _animated("WEBP"), "animated"),
}
