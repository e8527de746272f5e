"""Differences of images."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from img2img.worker.images.png import decode_png

Pixels = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]


def largest_difference(pngs: Sequence[bytes], reference: Sequence[bytes]) -> int:
    """Return the largest difference of any channel of any pixel, in 1/255."""
    return max(int(np.abs(difference).max()) for difference in differences(pngs, reference))


def differences(pngs: Sequence[bytes], reference: Sequence[bytes]) -> list[np.ndarray[Any, Any]]:
    """Return the difference of each channel of each pixel of each image, in 1/255."""
    pairs = zip(pngs, reference, strict=True)
    return [np.asarray(decode_png(a), int) - np.asarray(decode_png(b), int) for a, b in pairs]


def psnr(expected: np.ndarray[Any, Any], image: np.ndarray[Any, Any]) -> float:
    """Return the peak signal-to-noise ratio of two images of 8 bits, in dB."""
    error = np.square(expected.astype(np.float64) - image).mean()
    return float("inf") if error == 0 else 10 * float(np.log10(255**2 / error))
