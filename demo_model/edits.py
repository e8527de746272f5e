"""The tasks of the evaluation: a held-out image and a prompt that asks for one change."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count, islice, permutations
from typing import TypeVar

import numpy as np

from .captions import full_caption
from .dataset import SIZE, Images, Sample, sample
from .judge import HEADS, word_indices
from .scenes import HELD_OUT_SEED, HOUSE_COLOURS, SEASONS, STYLES, TIMES, Scene, sample_scene
from .styles import render

Word = TypeVar("Word", bound=str)


@dataclass(frozen=True)
class Edit:
    """`given` is shown by the input, `wanted` by the prompt; they differ in the property `head`."""

    head: str
    given: Sample
    wanted: Sample

    @property
    def expected_word(self) -> str:
        """The word that the judge should predict for the changed image."""
        return HEADS[self.head][word_indices(self.wanted)[list(HEADS).index(self.head)]]

    @property
    def prompt(self) -> str:
        return full_caption(self.wanted.scene, self.wanted.style)


def held_out_scenes(number: int) -> list[Scene]:
    return [sample_scene(HELD_OUT_SEED + index) for index in range(number)]


def held_out_samples(number: int) -> list[Sample]:
    """Return held-out scenes in all styles."""
    return [sample(HELD_OUT_SEED + index) for index in range(number)]


def style_edits(number: int) -> list[Edit]:
    """Return changes between all pairs of styles in turn."""
    edits = []
    for index, scene in enumerate(held_out_scenes(number)):
        given, wanted = _two_of(STYLES, index)
        edits.append(Edit("style", Sample(scene, given), Sample(scene, wanted)))
    return edits


def time_edits(number: int) -> list[Edit]:
    """Return changes of photos between all pairs of times of day in turn."""
    edits = []
    for index, scene in enumerate(held_out_scenes(number)):
        given, wanted = _two_of(TIMES, index)
        edits.append(_photo_edit("time", replace(scene, time=given), replace(scene, time=wanted)))
    return edits


def season_edits(number: int) -> list[Edit]:
    """Return changes of photos by day between all pairs of seasons in turn."""
    edits = []
    for index, scene in enumerate(held_out_scenes(number)):
        given, wanted = _two_of(SEASONS, index)
        day = replace(scene, time="day")
        edits.append(_photo_edit("season", replace(day, season=given), replace(day, season=wanted)))
    return edits


def house_edits(number: int) -> list[Edit]:
    """Return photos by day with a house that gets another colour."""
    return list(islice(_all_house_edits(), number))


def pencil_edits(number: int) -> list[Edit]:
    """Return photos by day that become pencil sketches."""
    days = [replace(scene, time="day") for scene in held_out_scenes(number)]
    return [Edit("style", Sample(day, "photo"), Sample(day, "pencil")) for day in days]


def night_edits(number: int) -> list[Edit]:
    """Return photos by day that become night."""
    days = [replace(scene, time="day") for scene in held_out_scenes(number)]
    return [_photo_edit("time", day, replace(day, time="night")) for day in days]


def images_of(samples: list[Sample]) -> Images:
    """Render samples; returns (n, 128, 128, 3)."""
    return np.stack([np.asarray(render(drawn.scene, drawn.style, SIZE)) for drawn in samples])


def _photo_edit(head: str, given: Scene, wanted: Scene) -> Edit:
    return Edit(head, Sample(given, "photo"), Sample(wanted, "photo"))


def _all_house_edits() -> Iterator[Edit]:
    for index in count():
        day = replace(sample_scene(HELD_OUT_SEED + index), time="day")
        if day.house is not None:
            others = [colour for colour in HOUSE_COLOURS if colour != day.house.colour]
            house = replace(day.house, colour=others[index % len(others)])
            yield _photo_edit("house", day, replace(day, house=house))


def _two_of(words: tuple[Word, ...], index: int) -> tuple[Word, Word]:
    """Return pair `index` of all ordered pairs of different words, cyclically."""
    pairs = list(permutations(words, 2))
    return pairs[index % len(pairs)]
