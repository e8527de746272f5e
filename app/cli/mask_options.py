"""Options that let the model find a mask: `--mask-text` and the like, short forms of `--mask` with an object."""

import re
from collections.abc import Iterator
from typing import Annotated, Any

import typer
from rich.markup import escape

from .errors import WrongUsage

POINT = re.compile(r"(-?)(\d+(?:\.\d+)?),(\d+(?:\.\d+)?)")
BOX = re.compile(r"\d+(\.\d+)?(,\d+(\.\d+)?){3}")
OPTIONS: dict[str, tuple[Any, str, str]] = {
    "mask_text": (str, "WORDS", "Mask of the thing that words name, such as `the house`."),
    "mask_point": (
        list[str],
        "X,Y",
        "Mask of the thing at a point; with `-` in front, the point is outside of it. Can be repeated.",
    ),
    "mask_box": (str, "LEFT,TOP,RIGHT,BOTTOM", "Mask of the thing in a box."),
    "mask_grow": (int, "PIXELS", "Make such a mask larger on all sides."),
}


def mask_parameters(panel: str) -> Iterator[tuple[str, Any]]:
    """Yield the parameters of the command for the options, and their annotations."""
    for name, (kind, form, text) in OPTIONS.items():
        option = typer.Option(
            f"--{name.replace('_', '-')}", metavar=form, help=escape(text), show_default=False, rich_help_panel=panel
        )
        yield name, Annotated[kind | None, option]


def take_mask(values: dict[str, Any]) -> dict[str, Any] | None:
    """Remove the options from the values that were given, and return them as a mask object; None without them.

    Raises:
        WrongUsage: A point or a box has another form.
    """
    given = {name.removeprefix("mask_"): values.pop(name) for name in OPTIONS if name in values}
    if not given:
        return None
    mask = {name: value for name, value in given.items() if name in ("text", "grow")}
    if "point" in given:
        points = [POINT.fullmatch(text) for text in given["point"]]
        if not all(points):
            raise WrongUsage("--mask-point takes X,Y or -X,Y in pixels")
        mask["points"] = [[float(point[2]), float(point[3])] for point in points if point]
        mask["labels"] = [0 if point[1] else 1 for point in points if point]
    if "box" in given:
        if not BOX.fullmatch(given["box"]):
            raise WrongUsage("--mask-box takes LEFT,TOP,RIGHT,BOTTOM in pixels")
        mask["box"] = [float(edge) for edge in given["box"].split(",")]
    return mask
