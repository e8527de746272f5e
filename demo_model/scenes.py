"""Landscapes sampled from seeds. `painting`, `styles` and `captions` render and describe them.

Positions and sizes are fractions of the image's side, x to the right and y down.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal, get_args

Style = Literal["photo", "watercolor", "pencil", "oil", "pixel"]
Time = Literal["day", "sunset", "night"]
Season = Literal["summer", "autumn", "winter"]
HouseColour = Literal["red", "blue", "yellow", "white", "purple"]
Water = Literal["none", "lake", "sea"]
TreeKind = Literal["round", "pine"]

STYLES: tuple[Style, ...] = get_args(Style)
TIMES: tuple[Time, ...] = get_args(Time)
SEASONS: tuple[Season, ...] = get_args(Season)
HOUSE_COLOURS: tuple[HouseColour, ...] = get_args(HouseColour)

HELD_OUT_SEED = 10_000_000
"""First seed for evaluation; training uses smaller seeds."""


@dataclass(frozen=True)
class House:
    """A gabled house; `x` is its centre, `y` the bottom of its wall."""

    x: float
    y: float
    width: float
    wall_height: float
    roof_height: float
    colour: HouseColour
    chimney: bool


@dataclass(frozen=True)
class Tree:
    x: float
    y: float
    height: float


@dataclass(frozen=True)
class Cloud:
    x: float
    y: float
    width: float


@dataclass(frozen=True)
class Peak:
    x: float
    half_width: float
    height: float


@dataclass(frozen=True)
class Lake:
    x: float
    y: float
    half_width: float
    half_height: float


@dataclass(frozen=True)
class Scene:
    """Everything that an image depends on, except style and size."""

    seed: int
    time: Time
    season: Season
    horizon: float
    sun_x: float
    sun_y: float
    clouds: tuple[Cloud, ...]
    peaks: tuple[Peak, ...]
    hill_phase: float
    tree_kind: TreeKind
    trees: tuple[Tree, ...]
    house: House | None
    sea_shore: float | None
    lake: Lake | None
    road: bool

    @property
    def sun_y_now(self) -> float:
        """At sunset the sun is half way between its height at noon and the horizon."""
        return (self.sun_y + self.horizon) / 2 if self.time == "sunset" else self.sun_y

    @property
    def water(self) -> Water:
        if self.sea_shore is not None:
            return "sea"
        return "lake" if self.lake is not None else "none"


def sample_scene(seed: int) -> Scene:
    """Return the scene of a seed, equal on every machine."""
    rng = random.Random(f"scene {seed}")
    horizon = rng.uniform(0.44, 0.54)
    water: Water = rng.choices(("none", "lake", "sea"), (0.45, 0.33, 0.22))[0]
    side = rng.choice((-1, 1))
    house = _sample_house(rng, side, water) if rng.random() < 0.75 else None
    sea_shore = rng.uniform(0.66, 0.72) if water == "sea" else None
    lake = _sample_lake(rng, -side) if water == "lake" else None
    tree_count = rng.choices((0, 2, 3, 4, 5), (0.2, 0.2, 0.25, 0.2, 0.15))[0]
    return Scene(
        seed=seed,
        time=rng.choices(TIMES, (0.4, 0.3, 0.3))[0],
        season=rng.choice(SEASONS),
        horizon=horizon,
        sun_x=rng.uniform(0.12, 0.88),
        sun_y=rng.uniform(0.12, 0.24),
        clouds=tuple(_sample_cloud(rng, slot) for slot in rng.sample(range(3), rng.choice((0, 0, 1, 2)))),
        peaks=_sample_peaks(rng) if rng.random() < 0.45 else (),
        hill_phase=rng.uniform(0.0, 6.28),
        tree_kind=rng.choice(("round", "pine")),
        trees=_sample_trees(rng, tree_count, house, lake, ground_top=sea_shore or horizon),
        house=house,
        sea_shore=sea_shore,
        lake=lake,
        road=house is not None and water != "lake" and rng.random() < 0.35,
    )


def _sample_house(rng: random.Random, side: int, water: Water) -> House:
    width = rng.uniform(0.32, 0.42)
    return House(
        x=0.5 + side * rng.uniform(0.06, 0.24),
        y=rng.uniform(0.86, 0.91) if water == "sea" else rng.uniform(0.78, 0.88),
        width=width,
        wall_height=width * rng.uniform(0.5, 0.6),
        roof_height=width * rng.uniform(0.4, 0.5),
        colour=rng.choice(HOUSE_COLOURS),
        chimney=rng.random() < 0.6,
    )


def _sample_lake(rng: random.Random, side: int) -> Lake:
    half_width = rng.uniform(0.26, 0.36)
    return Lake(0.5 + side * rng.uniform(0.2, 0.32), rng.uniform(0.76, 0.84), half_width, half_width * 0.32)


def _sample_cloud(rng: random.Random, slot: int) -> Cloud:
    return Cloud(rng.uniform(0.1, 0.3) + 0.3 * slot, rng.uniform(0.1, 0.3), rng.uniform(0.2, 0.3))


def _sample_peaks(rng: random.Random) -> tuple[Peak, ...]:
    count = rng.choice((2, 3))
    return tuple(
        Peak((slot + rng.uniform(0.3, 0.7)) / count, rng.uniform(0.24, 0.34), rng.uniform(0.17, 0.28))
        for slot in range(count)
    )


def _sample_trees(
    rng: random.Random, count: int, house: House | None, lake: Lake | None, ground_top: float
) -> tuple[Tree, ...]:
    """Sample trees on the ground, not in the lake or in front of the house; distant ones are smaller."""
    trees: list[Tree] = []
    for _ in range(8 * count):
        if len(trees) == count:
            break
        x, y = rng.uniform(0.06, 0.94), rng.uniform(ground_top + 0.1, 0.94)
        in_lake = (
            lake is not None
            and ((x - lake.x) / (lake.half_width + 0.03)) ** 2 + ((y - lake.y) / (lake.half_height + 0.03)) ** 2 < 1.0
        )
        at_house = house is not None and abs(x - house.x) < house.width / 2 + 0.09
        crowded = any(abs(x - tree.x) < 0.13 for tree in trees)
        if not (in_lake or at_house or crowded):
            trees.append(Tree(x, y, (0.2 + 0.28 * (y - ground_top)) * rng.uniform(0.9, 1.15)))
    return tuple(sorted(trees, key=lambda tree: tree.y))
