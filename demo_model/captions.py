"""Captions of rendered scenes in varying English."""

from __future__ import annotations

import random

from .scenes import Scene, Season, Style, Time, TreeKind, Water

_STYLE_WORDS: dict[Style, tuple[str, ...]] = {
    "photo": ("a photo of", "a photograph of", "a realistic photo of", "a photo of"),
    "watercolor": ("a watercolor painting of", "a watercolor of", "watercolor painting of", "a watercolour of"),
    "pencil": ("a pencil sketch of", "a pencil drawing of", "a black and white pencil sketch of", "pencil sketch of"),
    "oil": ("an oil painting of", "oil painting of", "a thick oil painting of", "an oil painting of"),
    "pixel": ("pixel art of", "a pixel art picture of", "8-bit pixel art of", "pixel art of"),
}
_STYLE_TAILS: dict[Style, tuple[str, ...]] = {
    "photo": ("photo", "photograph"),
    "watercolor": ("watercolor", "watercolor painting", "watercolour"),
    "pencil": ("pencil sketch", "pencil drawing"),
    "oil": ("oil painting", "oil on canvas"),
    "pixel": ("pixel art", "8-bit pixel art"),
}
_TIME_WORDS: dict[Time, tuple[str, ...]] = {
    "day": ("by day", "on a sunny day", "during the day", "in daylight"),
    "sunset": ("at sunset", "at sunset", "in the evening light", "under an orange sunset sky"),
    "night": ("at night", "at night", "by night", "under the moon and stars"),
}
_SEASON_WORDS: dict[Season, tuple[str, ...]] = {
    "summer": ("in summer", "in the summer", "in summer"),
    "autumn": ("in autumn", "in the fall", "in autumn"),
    "winter": ("in winter", "in the snow", "covered in snow", "in winter"),
}
_TREE_WORDS: dict[TreeKind, tuple[str, ...]] = {
    "round": ("trees", "round trees", "green trees"),
    "pine": ("pine trees", "pines", "fir trees"),
}

_WATER_WORDS: dict[Water, tuple[str, ...]] = {
    "none": (),
    "lake": ("a lake", "a blue lake", "a pond"),
    "sea": ("the sea", "the ocean", "the sea"),
}


def caption(scene: Scene, style: Style, rng: random.Random) -> str:
    """Return a random caption. Features that change the image most are nearly always named, others sometimes."""
    words = f"{subject(scene, rng)}{_circumstances(scene, style, rng)}"
    if rng.random() < 0.8:
        return f"{rng.choice(_STYLE_WORDS[style])} {words}"
    return f"{words}, {rng.choice(_STYLE_TAILS[style])}"


def subject(scene: Scene, rng: random.Random) -> str:
    """Return the subject: the house always, water nearly always, other objects sometimes."""
    side_notes: list[str] = []
    if scene.trees and rng.random() < 0.7:
        kinds = [words for words in _TREE_WORDS[scene.tree_kind] if not (words == "green trees" and _is_bare(scene))]
        side_notes.append(rng.choice(kinds))
    if scene.peaks and rng.random() < 0.75:
        kinds = ["mountains", "mountains behind it", "snowy mountains"]
        side_notes.append(rng.choice(kinds) if scene.house else "mountains")
    if scene.clouds and rng.random() < 0.4:
        side_notes.append(rng.choice(("clouds", "white clouds", "a cloudy sky")) if scene.time == "day" else "clouds")
    if scene.road and rng.random() < 0.5:
        side_notes.append(rng.choice(("a path", "a road")))
    rng.shuffle(side_notes)
    water = ""
    if scene.water != "none" and rng.random() < 0.93:
        water = rng.choice(_WATER_WORDS[scene.water])
    if scene.house is not None:
        place = f" {rng.choice(('by', 'near', 'by'))} {water}" if water else ""
        kind = rng.choice(("house", "house", "house", "cottage", "hut"))
        return f"a {scene.house.colour} {kind}{place}" + (f" with {_list(side_notes)}" if side_notes else "")
    side_notes = [note.replace(" behind it", "") for note in side_notes]
    if water:
        return water + (f" with {_list(side_notes)}" if side_notes else "")
    return (
        _list(side_notes) if side_notes else rng.choice(("a landscape", "hills" if _is_bare(scene) else "green hills"))
    )


def _circumstances(scene: Scene, style: Style, rng: random.Random) -> str:
    """Return season and time of day. Pencil sketches show neither, so their captions seldom name them."""
    season_shows = style != "pencil" or scene.season == "winter"
    hour_shows = style != "pencil" or scene.time == "night"
    season_chance = {"summer": 0.6, "autumn": 0.95, "winter": 0.95}[scene.season] if season_shows else 0.25
    time_chance = {"day": 0.5, "sunset": 0.97, "night": 0.97}[scene.time] if hour_shows else 0.25
    words = []
    if rng.random() < season_chance:
        words.append(rng.choice(_SEASON_WORDS[scene.season]))
    if rng.random() < time_chance:
        words.append(rng.choice(_TIME_WORDS[scene.time]))
    rng.shuffle(words)
    return "".join(f" {word}" for word in words)


def _is_bare(scene: Scene) -> bool:
    return scene.season != "summer"


def _list(notes: list[str]) -> str:
    return notes[0] if len(notes) == 1 else ", ".join(notes[:-1]) + f" and {notes[-1]}"


def full_caption(scene: Scene, style: Style) -> str:
    """Return the caption that names style, house, water, season and time of day in the most usual words."""
    water = {"none": "", "lake": "a lake", "sea": "the sea"}[scene.water]
    if scene.house is not None:
        subject = f"a {scene.house.colour} house" + (f" by {water}" if water else "")
    else:
        subject = water or ("mountains" if scene.peaks else "a landscape")
    hour = {"day": "by day", "sunset": "at sunset", "night": "at night"}[scene.time]
    return f"{_STYLE_WORDS[style][0]} {subject} in {scene.season} {hour}"
