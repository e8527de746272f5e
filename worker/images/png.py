"""PNG encoding and decoding with a fast compressor."""

import io
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from img2img.png import UP_FILTER, png_file

Pixels = npt.NDArray[np.uint8]  # (height, width, 3), RGB


def encode_png(pixels: Pixels, metadata: Mapping[str, Any]) -> bytes:
    """Return a PNG (ISO/IEC 15948) of 8-bit RGB pixels, with `metadata` as JSON in an iTXt chunk named `img2img`."""
    height, width, channels = pixels.shape
    assert channels == 3, pixels.shape
    rows = np.empty((height, 1 + width * 3), np.uint8)
    rows[:, 0] = UP_FILTER
    flat = pixels.reshape(height, width * 3)
    rows[0, 1:] = flat[0]
    np.subtract(flat[1:], flat[:-1], out=rows[1:, 1:])
    text = b"img2img\0\0\0\0\0" + json.dumps(metadata, ensure_ascii=False, sort_keys=True).encode()
    return png_file(width, height, channels, rows, (b"iTXt", text))


def decode_png(data: bytes) -> Image.Image:
    """Return the image of a PNG: greyscale if it has no colour, otherwise RGB."""
    with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
        return image.convert("L" if image.mode == "L" else "RGB")
