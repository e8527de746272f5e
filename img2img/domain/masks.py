"""Masks that a worker finds: the thing in an image that words, points or a box name."""

import re
from collections.abc import Collection
from enum import StrEnum
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from img2img.domain.parameters import check_text

MAX_POINTS = 64
MAX_MASK_TEXT = 200
MAX_GROW = 512
# At least one character that is no separator.
WORDS = r"^[^\x00]*[^\x00\s,.][^\x00]*$"


def check_words(text: str) -> str:
    """Raise ValueError for text that names nothing."""
    check_text(text)
    if not re.search(r"[^\s,.]", text):
        raise ValueError("Input should name something, such as `the house`; several things are separated by commas")
    return text


Words = Annotated[
    str,
    Field(min_length=1, max_length=MAX_MASK_TEXT, json_schema_extra={"pattern": WORDS}),
    AfterValidator(check_words),
]

Coordinate = Annotated[float, Field(ge=0)]
Point = tuple[Coordinate, Coordinate]
Corners = tuple[Coordinate, Coordinate, Coordinate, Coordinate]


class MaskKind(StrEnum):
    """The ways to name a thing in an image."""

    TEXT = "text"
    POINTS = "points"
    BOX = "box"


class MaskQuery(BaseModel):
    """What to find in an image. Coordinates are pixels of the image, from its left upper corner."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    text: Annotated[
        Words | None,
        Field(
            description="Words that name the thing, such as `the house`; several things are separated by commas.",
            examples=["the house"],
        ),
    ] = None
    points: Annotated[
        tuple[Point, ...],
        Field(max_length=MAX_POINTS, description="Points `[x, y]` in the thing.", examples=[[[120, 80]]]),
    ] = ()
    labels: Annotated[
        tuple[Annotated[int, Field(ge=0, le=1)], ...],
        Field(
            max_length=MAX_POINTS,
            description="One number for each point: 1 is in the thing, 0 is outside of it. Default: all are in it.",
        ),
    ] = ()
    box: Annotated[
        Corners | None,
        Field(description="`[left, top, right, bottom]` of a box around the thing.", examples=[[20, 30, 200, 180]]),
    ] = None
    grow: Annotated[
        int,
        Field(
            ge=-MAX_GROW,
            le=MAX_GROW,
            description="Pixels by which the mask is made larger on all sides; smaller if negative.",
        ),
    ] = 0
    invert: Annotated[bool, Field(description="Take all but the thing, such as its background.")] = False
    threshold: Annotated[
        float | None,
        Field(
            gt=0,
            lt=1,
            description="Lowest confidence of what is found by `text`. Default: 0.3; 0.4 for pixels of CLIPSeg.",
        ),
    ] = None

    @property
    def kind(self) -> MaskKind:
        """Which of the ways it is."""
        if self.text is not None:
            return MaskKind.TEXT
        return MaskKind.POINTS if self.points else MaskKind.BOX

    @model_validator(mode="after")
    def _is_one_kind(self) -> Self:
        given = [name for name in MaskKind if getattr(self, name)]
        if len(given) != 1:
            found = f"both `{given[0]}` and `{given[1]}`" if given else "none of them"
            raise ValueError(f"Give one of `text`, `points` and `box`; it has {found}")
        if self.labels and len(self.labels) != len(self.points):
            raise ValueError(f"`labels` has {len(self.labels)} numbers for {len(self.points)} points")
        if self.labels and 1 not in self.labels:
            raise ValueError("`labels` has no 1: at least one point should be in the thing")
        if self.box is not None and (self.box[0] >= self.box[2] or self.box[1] >= self.box[3]):
            raise ValueError("`box` should be left, top, right, bottom, with left < right and top < bottom")
        if self.threshold is not None and self.text is None:
            raise ValueError("`threshold` goes with `text`")
        return self

    def outside(self, size: tuple[int, int]) -> tuple[float, ...] | None:
        """Return the first point, or the box, that is not within an image of this size."""
        width, height = size
        if self.box:
            # Its right and bottom edge can be those of the image.
            return self.box if self.box[2] > width or self.box[3] > height else None
        return next(((x, y) for x, y in self.points if x >= width or y >= height), None)


def split_words(text: str) -> list[str]:
    """Return the things that a text names, in lower case: they are separated by commas."""
    return [words for part in text.lower().replace(".", ",").split(",") if (words := " ".join(part.split()))]


def known_as(phrase: str, words: Collection[str]) -> str | None:
    """Return the word that a phrase in lower case names: without an article, and in the singular; None for none."""
    bare = next((phrase.removeprefix(article) for article in _ARTICLES if phrase.startswith(article)), phrase).strip()
    return next(
        (form for form in (phrase, bare, bare.removesuffix("s"), bare.removesuffix("es")) if form in words), None
    )


_ARTICLES = ("the ", "a ", "an ", "all ", "every ")
