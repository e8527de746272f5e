"""Draws results of the throughput benchmark as bars, in SVG.

`python -m benchmarks.plot` draws the recorded results of RESULTS.md into docs/images/throughput.svg.
"""

import re
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

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
    rows = ROW.findall(section.partition("\n## ")[0])
    sides = {side: tuple(map(float, numbers)) for side, *numbers in rows}
    return {
        mix: {side: {"images_per_s": row[at], "ratio": row[at + 1]} for side, row in sides.items()}
        for mix, at in (("mixed", 0), ("uniform", 2))
    }


def draw(file: Path, results: Mapping[str, Mapping[str, Any]], reference: str) -> None:
    """Write the plot into a file."""
    file.write_text(svg(results, reference), "utf-8")


def svg(results: Mapping[str, Mapping[str, Any]], reference: str) -> str:
    """Return a bar per side and mix: images per second relative to the reference side.

    Args:
        results: By mix and side, with `ratio` and `images_per_s`.
    """
    mixes = list(results)
    sides = list(results[mixes[0]])
    largest = max(result["ratio"] for mix in results.values() for result in mix.values())
    scale = (WIDTH - LEFT - 110) / largest
    parts, y = [], TOP
    for side in sides:
        middle = y + (BAR + GAP) * len(mixes) / 2 + 3
        parts.append(f'<text x="{LEFT - 10}" y="{middle:.0f}" text-anchor="end">{escape(side)}</text>')
        for mix, colour in zip(mixes, COLOURS, strict=False):
            result = results[mix][side]
            length = result["ratio"] * scale
            parts.append(f'<rect x="{LEFT}" y="{y}" width="{length:.1f}" height="{BAR}" rx="2" fill="{colour}"/>')
            label = f"{result['ratio']:.2f}x ({result['images_per_s']:.2f}/s)"
            parts.append(f'<text x="{LEFT + length + 6:.1f}" y="{y + 14}">{label}</text>')
            y += BAR + GAP
        y += GROUP_GAP
    at = LEFT
    for mix, colour in zip(mixes, COLOURS, strict=False):
        parts.append(f'<rect x="{at}" y="12" width="12" height="12" fill="{colour}"/>')
        parts.append(f'<text x="{at + 18}" y="22">{escape(mix)} jobs</text>')
        at += 130
    line = LEFT + scale
    parts.append(
        f'<line x1="{line:.1f}" x2="{line:.1f}" y1="{TOP - 6}" y2="{y}" stroke="{TEXT}" stroke-dasharray="3"/>'
    )
    title = f"Images per second, relative to {reference}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y}" viewBox="0 0 {WIDTH} {y}" '
        f'font-family="sans-serif" font-size="13" fill="{TEXT}" role="img"><title>{escape(title)}</title>'
        + "".join(parts)
        + "</svg>\n"
    )


if __name__ == "__main__":
    draw(FILE, recorded(), "stock diffusers")
