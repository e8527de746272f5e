"""Draws the images in `examples/`, a crude drawing and a rendered scene: `python -m img2img.demo_model.example_inputs`.

`example.png` is the same drawing as `examples/input.png`, for `img2img demo` from an installed wheel.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from .crude import draw_crudely
from .scenes import HELD_OUT_SEED, sample_scene
from .styles import render

EXAMPLES = Path(__file__).parent.parent / "examples"
PACKAGED = Path(__file__).parent / "example.png"
DRAWN_SEED, RENDERED_SEED = HELD_OUT_SEED + 3463, HELD_OUT_SEED + 2267


def main() -> None:
    EXAMPLES.mkdir(exist_ok=True)
    for file in (EXAMPLES / "input.png", PACKAGED):
        draw_crudely(sample_scene(DRAWN_SEED)).save(file, optimize=True)
    summer_day = replace(sample_scene(RENDERED_SEED), time="day", season="summer")
    render(summer_day, "photo").save(EXAMPLES / "rendered.png", optimize=True)


if __name__ == "__main__":
    main()
