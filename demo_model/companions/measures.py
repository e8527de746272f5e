"""Measures of agreement between images and maps."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt
import torch

from img2img.domain.conditioning import ControlType

from ..canvas import CLASSES
from ..dataset import Images
from . import maps
from .masks import Mask

Floats = npt.NDArray[np.floating]
EDGE_TOLERANCE = cv2.getStructuringElement(cv2.MORPH_RECT, (3, 3))
"""An edge counts as found within one pixel."""
PAIRS = 2_000


def edge_f1(images: Images, wanted: Images, kind: ControlType = ControlType.CANNY) -> float:
    """Return the mean F1 of the line maps of images and the given maps, (n, 128, 128, 3)."""
    scores = []
    for image, given in zip(images, wanted, strict=True):
        found, right = maps.lines(image, kind)[..., 0] > 127, given[..., 0] > 127
        precision = _share(found, _widened(right))
        recall = _share(right, _widened(found))
        scores.append(2 * precision * recall / max(precision + recall, 1e-9))
    return float(np.mean(scores))


def _widened(lines: Mask) -> Mask:
    return cv2.dilate(lines.astype(np.uint8), EDGE_TOLERANCE) > 0


def _share(lines: Mask, near: Mask) -> float:
    return float((lines & near).sum() / max(lines.sum(), 1))


def mean_iou(found: torch.Tensor, right: torch.Tensor) -> float:
    """Return the intersection over union of (n, h, w) class maps, averaged over the classes that occur."""
    scores = []
    for index in range(len(CLASSES)):
        both, either = (found == index) & (right == index), (found == index) | (right == index)
        if (right == index).any():
            scores.append(float(both.sum() / either.sum()))
    return float(np.mean(scores))


def depth_disagreement(found: Floats, right: Floats) -> float:
    """Return the share of random pixel pairs of different depth that `found` orders wrongly. Maps are (n, h, w)."""
    rng = np.random.default_rng(0)
    flat_found, flat_right = found.reshape(len(found), -1), right.reshape(len(right), -1)
    wrong = clear = 0
    for seen, true in zip(flat_found, flat_right, strict=True):
        one, other = rng.integers(0, len(true), (2, PAIRS))
        apart = np.abs(true[one] - true[other]) > 0.1
        clear += int(apart.sum())
        wrong += int((apart & ((seen[one] > seen[other]) != (true[one] > true[other]))).sum())
    return wrong / max(clear, 1)


def distance(images: Images, others: Images, where: npt.NDArray[np.bool_] | None = None) -> float:
    """Return the RMSE in [0, 1] of (n, h, w, 3) bytes, over the pixels of the mask `where`, (n, h, w)."""
    errors = np.square(images / 255.0 - others / 255.0).mean(axis=3)
    return float(np.sqrt(errors.mean() if where is None else errors[where].mean()))


def seam_error(images: Images, originals: Images, masks: list[Mask]) -> float:
    """Return the error of brightness steps across a mask's border, relative to the original."""
    errors = []
    for image, original, mask in zip(images, originals, masks, strict=True):
        for axis in (0, 1):
            seam = np.diff(mask.astype(np.int8), axis=axis) != 0
            steps = [np.abs(np.diff(_grey(some), axis=axis))[seam] for some in (image, original)]
            errors.append(np.abs(steps[0] - steps[1]))
    return float(np.concatenate(errors).mean())


def gradient_psnr(images: Images, originals: Images) -> float:
    """Return the PSNR in dB of the brightness steps between neighbouring pixels, on a scale of -1 to 1."""
    squares = []
    for axis in (1, 2):
        found, right = (np.diff(_grey(some), axis=axis) for some in (images, originals))
        squares.append(np.square(found - right).mean())
    return float(-10 * np.log10(np.mean(squares)))


def sharpness(images: Images) -> float:
    """Return the mean absolute brightness step between neighbouring pixels."""
    grey = _grey(images)
    return float(np.mean([np.abs(np.diff(grey, axis=axis)).mean() for axis in (1, 2)]))


def _grey(images: Images) -> Floats:
    return np.asarray(images @ np.array([0.299, 0.587, 0.114]) / 255.0)
