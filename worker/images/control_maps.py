"""Control maps that OpenCV makes without a model, on the threads that load jobs.

Maps are white on black, as the published ControlNets were trained. Edge detectors that are neural networks are
approximated by gradients: softedge by gradients of several scales, scribble by the thickened ridges of a softedge map,
lineart by an extended difference of Gaussians (Winnemöller et al., XDoG, 2012), mlsd by a line segment detector
(Grompone von Gioi et al., LSD, 2010).

A drawing, of thin strokes on even ground, has two edges along each stroke. Scribble, lineart and softedge use its
strokes instead.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from img2img.domain.conditioning import ControlType

Grey = npt.NDArray[np.float32]  # (height, width), 0 to 1

# The engine's threads need the cores.
cv2.setNumThreads(1)

# Lengths are in pixels of an image of BASE_SIDE, and are scaled up for larger images.
BASE_SIDE = 512
CANNY_LOW, CANNY_HIGH = 100, 200  # of the published canny ControlNets
SOFTEDGE_SIGMAS = (1.0, 2.5)
LINEART_SIGMAS = (0.7, 1.4)
XDOG_SIGMA, XDOG_RATIO, XDOG_SHARPNESS, XDOG_LEVEL, XDOG_SLOPE = 0.8, 1.6, 18.0, 0.75, 8.0
BLUR_SIGMA = 6.0
MLSD_SIGMA = 1.2  # before lines are looked for, so that noise makes none
MLSD_MIN_LENGTH = 24  # of a line
SCRIBBLE_THRESHOLD = 0.25  # of the ridges of a softedge map
SCRIBBLE_SIGMA = 2.0  # smooths strokes, and removes spurs
SCRIBBLE_MIN_PIXELS = 24  # shorter strokes are texture
# Of a drawing, in shares of the range of values and of the pixels.
GROUND_LEVELS = (0.25, 0.5)  # brightness up to which the ground is dark, and from which it is light
GROUND_SHARE = 0.6  # at least
GROUND_NOISE = 0.04  # median difference of a pixel to the ground, at most
INK_SHARE = (0.001, 0.3)
INK_CONTRAST = 0.06  # to the ground, beyond its noise
FAINT = 0.2  # contrast of the faintest stroke, of that of the strongest one
SOLID_SHARE = 0.3  # of the ink, at most, in areas wider than strokes
STROKE_WIDTH = 15  # at most
STROKE_MIN_PIXELS = 4  # smaller ones are specks of the paper


def canny(image: Image.Image) -> Image.Image:
    """Thin binary edges."""
    return Image.fromarray(cv2.Canny(np.asarray(image), CANNY_LOW, CANNY_HIGH)).convert("RGB")


def softedge(image: Image.Image) -> Image.Image:
    """Soft edges, brighter where the gradient is larger; of a drawing its strokes."""
    ink = _strokes(image)
    if ink is not None:
        return _to_image(np.minimum(1, 1.5 * _blur(_thickened(ink > 0, image), _scale(image))))
    return _to_image(_edges(image, SOFTEDGE_SIGMAS))


def scribble(image: Image.Image) -> Image.Image:
    """Few thick strokes, like a drawing by hand; of a drawing its own."""
    ink = _strokes(image)
    if ink is not None:
        return _to_image(_thickened(ink > 0, image))
    scale = _scale(image)
    edges = _blur(_edges(image, SOFTEDGE_SIGMAS), SCRIBBLE_SIGMA * scale)
    strokes = _without_specks(_ridges(edges) & (edges > SCRIBBLE_THRESHOLD), SCRIBBLE_MIN_PIXELS * scale)
    width = 2 * round(2 * scale) + 1
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (width, width))
    return Image.fromarray(cv2.dilate(strokes.astype(np.uint8) * 255, kernel)).convert("RGB")


def lineart(image: Image.Image) -> Image.Image:
    """Thin lines like an ink drawing, along dark strokes and along edges; of a drawing its strokes."""
    ink = _strokes(image)
    if ink is not None:
        return _to_image(ink)
    grey = np.asarray(image.convert("L"), np.float32) / 255
    sigma = XDOG_SIGMA * _scale(image)
    fine, coarse = _blur(grey, sigma), _blur(grey, XDOG_RATIO * sigma)
    response = fine + XDOG_SHARPNESS * (fine - coarse)
    # In a flat area the response equals the brightness. Only a response below the surroundings is a stroke.
    strokes = np.tanh(XDOG_SLOPE * np.maximum(0, XDOG_LEVEL * coarse - response))
    edges = _edges(image, LINEART_SIGMAS)
    thin = np.tanh(4 * np.maximum(0, edges - _blur(edges, 3 * sigma)))
    return _to_image(np.maximum(strokes, thin))


def mlsd(image: Image.Image) -> Image.Image:
    """Straight lines, without curves and texture: the longer segments that a line segment detector finds."""
    scale = _scale(image)
    smooth = _blur(np.asarray(image), MLSD_SIGMA * scale).round().astype(np.uint8)
    lines = np.zeros(smooth.shape[:2], np.uint8)
    # Each channel, as colours may differ where brightness does not.
    for channel in cv2.split(smooth):
        found = cv2.createLineSegmentDetector().detect(channel)[0]
        for x0, y0, x1, y1 in () if found is None else found.reshape(-1, 4):
            if math.hypot(x1 - x0, y1 - y0) >= MLSD_MIN_LENGTH * scale:
                cv2.line(lines, (round(x0), round(y0)), (round(x1), round(y1)), 255, max(1, round(scale)))
    return Image.fromarray(lines).convert("RGB")


def unchanged(image: Image.Image) -> Image.Image:
    """The image itself."""
    return image


def blur(image: Image.Image) -> Image.Image:
    """The image without its details."""
    return Image.fromarray(_blur(np.asarray(image), BLUR_SIGMA * _scale(image)).round().astype(np.uint8))


def gray(image: Image.Image) -> Image.Image:
    """The image without its colours."""
    return image.convert("L").convert("RGB")


PREPROCESSORS: Mapping[str, Callable[[Image.Image], Image.Image]] = {
    ControlType.CANNY: canny,
    ControlType.SCRIBBLE: scribble,
    ControlType.LINEART: lineart,
    ControlType.SOFTEDGE: softedge,
    ControlType.MLSD: mlsd,
    ControlType.TILE: unchanged,
    ControlType.IP2P: unchanged,
    ControlType.BLUR: blur,
    ControlType.GRAY: gray,
}


def _strokes(image: Image.Image) -> Grey | None:
    """Return the strokes of a drawing, 1 where a stroke is strongest; None if the image is no drawing."""
    pixels = np.asarray(image, np.float32) / 255
    ground = np.median(pixels, axis=(0, 1))
    # The channel that differs most: a yellow pencil hardly changes the brightness.
    contrast = np.abs(pixels - ground).max(axis=2)
    noise = float(np.median(contrast))
    if noise > GROUND_NOISE:
        return None
    threshold = max(INK_CONTRAST + 4 * noise, FAINT * float(np.quantile(contrast, 0.999)))
    ink = _without_specks(contrast > threshold, STROKE_MIN_PIXELS * _scale(image))
    brightness, dark_up_to, light_from = float(ground.mean()), *GROUND_LEVELS
    darker = float((pixels.mean(axis=2) < brightness)[ink].mean()) if ink.any() else 0.5
    is_dark_on_light = brightness >= light_from and darker > 0.8
    is_light_on_dark = brightness <= dark_up_to and darker < 0.2
    is_even = (contrast < threshold / 2).mean() >= GROUND_SHARE and INK_SHARE[0] <= ink.mean() <= INK_SHARE[1]
    if not (is_even and (is_dark_on_light or is_light_on_dark)):
        return None
    width = round(STROKE_WIDTH * min(image.size) / BASE_SIDE) | 1
    solid = cv2.morphologyEx(ink.astype(np.uint8), cv2.MORPH_OPEN, np.ones((width, width), np.uint8))
    if solid.sum() > SOLID_SHARE * ink.sum():
        return None
    strongest = float(np.quantile(contrast[ink], 0.9))
    return np.where(ink, np.minimum(1, contrast / strongest), 0).astype(np.float32)


def _thickened(ink: npt.NDArray[np.bool_], image: Image.Image) -> Grey:
    width = 2 * round(_scale(image)) + 1
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (width, width))
    return np.asarray(cv2.dilate(ink.astype(np.float32), kernel), np.float32)


def _without_specks(strokes: npt.NDArray[np.bool_], min_pixels: float) -> npt.NDArray[np.bool_]:
    _, labels, stats, _ = cv2.connectedComponentsWithStats(strokes.astype(np.uint8), connectivity=8)
    is_stroke = stats[:, cv2.CC_STAT_AREA] >= min_pixels
    # Component 0 is the background.
    is_stroke[0] = False
    return np.asarray(is_stroke[labels])


def _edges(image: Image.Image, sigmas: Sequence[float]) -> Grey:
    """Return the gradient magnitude of the channel that changes most, summed over several scales."""
    channels = np.asarray(image, np.float32) / 255
    total = np.zeros(channels.shape[:2], np.float32)
    for base_sigma in sigmas:
        sigma = base_sigma * _scale(image)
        smooth = _blur(channels, sigma)
        across, down = cv2.Sobel(smooth, cv2.CV_32F, 1, 0), cv2.Sobel(smooth, cv2.CV_32F, 0, 1)
        # Blurring reduces the gradient of a step in proportion to sigma. The factor makes all scales count equally.
        total += sigma * np.sqrt(across**2 + down**2).max(axis=2)
    return np.tanh(2 * total / len(sigmas)).astype(np.float32)


def _ridges(edges: Grey) -> npt.NDArray[np.bool_]:
    """Return where an edge is a local maximum in at least two of four directions.

    One direction is not enough, because an edge has local maxima along its own direction as well.
    """
    ridges = np.zeros(edges.shape, np.uint8)
    for direction in (np.eye(3), np.fliplr(np.eye(3)), np.outer([0, 1, 0], [1, 1, 1]), np.outer([1, 1, 1], [0, 1, 0])):
        kernel = direction.astype(np.uint8)
        ridges += (cv2.dilate(edges, kernel) == edges) & (cv2.erode(edges, kernel) < edges)
    return ridges >= 2


def _blur(pixels: npt.NDArray[Any], sigma: float) -> npt.NDArray[np.float32]:
    return np.asarray(cv2.GaussianBlur(pixels, (0, 0), sigma), np.float32)


def _scale(image: Image.Image) -> float:
    """Return the factor of lengths for the size of the image."""
    return float(max(1.0, min(image.size) / BASE_SIDE))


def _to_image(grey: npt.NDArray[np.floating]) -> Image.Image:
    return Image.fromarray((grey * 255).round().astype(np.uint8)).convert("RGB")
