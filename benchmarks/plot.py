"""Draws images per second as bars, in SVG or PNG.

`python -m benchmarks.plot` draws the recorded results of RESULTS.md into docs/images/throughput.svg.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).parents[1]
FILE = ROOT / "docs" / "images" / "throughput.svg"
ROW = re.compile(r"^\| ([^|]+) \| ([\d.]+) \| ([\d.]+)x \| ([\d.]+) \| ([\d.]+)x \|", re.MULTILINE)

BAR, GAP, GROUP_GAP, LEFT, WIDTH, TOP = 18, 4, 16, 300, 860, 40
COLOURS = ("#4c6ef5", "#f08c00")
# Readable on white and on black.
TEXT = "#868e96"


def recorded() -> dict[str, dict[str, dict[str, float]]]:
    """Return the results in RESULTS.md, by mix and side."""
    section = (ROOT / "benchmarks" / "RESULTS.md").read_text("utf-8").partition("\n## Throughput\n")[2]
    # Its first table.
    rows = ROW.findall(section.partition("\n#")[0])
    sides = {side: tuple(map(float, numbers)) for side, *numbers in rows}
    return {
        f"{mix} jobs": {side: {"images_per_s": row[at], "ratio": row[at + 1]} for side, row in sides.items()}
        for mix, at in (("mixed", 0), ("uniform", 2))
    }


@dataclass(frozen=True)
class Text:
    """A line of text at its baseline. `at_end`: it ends at `x` instead of beginning there."""

    x: float
    y: float
    text: str
    at_end: bool = False


@dataclass(frozen=True)
class Bar:
    x: float
    y: float
    width: float
    height: float
    colour: str
    radius: int = 2


@dataclass(frozen=True)
class Plot:
    """A bar per side and mix: images per second relative to the reference side."""

    title: str
    height: int
    shapes: Sequence[Text | Bar]
    # The reference: x, and y of both ends.
    line: tuple[float, float, float]


def draw(file: Path, results: Mapping[str, Mapping[str, Any]], reference: str) -> None:
    """Write the plot into a file, as a PNG if that is its suffix, else as an SVG."""
    if file.suffix == ".png":
        png(results, reference).save(file)
    else:
        file.write_text(svg(results, reference), "utf-8")


def layout(results: Mapping[str, Mapping[str, Any]], reference: str) -> Plot:
    """Return the shapes of the plot.

    Args:
        results: By colour of the bar and row, with `ratio` and `images_per_s`.
    """
    mixes = list(results)
    sides = list(results[mixes[0]])
    largest = max(result["ratio"] for mix in results.values() for result in mix.values())
    scale = (WIDTH - LEFT - 110) / largest
    shapes: list[Text | Bar] = []
    y = TOP
    for side in sides:
        middle = y + (BAR + GAP) * len(mixes) / 2 + 3
        shapes.append(Text(LEFT - 10, middle, side, at_end=True))
        for mix, colour in zip(mixes, COLOURS, strict=False):
            result = results[mix][side]
            length = result["ratio"] * scale
            shapes.append(Bar(LEFT, y, length, BAR, colour))
            shapes.append(Text(LEFT + length + 6, y + 14, f"{result['ratio']:.2f}x ({result['images_per_s']:.2f}/s)"))
            y += BAR + GAP
        y += GROUP_GAP
    at = LEFT
    for mix, colour in zip(mixes, COLOURS, strict=False):
        shapes.append(Bar(at, 12, 12, 12, colour, radius=0))
        shapes.append(Text(at + 18, 22, mix))
        at += 130
    return Plot(f"Images per second, relative to {reference}", y, shapes, (LEFT + scale, TOP - 6, y))


def svg(results: Mapping[str, Mapping[str, Any]], reference: str) -> str:
    """Return the plot as an SVG. See `layout`."""
    plot = layout(results, reference)
    x, top, bottom = plot.line
    parts = [_tag(shape) for shape in plot.shapes]
    parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom}" stroke="{TEXT}" stroke-dasharray="3"/>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{plot.height}" '
        f'viewBox="0 0 {WIDTH} {plot.height}" font-family="sans-serif" font-size="13" fill="{TEXT}" role="img">'
        f"<title>{escape(plot.title)}</title>" + "".join(parts) + "</svg>\n"
    )


def _tag(shape: Text | Bar) -> str:
    if isinstance(shape, Text):
        anchor = ' text-anchor="end"' if shape.at_end else ""
        return f'<text x="{_number(shape.x)}" y="{shape.y:.0f}"{anchor}>{escape(shape.text)}</text>'
    radius = f' rx="{shape.radius}"' if shape.radius else ""
    size = f'width="{_number(shape.width)}" height="{shape.height}"'
    return f'<rect x="{shape.x}" y="{shape.y}" {size}{radius} fill="{shape.colour}"/>'


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.1f}"


def png(results: Mapping[str, Mapping[str, Any]], reference: str) -> Image.Image:
    """Return the plot on white, at twice the size of the SVG. See `layout`."""
    plot = layout(results, reference)
    image = Image.new("RGB", (2 * WIDTH, 2 * plot.height), "white")
    drawing, font = ImageDraw.Draw(image), ImageFont.load_default(26)
    for shape in plot.shapes:
        if isinstance(shape, Text):
            # The anchor is the baseline, at the left or right.
            anchor = "rs" if shape.at_end else "ls"
            drawing.text((2 * shape.x, 2 * shape.y), shape.text, fill=TEXT, font=font, anchor=anchor)
        else:
            box = [2 * value for value in (shape.x, shape.y, shape.x + shape.width, shape.y + shape.height)]
            drawing.rounded_rectangle(box, radius=2 * shape.radius, fill=shape.colour)
    x, top, bottom = (2 * value for value in plot.line)
    drawing.line([(x, top), (x, bottom)], fill=TEXT, width=2)
    return image


if __name__ == "__main__":
    draw(FILE, recorded(), "stock diffusers")
