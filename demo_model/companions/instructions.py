"""Edit instructions with the scene before and after."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..canvas import CLASSES
from ..dataset import SIZE, Images, cached
from ..painting import paint
from ..scenes import HOUSE_COLOURS, SEASONS, STYLES, TIMES, Cloud, Scene, Season, Style, Time, sample_scene
from ..styles import render
from .maps import Bytes

Kind = str
KINDS: tuple[Kind, ...] = ("time", "style", "house", "season", "clouds", "trees")
SHARES = (24, 26, 16, 20, 8, 6)
_REMOVE: dict[Kind, tuple[str, ...]] = {
    "clouds": ("remove the clouds", "take away the clouds", "make the sky clear", "remove all clouds"),
    "trees": ("remove the trees", "take away the trees", "cut down the trees", "remove all trees"),
}
_TIME_WORDS: dict[Time, tuple[str, ...]] = {
    "day": ("make it day", "turn it into day", "make it daylight", "by day"),
    "sunset": ("make it sunset", "at sunset", "make it evening", "turn it into a sunset"),
    "night": ("make it night", "turn it into night", "at night", "make it a night scene"),
}
_STYLE_WORDS: dict[Style, tuple[str, ...]] = {
    "photo": ("make it a photo", "turn it into a photo", "as a photograph"),
    "watercolor": ("turn it into a watercolor", "make it a watercolor painting", "as a watercolor painting"),
    "pencil": ("turn it into a pencil sketch", "make it a pencil drawing", "as a pencil sketch"),
    "oil": ("turn it into an oil painting", "make it an oil painting", "as an oil painting"),
    "pixel": ("turn it into pixel art", "make it pixel art", "as pixel art"),
}
_SEASON_WORDS: dict[Season, tuple[str, ...]] = {
    "summer": ("make it summer", "turn it into summer", "remove the snow"),
    "autumn": ("make it autumn", "turn it into autumn", "make it fall"),
    "winter": ("add snow", "make it winter", "cover it in snow", "turn it into winter"),
}


@dataclass(frozen=True)
class Instruction:
    """A scene, an instruction, and the scene after it."""

    kind: Kind
    words: str
    before: Scene
    after: Scene
    style_before: Style
    style_after: Style

    def images(self) -> tuple[Bytes, Bytes]:
        """Return the images before and after, (128, 128, 3) each."""
        return (
            np.asarray(render(self.before, self.style_before, SIZE)),
            np.asarray(render(self.after, self.style_after, SIZE)),
        )

    def changed(self) -> np.ndarray[tuple[int, int], np.dtype[np.bool_]]:
        """Return the mask of pixels that may change, (128, 128): all of them for time, season and style."""
        if self.kind in ("time", "style", "season"):
            return np.ones((SIZE, SIZE), np.bool_)
        part = {"house": "house", "clouds": "cloud", "trees": "tree"}[self.kind]
        return paint(self.before, SIZE).segmentation() == CLASSES.index(part)


def sample_instruction(seed: int, kind: Kind | None = None) -> Instruction:
    """Return the instruction of a seed, equal on every machine; of one kind, if `kind` is given."""
    rng = random.Random(f"instruction {seed}")
    scene = sample_scene(seed)
    style = rng.choices(STYLES, (0.6, 0.1, 0.08, 0.12, 0.1))[0]
    return _MAKERS[kind or rng.choices(KINDS, SHARES)[0]](scene, style, rng)


def _time(scene: Scene, style: Style, rng: random.Random) -> Instruction:
    # A pencil sketch hardly shows the time of day.
    style = "photo" if style == "pencil" else style
    wanted = rng.choice([time for time in TIMES if time != scene.time])
    return Instruction("time", rng.choice(_TIME_WORDS[wanted]), scene, replace(scene, time=wanted), style, style)


def _style(scene: Scene, style: Style, rng: random.Random) -> Instruction:
    wanted = rng.choice([other for other in STYLES if other != style])
    return Instruction("style", rng.choice(_STYLE_WORDS[wanted]), scene, scene, style, wanted)


def _season(scene: Scene, style: Style, rng: random.Random) -> Instruction:
    style = "photo" if style == "pencil" else style
    wanted = rng.choice([season for season in SEASONS if season != scene.season])
    choice = [words for words in _SEASON_WORDS[wanted] if scene.season == "winter" or words != "remove the snow"]
    return Instruction("season", rng.choice(choice), scene, replace(scene, season=wanted), style, style)


def _house(scene: Scene, style: Style, rng: random.Random) -> Instruction:
    style = "photo" if style == "pencil" else style
    scene = _until(scene, lambda found: found.house is not None)
    assert scene.house is not None
    wanted = rng.choice([colour for colour in HOUSE_COLOURS if colour != scene.house.colour])
    verb = rng.choice(("make", "paint", "turn"))
    after = replace(scene, house=replace(scene.house, colour=wanted))
    return Instruction("house", f"{verb} the house {wanted}", scene, after, style, style)


def _clouds(scene: Scene, style: Style, rng: random.Random) -> Instruction:
    if rng.random() < 0.3:
        bare = replace(scene, clouds=())
        clouds = tuple(
            Cloud(rng.uniform(0.1, 0.3) + 0.3 * slot, rng.uniform(0.1, 0.3), rng.uniform(0.2, 0.3))
            for slot in rng.sample(range(3), 2)
        )
        words = rng.choice(("add clouds", "add some clouds", "make the sky cloudy"))
        return Instruction("clouds", words, bare, replace(scene, clouds=clouds), style, style)
    scene = _until(scene, lambda found: bool(found.clouds))
    return Instruction("clouds", rng.choice(_REMOVE["clouds"]), scene, replace(scene, clouds=()), style, style)


def _trees(scene: Scene, style: Style, rng: random.Random) -> Instruction:
    scene = _until(scene, lambda found: bool(found.trees))
    return Instruction("trees", rng.choice(_REMOVE["trees"]), scene, replace(scene, trees=()), style, style)


_MAKERS: dict[Kind, Callable[[Scene, Style, random.Random], Instruction]] = {
    "time": _time,
    "style": _style,
    "house": _house,
    "season": _season,
    "clouds": _clouds,
    "trees": _trees,
}


def _until(scene: Scene, fits: Callable[[Scene], bool]) -> Scene:
    """Return the scene, or the next one of distant seeds that has the object of the instruction."""
    while not fits(scene):
        scene = sample_scene(scene.seed + 100_000_000)
    return scene


def before_and_after(work_dir: Path, count: int) -> tuple[Images, Images]:
    """Return memory maps (count, 128, 128, 3) of the instructions of seeds 0 to count - 1."""
    before = cached(work_dir / f"before-{count}.npy", range(count), _draw_before)
    return before, cached(work_dir / f"after-{count}.npy", range(count), _draw_after)


def _draw_before(seed: int) -> Images:
    return sample_instruction(seed).images()[0]


def _draw_after(seed: int) -> Images:
    return sample_instruction(seed).images()[1]
