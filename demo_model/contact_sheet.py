"""The image of the model card: `python -m img2img.demo_model.contact_sheet`. Rows are prompts, columns strengths."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .batch_pipeline import BatchPipeline
from .captions import full_caption
from .crude import draw_crudely
from .dataset import SIZE, Images
from .scenes import HELD_OUT_SEED, Scene, Style, sample_scene
from .styles import render

HERE = Path(__file__).parent
STRENGTHS = (0.2, 0.4, 0.6, 0.8, 1.0)
GUIDANCE = 4.0
LABEL_HEIGHT = 14


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, default=HERE / "weights")
    parser.add_argument("--out", type=Path, default=HERE / "contact-sheet.png")
    arguments = parser.parse_args()
    contact_sheet(BatchPipeline(arguments.weights)).save(arguments.out, optimize=True)


def contact_sheet(pipeline: BatchPipeline) -> Image.Image:
    """Input, autoencoder alone, strengths 0.2 to 1.0 at guidance 4, then guidance 1 and 7.5 at strength 0.7."""
    inputs, prompts = _questions()
    columns = {"input": inputs, "autoencoder": pipeline.restore(inputs)}
    for strength in STRENGTHS:
        columns[f"strength {strength:g}"] = pipeline.change(inputs, prompts, strength, GUIDANCE)
    for guidance in (1.0, 7.5):
        columns[f"0.7, guidance {guidance:g}"] = pipeline.change(inputs, prompts, 0.7, guidance)
    return laid_out(columns, prompts)


def _questions() -> tuple[Images, list[str]]:
    """Return held-out renderings and crude drawings, each with a prompt that asks for a change."""
    scenes = [sample_scene(seed) for seed in range(HELD_OUT_SEED + 500, HELD_OUT_SEED + 700)]
    with_house = [replace(scene, time="day", season="summer") for scene in scenes if scene.house is not None]
    styles: tuple[Style, ...] = ("watercolor", "pencil", "oil", "pixel", "photo", "photo", "photo", "photo")
    wanted = [
        with_house[0],
        with_house[1],
        with_house[2],
        with_house[3],
        replace(with_house[4], time="night"),
        replace(with_house[5], time="sunset"),
        replace(with_house[6], season="winter"),
        replace(with_house[7], season="autumn"),
    ]
    rendered = [np.asarray(render(scene, "photo", SIZE)) for scene in with_house[:8]]
    drawn: list[tuple[Scene, Scene, Style]] = [
        (with_house[8], with_house[8], "photo"),
        (with_house[9], replace(with_house[9], time="sunset"), "watercolor"),
        (with_house[10], with_house[10], "pencil"),
        (with_house[11], replace(with_house[11], season="winter", time="night"), "oil"),
    ]
    images = rendered + [np.asarray(draw_crudely(scene, SIZE)) for scene, _, _ in drawn]
    prompts = [full_caption(scene, style) for scene, style in zip(wanted, styles, strict=True)]
    return np.stack(images), prompts + [full_caption(scene, style) for _, scene, style in drawn]


def laid_out(columns: dict[str, Images], prompts: list[str], side: int = SIZE) -> Image.Image:
    """Return a sheet with one row of images per prompt, labelled by prompts and column names."""
    row_height = side + LABEL_HEIGHT
    sheet = Image.new("RGB", (side * len(columns), LABEL_HEIGHT + row_height * len(prompts)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=11)
    for column, (name, images) in enumerate(columns.items()):
        draw.text((column * side + 2, 0), name, "black", font)
        for row, image in enumerate(images):
            sheet.paste(Image.fromarray(image), (column * side, LABEL_HEIGHT + row * row_height + LABEL_HEIGHT))
    for row, prompt in enumerate(prompts):
        draw.text((2, LABEL_HEIGHT + row * row_height), prompt, "black", font)
    return sheet


if __name__ == "__main__":
    main()
