"""Images for tests."""

from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image


def gradient(width: int, height: int, blue: int = 0) -> Image.Image:
    """Return an image in which red increases to the right and green downwards."""
    red = Image.linear_gradient("L").rotate(90).resize((width, height))
    green = Image.linear_gradient("L").resize((width, height))
    return Image.merge("RGB", (red, green, Image.new("L", (width, height), blue)))


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def largest_difference(a: np.ndarray, b: np.ndarray) -> int:
    """Return the largest difference of two arrays of 8-bit values."""
    return int(np.abs(a.astype(int) - b.astype(int)).max())
