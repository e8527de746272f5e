"""Images made to cost a decoder time or memory that their pixels do not need."""

import struct
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from img2img.domain.parameters import Resize
from img2img.errors import ImageError
from img2img.imaging.parts import MAX_CHUNKS, MAX_SEGMENTS
from img2img.imaging.sandbox_limits import SandboxLimits
from img2img.imaging.sandbox_pool import DecoderPool
from tests.support.images import encoded, gradient
from tests.support.invalid_images import chunk, png_claiming

MAX_BYTES = 32 * 1024 * 1024
SIZE = (640, 480)
# Processor time and memory of one image, with wide margins: none of these needs a second or 100 MB.
MAX_CPU_S, MAX_GROWTH = 4.0, 300 * 1024 * 1024


@pytest.fixture(scope="module")
def decoders() -> Iterator[DecoderPool]:
    pool = DecoderPool(SandboxLimits(50_000_000, MAX_BYTES))
    pool.start()
    yield pool
    pool.close()


def plain(kind: str = "PNG") -> bytes:
    return encoded(gradient(*SIZE), kind)


def png_with(extra: bytes) -> bytes:
    """Return a PNG with chunks before its pixels."""
    return plain()[:33] + extra + plain()[33:]


def png_ending_with(extra: bytes) -> bytes:
    """Return a PNG with chunks behind its pixels."""
    return plain()[:-12] + extra + plain()[-12:]


def segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


def jpeg_with(extra: bytes) -> bytes:
    return plain("JPEG")[:2] + extra + plain("JPEG")[2:]


def webp_with(flags: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """Return a WebP with metadata behind its pixels."""
    simple = plain("WEBP")
    canvas = b"".join((side - 1).to_bytes(3, "little") for side in SIZE)
    header = (b"VP8X", bytes([flags, 0, 0, 0]) + canvas)
    parts = [header, (simple[12:16], simple[20 : 20 + struct.unpack_from("<I", simple, 16)[0]]), *chunks]
    body = b"WEBP" + b"".join(
        kind + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2) for kind, data in parts
    )
    return b"RIFF" + struct.pack("<I", len(body)) + body


def zeros(size: int) -> bytes:
    return zlib.compress(bytes(size), 9)


def looping_exif() -> bytes:
    """Return EXIF data of which every entry leads back to the directory itself."""
    entry = struct.pack("<HHII", 0x8769, 4, 1, 8)
    return b"II*\0" + struct.pack("<IH", 8, 5000) + entry * 5000 + struct.pack("<I", 8)


def scans(count: int, side: int) -> bytes:
    """Return a progressive JPEG whose last scan is repeated."""
    data = encoded(Image.new("L", (side, side), 99), "JPEG", progressive=True)
    return data[:-2] + data[data.rindex(b"\xff\xda") : -2] * count + data[-2:]


def profile_segments() -> bytes:
    return b"".join(segment(0xE2, b"ICC_PROFILE\0" + bytes([i, 255]) + bytes(65_000)) for i in range(1, 256))


