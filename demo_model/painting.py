"""Paints a scene from far to near in its natural colours, the input of every style."""

from __future__ import annotations

import math
import random

from . import palette
from .canvas import Canvas
from .palette import Light, mix
from .scenes import Cloud, House, Lake, Scene, Tree

SKY_NEARNESS, SUN_NEARNESS, CLOUD_NEARNESS, MOUNTAIN_NEARNESS, HILL_NEARNESS = 0.0, 0.02, 0.05, 0.12, 0.2
HORIZON_NEARNESS = 0.25


def paint(scene: Scene, size: int) -> Canvas:
    """Paint the whole scene."""
    light = Light(scene.time)
    canvas = Canvas(size, *_sky(scene), scene.horizon)
    if scene.time == "night":
        _stars(canvas, scene)
    _sun(canvas, scene)
    for cloud in scene.clouds:
        _cloud(canvas, cloud, scene)
    _mountains(canvas, scene, light)
    _hills(canvas, scene, light)
    _ground(canvas, scene, light)
    if scene.sea_shore is not None:
        _sea(canvas, scene, scene.sea_shore)
    if scene.lake is not None:
        _lake(canvas, scene, scene.lake, light)
    if scene.road and scene.house is not None:
        _road(canvas, scene.house, light)
    standing: list[Tree | House] = [*scene.trees, *([scene.house] if scene.house else [])]
    for thing in sorted(standing, key=lambda thing: thing.y):
        if isinstance(thing, House):
            _house(canvas, thing, scene, light)
        else:
            _tree(canvas, thing, scene, light)
    return canvas


def _sky(scene: Scene) -> tuple[palette.RGB, palette.RGB]:
    if scene.season == "winter" and scene.time == "day":
        return palette.WINTER_SKY_TOP, palette.WINTER_SKY_BOTTOM
    return palette.SKY_TOP[scene.time], palette.SKY_BOTTOM[scene.time]


def _stars(canvas: Canvas, scene: Scene) -> None:
    rng = random.Random(f"stars {scene.seed}")
    canvas.decorate()
    for column in range(8):
        x, y = (column + rng.uniform(0.2, 0.8)) / 8, rng.uniform(0.03, 0.38)
        canvas.ellipse(x, y, 0.008, 0.008, (0.9, 0.9, 0.95))


def _sun(canvas: Canvas, scene: Scene) -> None:
    canvas.part("sun", SUN_NEARNESS)
    canvas.ellipse(scene.sun_x, scene.sun_y_now, 0.075, 0.075, palette.SUN[scene.time])


def _cloud(canvas: Canvas, cloud: Cloud, scene: Scene) -> None:
    colour = palette.CLOUD[scene.time]
    canvas.part("cloud", CLOUD_NEARNESS)
    for dx, dy, radius in ((-0.28, 0.02, 0.2), (0.0, -0.06, 0.27), (0.27, 0.02, 0.21)):
        canvas.ellipse(
            cloud.x + dx * cloud.width, cloud.y + dy * cloud.width, radius * cloud.width, radius * cloud.width, colour
        )
    canvas.ellipse(cloud.x, cloud.y + 0.12 * cloud.width, 0.5 * cloud.width, 0.12 * cloud.width, colour)


def _mountains(canvas: Canvas, scene: Scene, light: Light) -> None:
    haze = _sky(scene)[1]
    lit = mix(light.on_land(palette.MOUNTAIN), haze, 0.12)
    shaded = mix(light.on_land(mix(palette.MOUNTAIN, (0.0, 0.0, 0.0), 0.35)), haze, 0.12)
    snow = light.on_land(palette.SNOW)
    for peak in scene.peaks:
        foot, top = scene.horizon + 0.05, scene.horizon - peak.height
        canvas.part("mountain", MOUNTAIN_NEARNESS)
        canvas.polygon([(peak.x - peak.half_width, foot), (peak.x, top), (peak.x + peak.half_width, foot)], lit)
        canvas.polygon(
            [(peak.x, top), (peak.x + peak.half_width, foot), (peak.x + 0.2 * peak.half_width, foot)], shaded
        )
        share = 0.55 if scene.season == "winter" else 0.3
        cap, side = top + share * (foot - top), share * peak.half_width
        canvas.polygon(
            [(peak.x - side, cap), (peak.x, top), (peak.x + side, cap), (peak.x, cap - 0.3 * (cap - top))], snow
        )


def _hills(canvas: Canvas, scene: Scene, light: Light) -> None:
    if scene.sea_shore is not None:
        return
    crest = [
        (x / 24, scene.horizon - 0.035 + 0.035 * math.sin(2 * math.pi * x / 24 + scene.hill_phase)) for x in range(25)
    ]
    canvas.part("hill", HILL_NEARNESS)
    canvas.polygon([*crest, (1.0, 1.0), (0.0, 1.0)], light.on_land(palette.HILL[scene.season]))


def _ground(canvas: Canvas, scene: Scene, light: Light) -> None:
    far, near = light.on_land(palette.FAR_GROUND[scene.season]), light.on_land(palette.NEAR_GROUND[scene.season])
    top = scene.horizon if scene.sea_shore is not None else scene.horizon + 0.02
    canvas.part("ground", HORIZON_NEARNESS, 1.0)
    canvas.rectangle(0.0, top, 1.0, 1.0, canvas.vertical_gradient(far, near, top, 1.0))


