"""Crude drawings: flat colours and simple shapes without light and detail."""

from __future__ import annotations

import random

from PIL import Image

from .canvas import Canvas
from .palette import HOUSE, RGB
from .scenes import Scene

SKY: RGB = (0.60, 0.80, 0.98)
SUN: RGB = (1.0, 0.87, 0.20)
CLOUD: RGB = (1.0, 1.0, 1.0)
MOUNTAIN: RGB = (0.55, 0.55, 0.58)
GRASS: RGB = (0.36, 0.66, 0.28)
WATER: RGB = (0.22, 0.50, 0.88)
CROWN: RGB = (0.10, 0.42, 0.16)
TRUNK: RGB = (0.45, 0.28, 0.14)
ROOF: RGB = (0.42, 0.22, 0.14)


def draw_crudely(scene: Scene, size: int = 128) -> Image.Image:
    """Draw a scene by day as flat shapes, size x size pixels. Shades depend on the seed."""
    rng = random.Random(f"crude {scene.seed}")

    def shade(colour: RGB) -> RGB:
        r, g, b = (min(max(channel + rng.uniform(-0.08, 0.08), 0.0), 1.0) for channel in colour)
        return (r, g, b)

    sky = shade(SKY)
    canvas = Canvas(size, sky, sky, scene.horizon)
    canvas.ellipse(scene.sun_x, scene.sun_y, 0.08, 0.08, shade(SUN))
    for cloud in scene.clouds:
        canvas.ellipse(cloud.x, cloud.y, 0.5 * cloud.width, 0.25 * cloud.width, CLOUD)
    for peak in scene.peaks:
        left, right = peak.x - peak.half_width, peak.x + peak.half_width
        corners = [(left, scene.horizon), (peak.x, scene.horizon - peak.height), (right, scene.horizon)]
        canvas.polygon(corners, shade(MOUNTAIN))
    canvas.rectangle(0.0, scene.horizon, 1.0, 1.0, shade(GRASS))
    if scene.sea_shore is not None:
        canvas.rectangle(0.0, scene.horizon, 1.0, scene.sea_shore, shade(WATER))
    if scene.lake is not None:
        canvas.ellipse(scene.lake.x, scene.lake.y, scene.lake.half_width, scene.lake.half_height, shade(WATER))
    for tree in scene.trees:
        x, y, h = tree.x, tree.y, tree.height
        canvas.rectangle(x - 0.07 * h, y - 0.4 * h, x + 0.07 * h, y, shade(TRUNK))
        if scene.tree_kind == "pine":
            canvas.polygon([(x - 0.3 * h, y - 0.2 * h), (x, y - h), (x + 0.3 * h, y - 0.2 * h)], shade(CROWN))
        else:
            canvas.ellipse(x, y - 0.65 * h, 0.32 * h, 0.34 * h, shade(CROWN))
    if scene.house is not None:
        house = scene.house
        half, wall_top = house.width / 2, house.y - house.wall_height
        canvas.rectangle(house.x - half, wall_top, house.x + half, house.y, shade(HOUSE[house.colour]))
        gable = [(house.x - half, wall_top), (house.x, wall_top - house.roof_height), (house.x + half, wall_top)]
        canvas.polygon(gable, shade(ROOF))
    return Image.fromarray((canvas.image() * 255).round().astype("uint8"))