HOSTILE: dict[str, Callable[[], bytes]] = {
    "png: colour profile of 200 MB": lambda: png_with(chunk(b"iCCP", b"x\0\0" + zeros(200_000_000))),
    "png: 20 texts of 200 MB": lambda: png_with(chunk(b"zTXt", b"x\0\0" + zeros(200_000_000)) * 20),
    "png: 20 international texts of 200 MB": lambda: png_with(chunk(b"iTXt", b"x\0\1\0\0\0" + zeros(200_000_000)) * 20),
    "png: 200 texts of 1 MB": lambda: png_with(chunk(b"zTXt", b"x\0\0" + zeros(1_000_000)) * 200),
    "png: 200 texts of 1 MB behind the pixels": lambda: png_ending_with(
        chunk(b"zTXt", b"x\0\0" + zeros(1_000_000)) * 200
    ),
    "png: 900 orientations of 7 MB": lambda: png_with(
        chunk(b"zTXt", b"Raw profile type exif\0\0" + zeros(7_000_000)) * 900
    ),
    "png: 900 broken colour profiles of 7 MB": lambda: png_with(
        chunk(b"iCCP", b"x\0\0" + zeros(7_000_000)[:-9] * 2) * 900
    ),
    "png: two million texts": lambda: png_with(chunk(b"tEXt", b"a\0") * 2_000_000),
    "png: two million private chunks": lambda: png_with(chunk(b"prVt", b"") * 2_000_000),
    "png: two million empty chunks of pixels": lambda: png_ending_with(chunk(b"IDAT", b"") * 2_000_000),
    "png: exif that loops": lambda: png_with(chunk(b"eXIf", looping_exif())),
    "png: raw exif": lambda: png_with(
        chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n9\n" + b"41" * 400_000))
    ),
    "png: xmp": lambda: png_with(chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + b"<x>" * 1_000_000)),
    "png: 65500 x 65500": lambda: png_claiming(65_500, 65_500),
    "jpeg: exif that loops": lambda: jpeg_with(segment(0xE1, b"Exif\0\0" + looping_exif())),
    "jpeg: 4000 scans": lambda: scans(4000, 2000),
    "jpeg: as many scans as are accepted": lambda: scans(50, 4000),
    "jpeg: colour profile of 16 MB": lambda: jpeg_with(profile_segments()),
    "jpeg: 29 MB of exif": lambda: jpeg_with(segment(0xE1, b"Exif\0\0" + bytes(65_000)) * 450),
    "jpeg: seven million comments": lambda: jpeg_with(segment(0xFE, b"") * 7_000_000),
    "jpeg: seven million comments behind the pixels": lambda: (
        plain("JPEG")[:-2] + segment(0xFE, b"") * 7_000_000 + plain("JPEG")[-2:]
    ),
    "jpeg: 30 MB of fill bytes": lambda: jpeg_with(b"\xff" * 30_000_000),
    "jpeg: 65500 x 65500": lambda: plain("JPEG").replace(
        struct.pack(">HH", 480, 640), struct.pack(">HH", 65_500, 65_500)
    ),
    "webp: 30 MB of metadata": lambda: webp_with(0x0C, (b"EXIF", bytes(15_000_000)), (b"XMP ", bytes(15_000_000))),
    "webp: exif that loops": lambda: webp_with(0x08, (b"EXIF", looping_exif())),
    "webp: three million unknown chunks": lambda: webp_with(0, *[(b"abcd", b"")] * 3_000_000),
    "webp: 500 frames": lambda: encoded(
        Image.new("RGB", (64, 64)),
        "WEBP",
        save_all=True,
        append_images=[Image.new("RGB", (64, 64), (index % 256, index // 256, 0)) for index in range(500)],
    ),
    "png, then jpeg": lambda: plain() + plain("JPEG"),
    "jpeg, then png": lambda: plain("JPEG") + plain(),
    "jpeg, then zip": lambda: plain("JPEG") + b"PK\3\4" * 1000,
    "webp, then html": lambda: plain("WEBP") + b"<script>alert(1)</script>",
    "gif behind the magic of a png": lambda: b"\x89PNG\r\n\x1a\n" + plain("GIF"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_image_is_bounded(name: str, decoders: DecoderPool) -> None:
    data = HOSTILE[name]()
    assert len(data) < MAX_BYTES
    [decoder] = decoders._idle
    cpu_s, memory = processor_time(decoder.pid), peak_memory(decoder.pid)
    started_at, refusal = time.monotonic(), ""
    try:
        with decoders.open(data) as image:
            assert image.fit(64, 64, Resize.CROP).size == (64, 64)
            # The part that comes first is the image.
            assert image.size in (SIZE, (4000, 4000))
    except ImageError as error:
        refusal = str(error)
    growth, used_s = peak_memory(decoder.pid) - memory, processor_time(decoder.pid) - cpu_s
    assert not any(reason in refusal for reason in ("crashed", "processor time", "memory than")), refusal
    assert used_s < MAX_CPU_S
    assert growth < MAX_GROWTH
    assert time.monotonic() - started_at < 60


def processor_time(pid: int) -> float:
    """Return the processor time of a process in seconds; 0 if it has ended, because it was replaced."""
    fields = read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100 if fields else 0.0


def peak_memory(pid: int) -> int:
    for line in read(f"/proc/{pid}/status").splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    return 0


def read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def test_usual_numbers_of_parts_are_accepted(decoders: DecoderPool) -> None:
    many_chunks = png_with(chunk(b"tEXt", b"a\0b") * (MAX_CHUNKS - 100))
    many_segments = jpeg_with(segment(0xFE, b"a comment") * (MAX_SEGMENTS - 100))
    for data in (many_chunks, many_segments, encoded(gradient(*SIZE), "JPEG", icc_profile=bytes(3_000_000))):
        with decoders.open(data) as image:
            assert image.size == SIZE


def test_large_image_of_one_colour_is_cheap_for_its_size(decoders: DecoderPool) -> None:
    """A WebP of 40 bytes with 49 megapixels: nothing is done for every pixel that can be done after shrinking."""
    bombs = [
        encoded(Image.new("RGB", (7000, 7000), (1, 2, 3)), "WEBP", lossless=True, quality=0, method=0),
        encoded(Image.new("RGBA", (7000, 7000), (1, 2, 3, 9)), compress_level=9),
    ]
    for data in bombs:
        with decoders.open(data) as image:
            decoder = image._decoder
            assert decoder
            before = processor_time(decoder.pid)
            result = image.fit(512, 512, Resize.CROP)
            used_s = processor_time(decoder.pid) - before
        assert result.size == (512, 512)
        assert used_s < 12
