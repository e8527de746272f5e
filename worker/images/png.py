"""PNG encoding and decoding with a fast compressor."""

import io
import json
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from img2img.png import END, UP_FILTER, png_file

Pixels = npt.NDArray[np.uint8]  # (height, width, 3), RGB; or with a fourth channel, RGBA


def encode_png(pixels: Pixels, metadata: Mapping[str, Any] | None, parameters: str | None = None) -> bytes:
    """Return a PNG (ISO/IEC 15948) of 8-bit RGB or RGBA pixels.

    Args:
        metadata: for an iTXt chunk named `img2img`, as JSON; None: there is none.
        parameters: text for a chunk named `parameters`, which other software reads; None: there is none.
    """
    height, width, channels = pixels.shape
    assert channels in (3, 4), pixels.shape
    rows = np.empty((height, 1 + width * channels), np.uint8)
    rows[:, 0] = UP_FILTER
    flat = pixels.reshape(height, width * channels)
    rows[0, 1:] = flat[0]
    np.subtract(flat[1:], flat[:-1], out=rows[1:, 1:])
    chunks = []
    if metadata is not None:
        text = b"img2img\0\0\0\0\0" + json.dumps(metadata, ensure_ascii=False, sort_keys=True).encode()
        chunks.append((b"iTXt", text))
    if parameters is not None:
        chunks.append(_parameters_chunk(parameters))
    return png_file(width, height, channels, rows, *chunks)


def _parameters_chunk(text: str) -> tuple[bytes, bytes]:
    """Return a tEXt chunk if the text is Latin-1, which all readers know, else an iTXt chunk."""
    try:
        return b"tEXt", b"parameters\0" + text.encode("latin-1")
    except UnicodeEncodeError:
        return b"iTXt", b"parameters\0\0\0\0\0" + text.encode("utf-8", "replace")


def decode_png(data: bytes) -> Image.Image:
    """Return the image of a PNG: greyscale if it has no colour, otherwise RGB."""
    with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
        return image.convert("L" if image.mode == "L" else "RGB")


def read_metadata(data: bytes) -> dict[str, Any]:
    """Return the metadata that `encode_png` has written; empty if there is none."""
    with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
        # Not `image.text`, which decodes the pixels.
        metadata = json.loads(image.info.get("img2img") or "{}")
    return metadata if isinstance(metadata, dict) else {}


def is_intact_png(data: bytes, size: tuple[int, int]) -> bool:
    """Return whether a file is a complete PNG of this size (width, height) in pixels. Compares all checksums."""
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            image.verify()
            return image.size == size and data.endswith(END)
    except (OSError, SyntaxError, ValueError, struct.error):
        return False
