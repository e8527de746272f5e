"""Fuzzed images: valid images of every format, truncated, patched and spliced, with or without valid checksums."""

import random
import struct
import zlib
from io import BytesIO

from PIL import Image, ImageCms

from tests.support.images import encoded, gradient
from tests.support.invalid_images import BROKEN, OTHER_FILES, SIZE

MODES = {"PNG": ("RGB", "RGBA", "LA", "L", "1", "P", "I;16"), "JPEG": ("RGB", "L", "CMYK"), "WEBP": ("RGB", "RGBA")}
BOUNDARY_VALUES = (0, 1, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
# Slow to generate.
SLOW = {"pixel bomb", "png bomb", "one row too many", "webp bomb"}


def seeds() -> list[bytes]:
    """Return valid images with EXIF data and colour profiles, and the invalid images that are quick to generate."""
    exif = Image.Exif()
    exif[0x0112] = 6
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    found = [make() for name, (make, _) in BROKEN.items() if name not in SLOW]
    found += [make() for make in OTHER_FILES.values()]
    for kind, modes in MODES.items():
        for mode in modes:
            buffer = BytesIO()
            extra = {"exif": exif.tobytes(), "icc_profile": profile} if mode in ("RGB", "RGBA") else {}
            gradient(*SIZE).convert("L" if mode == "I;16" else mode).convert(mode).save(buffer, kind, **extra)
            found.append(buffer.getvalue())
        found.append(encoded(gradient(*SIZE), kind, **({"progressive": True} if kind == "JPEG" else {})))
    return found


class Fuzzer:
    """Generates inputs; the same seed gives the same inputs."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._seeds = seeds()

    def next(self) -> bytes:
        """Return the next input."""
        data = bytearray(self._random.choice(self._seeds))
        for _ in range(self._random.choice((0, 1, 1, 2, 4, 8))):
            self._change(data)
        return _with_valid_checksums(bytes(data)) if self._random.random() < 0.5 else bytes(data)

    def _change(self, data: bytearray) -> None:
        at = self._random.randrange(len(data) + 1)
        match self._random.randrange(6):
            case 0:
                del data[at:]
            case 1:
                data[at : at + 1] = self._random.randbytes(1)
            case 2:
                size = self._random.choice(("B", ">H", "<H", ">I", "<I"))
                value = self._random.choice(BOUNDARY_VALUES) & ((1 << 8 * struct.calcsize(size)) - 1)
                data[at : at + struct.calcsize(size)] = struct.pack(size, value)
            case 3:
                del data[at : at + self._random.randrange(64)]
            case 4:
                data[at:at] = data[at : at + self._random.randrange(256)]
            case 5:
                other = self._random.choice(self._seeds)
                data[at:] = other[self._random.randrange(len(other) + 1) :]


def _with_valid_checksums(data: bytes) -> bytes:
    """Correct the checksums of a PNG, so that decoders parse the changed chunks."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data
    fixed, at = bytearray(data), 8
    while at + 12 <= len(fixed):
        [size] = struct.unpack_from(">I", fixed, at)
        end = at + 12 + size
        if end > len(fixed):
            break
        fixed[end - 4 : end] = struct.pack(">I", zlib.crc32(fixed[at + 4 : end - 4]))
        at = end
    return bytes(fixed)
