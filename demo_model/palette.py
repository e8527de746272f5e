"""Colours (RGB in 0..1) by time of day and season."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .scenes import HouseColour, Season, Time

FloatArray = npt.NDArray[np.float32]
RGB = tuple[float, float, float]

SKY_TOP: dict[Time, RGB] = {"day": (0.22, 0.52, 0.92), "sunset": (0.42, 0.26, 0.56), "night": (0.03, 0.05, 0.16)}
SKY_BOTTOM: dict[Time, RGB] = {"day": (0.74, 0.88, 0.98), "sunset": (1.0, 0.60, 0.24), "night": (0.10, 0.14, 0.32)}
WINTER_SKY_TOP: RGB = (0.55, 0.70, 0.88)
WINTER_SKY_BOTTOM: RGB = (0.88, 0.93, 0.97)
SUN: dict[Time, RGB] = {"day": (1.0, 0.93, 0.40), "sunset": (1.0, 0.82, 0.30), "night": (0.95, 0.95, 0.85)}
CLOUD: dict[Time, RGB] = {"day": (1.0, 1.0, 1.0), "sunset": (1.0, 0.66, 0.56), "night": (0.20, 0.23, 0.36)}
LIGHT: dict[Time, RGB] = {"day": (1.0, 1.0, 1.0), "sunset": (1.0, 0.84, 0.80), "night": (0.28, 0.31, 0.46)}
"""Factors of object colours by time of day."""
HOUSE_LIGHT: dict[Time, RGB] = {"day": (1.0, 1.0, 1.0), "sunset": (0.97, 0.84, 0.78), "night": (0.46, 0.46, 0.56)}
"""Houses keep more of their colour than the land, so that they can be distinguished at night."""

NEAR_GROUND: dict[Season, RGB] = {
    "summer": (0.28, 0.58, 0.16),
    "autumn": (0.72, 0.58, 0.22),
    "winter": (0.95, 0.97, 1.0),
}
FAR_GROUND: dict[Season, RGB] = {
    "summer": (0.46, 0.70, 0.28),
    "autumn": (0.80, 0.68, 0.32),
    "winter": (0.84, 0.89, 0.96),
}
HILL: dict[Season, RGB] = {"summer": (0.30, 0.52, 0.30), "autumn": (0.64, 0.46, 0.24), "winter": (0.74, 0.81, 0.90)}
ROUND_CROWN: dict[Season, RGB] = {
    "summer": (0.15, 0.42, 0.12),
    "autumn": (0.90, 0.42, 0.06),
    "winter": (0.46, 0.56, 0.62),
}
PINE_CROWN: dict[Season, RGB] = {
    "summer": (0.07, 0.34, 0.20),
    "autumn": (0.28, 0.34, 0.14),
    "winter": (0.24, 0.44, 0.44),
}
HOUSE: dict[HouseColour, RGB] = {
    "red": (0.84, 0.12, 0.10),
    "blue": (0.12, 0.30, 0.84),
    "yellow": (0.98, 0.82, 0.10),
    "white": (0.96, 0.95, 0.93),
    "purple": (0.56, 0.18, 0.68),
}
MOUNTAIN: RGB = (0.50, 0.52, 0.60)
SNOW: RGB = (0.95, 0.97, 1.0)
WATER: dict[Time, RGB] = {"day": (0.16, 0.42, 0.74), "sunset": (0.48, 0.36, 0.62), "night": (0.06, 0.13, 0.34)}
SAND: RGB = (0.90, 0.80, 0.56)
ROAD: RGB = (0.62, 0.56, 0.50)
ROOF: RGB = (0.36, 0.24, 0.20)
DOOR: RGB = (0.34, 0.20, 0.10)
TRUNK: RGB = (0.36, 0.24, 0.14)
WINDOW: dict[Time, RGB] = {"day": (0.66, 0.84, 0.94), "sunset": (1.0, 0.86, 0.50), "night": (1.0, 0.86, 0.36)}


@dataclass(frozen=True)
class Light:
    """Changes the colour of an object to its colour at a time of day."""

    time: Time

    def on_land(self, colour: RGB) -> RGB:
        return _product(colour, LIGHT[self.time])

    def on_house(self, colour: RGB) -> RGB:
        return _product(colour, HOUSE_LIGHT[self.time])


def _product(a: RGB, b: RGB) -> RGB:
    return (a[0] * b[0], a[1] * b[1], a[2] * b[2])


def mix(a: RGB, b: RGB, share_of_b: float) -> RGB:
    keep = 1.0 - share_of_b
    return (a[0] * keep + b[0] * share_of_b, a[1] * keep + b[1] * share_of_b, a[2] * keep + b[2] * share_of_b)
