"""Draws results of the throughput benchmark as bars, in SVG."""

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

BAR, GAP, GROUP_GAP, LEFT, WIDTH, TOP = 18, 4, 16, 300, 860, 40
COLOURS = ("#4c6ef5", "#f08c00")
# Readable on white and on black.
TEXT = "#868e96"


def draw(file: Path, results: Mapping[str, Mapping[str, Any]], reference: str) -> None:
    """Write a bar per side and mix: images per second relative to the reference side.

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
    file.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y}" viewBox="0 0 {WIDTH} {y}" '
        f'font-family="sans-serif" font-size="13" fill="{TEXT}" role="img"><title>{escape(title)}</title>'
        + "".join(parts)
        + "</svg>\n",
        "utf-8",
    )
