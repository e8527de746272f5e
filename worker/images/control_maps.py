"""Control maps that need no model: made of a picture by OpenCV, on the threads that load jobs.

White on black, as the published ControlNets were trained. What edge detectors of a network would find is approximated
by gradients: softedge by those of several scales, scribble by its ridges drawn thick, lineart by an extended difference
of Gaussians (Winnemöller et al., XDoG, 2012).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from img2img.domain.conditioning import ControlType

Grey = npt.NDArray[np.float32]  # (height, width), 0 to 1

cv2.setNumThreads(1)  # the engine's own threads need the cores

CANNY_LOW, CANNY_HIGH = 100, 200  # what the published canny ControlNets were trained with
SOFTEDGE_SIGMAS = (1.0, 2.5)  # pixels of a picture of 512; more for larger ones
LINEART_SIGMAS = (0.7, 1.4)
XDOG_SIGMA, XDOG_RATIO, XDOG_SHARPNESS, XDOG_LEVEL, XDOG_SLOPE = 0.8, 1.6, 18.0, 0.75, 8.0
SCRIBBLE_THRESHOLD = 0.25  # of the ridges of a softedge map
SCRIBBLE_SIGMA = 2.0  # smooths strokes as an unsteady hand does, and leaves no spurs
SCRIBBLE_SHORTEST = 24  # pixels of a stroke; less is texture
USUAL_SIDE = 512


def canny(picture: Image.Image) -> Image.Image:
    """Thin edges, all of one strength."""
    return Image.fromarray(cv2.Canny(np.asarray(picture), CANNY_LOW, CANNY_HIGH)).convert("RGB")


def softedge(picture: Image.Image) -> Image.Image:
    """Soft edges, brighter where the picture changes more."""
    return _to_picture(_edges(picture, SOFTEDGE_SIGMAS))


def scribble(picture: Image.Image) -> Image.Image:
    """Few thick strokes, as drawn by hand."""
    scale = _scale(picture)
    edges = _blurred(_edges(picture, SOFTEDGE_SIGMAS), SCRIBBLE_SIGMA * scale)
    thin = (_ridges(edges) & (edges > SCRIBBLE_THRESHOLD)).astype(np.uint8)
    _, labels, about, _ = cv2.connectedComponentsWithStats(thin, connectivity=8)
    long = about[:, cv2.CC_STAT_AREA] >= SCRIBBLE_SHORTEST * scale
    long[0] = False  # what is no stroke at all
    width = 2 * round(2 * scale) + 1
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (width, width))
    return Image.fromarray(cv2.dilate(long[labels].astype(np.uint8) * 255, kernel)).convert("RGB")


def lineart(picture: Image.Image) -> Image.Image:
    """Lines as an ink drawing has them: along dark strokes and along edges, thin and of their strength."""
    grey = np.asarray(picture.convert("L"), np.float32) / 255
    sigma = XDOG_SIGMA * _scale(picture)
    fine, coarse = _blurred(grey, sigma), _blurred(grey, XDOG_RATIO * sigma)
    response = fine + XDOG_SHARPNESS * (fine - coarse)
    # In a flat place the response is its brightness: only where it falls below the surroundings, there is a stroke.
    strokes = np.tanh(XDOG_SLOPE * np.maximum(0, XDOG_LEVEL * coarse - response))
    edges = _edges(picture, LINEART_SIGMAS)
    thin = np.tanh(4 * np.maximum(0, edges - _blurred(edges, 3 * sigma)))
    return _to_picture(np.maximum(strokes, thin))


def tile(picture: Image.Image) -> Image.Image:
    """The picture itself."""
    return picture


PREPROCESSORS: Mapping[ControlType, Callable[[Image.Image], Image.Image]] = {
    ControlType.CANNY: canny,
    ControlType.SCRIBBLE: scribble,
    ControlType.LINEART: lineart,
    ControlType.SOFTEDGE: softedge,
    ControlType.TILE: tile,
}


def _edges(picture: Image.Image, sigmas: Sequence[float]) -> Grey:
    """Gradient magnitude, of the colour that changes most, over several scales."""
    colours = np.asarray(picture, np.float32) / 255
    total = np.zeros(colours.shape[:2], np.float32)
    for usual_sigma in sigmas:
        sigma = usual_sigma * _scale(picture)
        smooth = _blurred(colours, sigma)
        across, down = cv2.Sobel(smooth, cv2.CV_32F, 1, 0), cv2.Sobel(smooth, cv2.CV_32F, 0, 1)
        # Blurring makes a step's gradient smaller as it makes it wider; in proportion to sigma it counts at each scale.
        total += sigma * np.sqrt(across**2 + down**2).max(axis=2)
    return np.tanh(2 * total / len(sigmas)).astype(np.float32)


def _ridges(edges: Grey) -> npt.NDArray[np.bool_]:
    """Where an edge is stronger than beside it: in two of four directions, for along itself it wavers, too."""
    ridges = np.zeros(edges.shape, np.uint8)
    for line in (np.eye(3), np.fliplr(np.eye(3)), np.outer([0, 1, 0], [1, 1, 1]), np.outer([1, 1, 1], [0, 1, 0])):
        kernel = line.astype(np.uint8)
        ridges += (cv2.dilate(edges, kernel) == edges) & (cv2.erode(edges, kernel) < edges)
    return ridges >= 2


def _blurred(pixels: npt.NDArray[Any], sigma: float) -> npt.NDArray[np.float32]:
    return np.asarray(cv2.GaussianBlur(pixels, (0, 0), sigma), np.float32)


def _scale(picture: Image.Image) -> float:
    """How much wider than usual strokes are to be."""
    return float(max(1.0, min(picture.size) / USUAL_SIDE))


def _to_picture(grey: npt.NDArray[np.floating]) -> Image.Image:
    return Image.fromarray((grey * 255).round().astype(np.uint8)).convert("RGB")
