"""Draws body keypoints in the style of OpenPose (Cao et al., 2019), as pose ControlNets were trained to read them.

Limbs, colours and proportions are those of `draw_bodypose` in controlnet_aux.
"""

import math
from collections.abc import Mapping, Sequence

import cv2
import numpy as np
import numpy.typing as npt

Point = tuple[float, float]
# (x, y) in pixels by COCO keypoint number; keypoints that were not found are missing.
Keypoints = Mapping[int, Point]

# COCO keypoint number of each OpenPose keypoint. COCO has no neck; it is the midpoint of the shoulders.
NECK, SHOULDERS = -1, (5, 6)
COCO_NUMBERS = (0, NECK, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3)
# Pairs of OpenPose keypoints. Limbs and keypoints have the colours of COLOURS, in their order.
LIMBS = (
    *((1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10)),
    *((1, 11), (11, 12), (12, 13), (1, 0), (0, 14), (14, 16), (0, 15), (15, 17)),
)
LIMB_BRIGHTNESS = 0.6
# Radius of a keypoint and half the width of a limb, in pixels, for an image whose shorter side is REFERENCE_SIDE.
RADIUS = 4
REFERENCE_SIDE = 512


def draw_pose(people: Sequence[Keypoints], size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Draw people on black: first all limbs, then all keypoints.

    Args:
        size: (width, height) in pixels.

    Returns:
        RGB array of shape (height, width, 3).
    """
    canvas = np.zeros((size[1], size[0], 3), np.uint8)
    radius = max(1, round(RADIUS * min(size) / REFERENCE_SIDE))
    bodies = [_to_openpose(keypoints) for keypoints in people]
    for body in bodies:
        for colour, (start, end) in zip(COLOURS, LIMBS, strict=False):
            if start in body and end in body:
                dimmed = tuple(LIMB_BRIGHTNESS * channel for channel in colour)
                _draw_limb(canvas, body[start], body[end], radius, dimmed)
    for body in bodies:
        for index, (x, y) in body.items():
            cv2.circle(canvas, (round(x), round(y)), radius, COLOURS[index], thickness=-1)
    return canvas


def _to_openpose(keypoints: Keypoints) -> dict[int, Point]:
    """Return the keypoints by OpenPose number, with the neck."""
    found = dict(keypoints)
    if all(shoulder in found for shoulder in SHOULDERS):
        (left, right) = (found[shoulder] for shoulder in SHOULDERS)
        found[NECK] = ((left[0] + right[0]) / 2, (left[1] + right[1]) / 2)
    return {index: found[number] for index, number in enumerate(COCO_NUMBERS) if number in found}


def _draw_limb(canvas: npt.NDArray[np.uint8], start: Point, end: Point, radius: int, colour: tuple[float, ...]) -> None:
    """Draw a filled ellipse from keypoint to keypoint."""
    middle = (round((start[0] + end[0]) / 2), round((start[1] + end[1]) / 2))
    dx, dy = end[0] - start[0], end[1] - start[1]
    axes = (round(math.hypot(dx, dy) / 2), radius)
    outline = cv2.ellipse2Poly(middle, axes, round(math.degrees(math.atan2(dy, dx))), 0, 360, 1)
    cv2.fillConvexPoly(canvas, np.asarray(outline), colour)


def _hue_circle() -> list[tuple[int, int, int]]:
    """Return 18 RGB colours around the hue circle, from red to pink."""
    falling = (255, 170, 85, 0)
    rising = falling[::-1]
    colours = [(255, level, 0) for level in rising]
    colours += [(level, 255, 0) for level in falling[1:]]
    colours += [(0, 255, level) for level in rising[1:]]
    colours += [(0, level, 255) for level in falling[1:]]
    colours += [(level, 0, 255) for level in rising[1:]]
    return [*colours, (255, 0, 170), (255, 0, 85)]


COLOURS = _hue_circle()
