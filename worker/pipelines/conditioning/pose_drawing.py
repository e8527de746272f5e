"""A person's joints as OpenPose's figure of sticks: what pose ControlNets were trained to read."""

import math
from collections.abc import Mapping, Sequence

import cv2
import numpy as np
import numpy.typing as npt

Point = tuple[float, float]
Joints = Mapping[int, Point]  # x, y in pixels, by the joint's number in COCO's order; those that are seen

# Joints in OpenPose's order, by their numbers in COCO's; the neck, which COCO has not, is between the shoulders (5, 6).
NOSE, NECK, SHOULDERS = 0, -1, (5, 6)
ORDER = (NOSE, NECK, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3)
# Sticks between joints, by their places in ORDER. The colours of both go once around the wheel, from red to pink.
STICKS = (
    *((1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10)),
    *((1, 11), (11, 12), (12, 13), (1, 0), (0, 14), (14, 16), (0, 15), (15, 17)),
)
WHEEL = (255, 170, 85, 0)
STICK_BRIGHTNESS = 0.6
USUAL_SIDE = 512
RADIUS = 4  # pixels of a picture of that side: of joints, and half the thickness of sticks


def draw_pose(people: Sequence[Joints], size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """(height, width, 3): everybody's sticks, then everybody's joints, on black. size: width and height."""
    canvas = np.zeros((size[1], size[0], 3), np.uint8)
    radius = max(1, round(RADIUS * min(size) / USUAL_SIDE))
    figures = [_with_neck(joints) for joints in people]
    for figure in figures:
        for colour, (start, end) in zip(_colours(), STICKS, strict=False):
            if start in figure and end in figure:
                _stick(canvas, figure[start], figure[end], radius, tuple(STICK_BRIGHTNESS * part for part in colour))
    for figure in figures:
        for place, (x, y) in figure.items():
            cv2.circle(canvas, (round(x), round(y)), radius, _colours()[place], thickness=-1)
    return canvas


def _with_neck(joints: Joints) -> dict[int, Point]:
    """The joints by their place in ORDER."""
    known = dict(joints)
    if all(shoulder in known for shoulder in SHOULDERS):
        (left, right) = (known[shoulder] for shoulder in SHOULDERS)
        known[NECK] = ((left[0] + right[0]) / 2, (left[1] + right[1]) / 2)
    return {place: known[joint] for place, joint in enumerate(ORDER) if joint in known}


def _stick(canvas: npt.NDArray[np.uint8], start: Point, end: Point, radius: int, colour: tuple[float, ...]) -> None:
    """A slim ellipse from joint to joint."""
    middle = (round((start[0] + end[0]) / 2), round((start[1] + end[1]) / 2))
    across, down = end[0] - start[0], end[1] - start[1]
    axes = (round(math.hypot(across, down) / 2), radius)
    outline = cv2.ellipse2Poly(middle, axes, round(math.degrees(math.atan2(down, across))), 0, 360, 1)
    cv2.fillConvexPoly(canvas, np.asarray(outline), colour)


def _colours() -> list[tuple[int, int, int]]:
    """Eighteen steps around the colour wheel: red, yellow, green, blue, pink, each third of a step."""
    rising, falling = WHEEL[::-1], WHEEL
    wheel = [(255, part, 0) for part in rising]
    wheel += [(part, 255, 0) for part in falling[1:]]
    wheel += [(0, 255, part) for part in rising[1:]]
    wheel += [(0, part, 255) for part in falling[1:]]
    wheel += [(part, 0, 255) for part in rising[1:]]
    return [*wheel, (255, 0, 170), (255, 0, 85)]