def _water_colour(scene: Scene) -> palette.RGB:
    """Mix blue with the colour of the sky above the water."""
    return mix(palette.WATER[scene.time], _sky(scene)[1], 0.15)


def _sea(canvas: Canvas, scene: Scene, shore: float) -> None:
    light = Light(scene.time)
    sand = light.on_land(mix(palette.SAND, palette.SNOW, 0.7 if scene.season == "winter" else 0.0))
    canvas.part("ground", HORIZON_NEARNESS, 1.0)
    canvas.rectangle(0.0, shore, 1.0, shore + 0.08, sand)
    canvas.part("water", HORIZON_NEARNESS, 1.0)
    canvas.rectangle(0.0, scene.horizon, 1.0, shore, _water_colour(scene))


def _lake(canvas: Canvas, scene: Scene, lake: Lake, light: Light) -> None:
    bank = light.on_land(mix(palette.NEAR_GROUND[scene.season], (0.3, 0.24, 0.14), 0.5))
    canvas.part("water", HORIZON_NEARNESS, 1.0)
    canvas.ellipse(lake.x, lake.y, lake.half_width, lake.half_height, bank)
    canvas.ellipse(lake.x, lake.y, lake.half_width - 0.014, lake.half_height - 0.012, _water_colour(scene))


def _road(canvas: Canvas, house: House, light: Light) -> None:
    foot = house.x + (0.12 if house.x < 0.5 else -0.12)
    canvas.part("road", HORIZON_NEARNESS, 1.0)
    canvas.polygon(
        [(house.x - 0.04, house.y - 0.02), (house.x + 0.04, house.y - 0.02), (foot + 0.11, 1.0), (foot - 0.11, 1.0)],
        light.on_land(palette.ROAD),
    )


def _nearness_at(scene: Scene, y: float) -> float:
    """Return the nearness of an object that touches the ground at this height of the image."""
    share = min(max((y - scene.horizon) / (1.0 - scene.horizon), 0.0), 1.0)
    return HORIZON_NEARNESS + (1.0 - HORIZON_NEARNESS) * share


def _tree(canvas: Canvas, tree: Tree, scene: Scene, light: Light) -> None:
    x, y, h = tree.x, tree.y, tree.height
    kinds = palette.PINE_CROWN if scene.tree_kind == "pine" else palette.ROUND_CROWN
    crown = light.on_land(kinds[scene.season])
    glint, share = (palette.SNOW, 0.9) if scene.season == "winter" else ((1.0, 1.0, 0.8), 0.22)
    bright = mix(crown, light.on_land(glint), share)
    canvas.part("tree", _nearness_at(scene, y))
    canvas.rectangle(x - 0.05 * h, y - 0.35 * h, x + 0.05 * h, y, light.on_land(palette.TRUNK))
    canvas.part("tree", _nearness_at(scene, y))
    if scene.tree_kind == "pine":
        for top, bottom, half in ((0.55, 0.15, 0.30), (0.8, 0.4, 0.24), (1.05, 0.65, 0.18)):
            canvas.polygon([(x - half * h, y - bottom * h), (x, y - top * h), (x + half * h, y - bottom * h)], crown)
            canvas.polygon([(x - half * h, y - bottom * h), (x, y - top * h), (x, y - bottom * h)], bright)
    else:
        canvas.ellipse(x, y - 0.66 * h, 0.32 * h, 0.34 * h, crown)
        canvas.ellipse(x - 0.08 * h, y - 0.74 * h, 0.19 * h, 0.2 * h, bright)


def _house(canvas: Canvas, house: House, scene: Scene, light: Light) -> None:
    wall = light.on_house(palette.HOUSE[house.colour])
    roof = light.on_house(palette.SNOW if scene.season == "winter" else palette.ROOF)
    half, wall_top = house.width / 2, house.y - house.wall_height
    nearness = _nearness_at(scene, house.y)
    canvas.part("house", nearness)
    if house.chimney:
        chimney_x = house.x + 0.5 * half
        canvas.rectangle(
            chimney_x - 0.022, wall_top - 0.85 * house.roof_height, chimney_x + 0.022, wall_top,
            light.on_house(palette.ROOF),
        )  # fmt: skip
    canvas.part("house", nearness)
    canvas.rectangle(house.x - half, wall_top, house.x + half, house.y, wall)
    canvas.part("house", nearness)
    canvas.polygon(
        [(house.x - 1.18 * half, wall_top + 0.01), (house.x, wall_top - house.roof_height),
         (house.x + 1.18 * half, wall_top + 0.01)], roof,
    )  # fmt: skip
    canvas.part("house", nearness)
    canvas.rectangle(
        house.x - 0.18 * half, house.y - 0.6 * house.wall_height, house.x + 0.18 * half, house.y,
        light.on_house(palette.DOOR),
    )  # fmt: skip
    window = palette.WINDOW[scene.time]
    for middle in (house.x - 0.6 * half, house.x + 0.6 * half):
        canvas.part("house", nearness)
        top, bottom = wall_top + 0.26 * house.wall_height, wall_top + 0.62 * house.wall_height
        canvas.rectangle(middle - 0.19 * half, top, middle + 0.19 * half, bottom, window)
