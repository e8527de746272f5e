"""The companions' pictures in the model card: `python -m demo_model.companions.contact_sheets`. Held-out scenes."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
from PIL import Image

from img2img.domain.conditioning import ControlType

from ..artist import Artist
from ..captions import full_caption, subject
from ..contact_sheet import laid_out
from ..dataset import Pictures, Sample
from ..edits import held_out_samples, held_out_scenes, pictures_of
from ..scenes import HELD_OUT_SEED, STYLES
from ..styles import render
from . import maps
from .crew import Crew
from .evaluate import EDIT_GUIDANCE, EDIT_IMAGE_GUIDANCE
from .instructions import KINDS, sample_instruction
from .masks import random_mask
from .upscaler import LARGE, reduced

HERE = Path(__file__).parent
ROWS = 10


def main() -> None:
    crew = Crew(Artist(HERE.parent / "weights"), HERE / "weights")
    for make in (controls, edits, inpainting, upscaling, image_prompts):
        make(crew).save(HERE / f"{make.__name__.replace('_', '-')}.png", optimize=True)


def controls(crew: Crew) -> Image.Image:
    """Each map and what it makes of noise; last, what the prompt alone makes of it."""
    samples = held_out_samples(ROWS)
    pictures, prompts = pictures_of(samples), [full_caption(drawn.scene, drawn.style) for drawn in samples]
    given = {
        ControlType.CANNY: np.stack([maps.lines(picture, ControlType.CANNY) for picture in pictures]),
        ControlType.SCRIBBLE: np.stack([maps.lines(picture, ControlType.SCRIBBLE) for picture in pictures]),
        ControlType.DEPTH: np.stack([maps.depth(drawn.scene) for drawn in samples]),
        ControlType.SEGMENTATION: np.stack([maps.segmentation(drawn.scene) for drawn in samples]),
    }
    columns: dict[str, Pictures] = {}
    for kind, drawn in given.items():
        columns[str(kind)] = drawn
        columns[f"by {kind}"] = crew.controlled(prompts, {kind: drawn})
    both = {kind: given[kind] for kind in (ControlType.CANNY, ControlType.SEGMENTATION)}
    columns["canny + segmentation"] = crew.controlled(prompts, both)
    columns["by the prompt alone"] = crew.from_noise(prompts)
    columns["where the maps are from"] = pictures
    return laid_out(columns, prompts)


def edits(crew: Crew) -> Image.Image:
    """Two of each kind."""
    asked = [sample_instruction(HELD_OUT_SEED + 100 + index, KINDS[index // 2]) for index in range(2 * len(KINDS))]
    before, after = (np.stack(pictures) for pictures in zip(*(one.pictures() for one in asked), strict=True))
    words = [one.words for one in asked]
    prompts = [full_caption(one.after, one.style_after) for one in asked]
    columns = {
        "input": before,
        "edited": crew.edited(before, words, EDIT_GUIDANCE, EDIT_IMAGE_GUIDANCE),
        "rendered so": after,
        "img2img, 0.6": crew.artist.change(before, prompts, 0.6, 4.0),
    }
    return laid_out(columns, words)


def inpainting(crew: Crew) -> Image.Image:
    samples = held_out_samples(ROWS)
    pictures, prompts = pictures_of(samples), [full_caption(drawn.scene, drawn.style) for drawn in samples]
    masks = [random_mask(drawn, random.Random(f"held-out mask {i}")) for i, drawn in enumerate(samples)]
    columns = {
        "input": pictures,
        "masked": np.where(np.stack(masks)[..., None], np.uint8(128), pictures),
        "nine channels": crew.inpainted(pictures, masks, prompts, nine_channels=True),
        "four channels": crew.inpainted(pictures, masks, prompts, nine_channels=False),
    }
    return laid_out(columns, prompts)


def upscaling(crew: Crew) -> Image.Image:
    """A quarter of each picture."""
    samples = [Sample(scene, style) for scene, style in zip(held_out_scenes(4), STYLES, strict=False)]
    large = np.stack([np.asarray(render(drawn.scene, drawn.style, LARGE)) for drawn in samples])
    small = np.stack([reduced(picture) for picture in large])
    prompts = [full_caption(drawn.scene, drawn.style) for drawn in samples]
    columns = {
        "128 pixels": _resized(small, Image.Resampling.NEAREST),
        "bicubic": _resized(small, Image.Resampling.BICUBIC),
        "upscaler": crew.enlarged(small, prompts),
        "rendered at 512": large,
    }
    middle = slice(LARGE // 4, 3 * LARGE // 4)
    return laid_out({name: some[:, middle, middle] for name, some in columns.items()}, prompts, LARGE // 2)


def _resized(pictures: Pictures, way: Image.Resampling) -> Pictures:
    return np.stack([np.asarray(Image.fromarray(picture).resize((LARGE, LARGE), way)) for picture in pictures])


def image_prompts(crew: Crew) -> Image.Image:
    scenes, rng = held_out_scenes(2 * ROWS), random.Random("image prompts of the contact sheet")
    pictures = pictures_of([Sample(scene, "photo") for scene in scenes[:ROWS]])
    words = [subject(scene, rng) for scene in scenes[:ROWS]]
    examples = pictures_of([Sample(scene, STYLES[index % len(STYLES)]) for index, scene in enumerate(scenes[ROWS:])])
    columns = {
        "input": pictures,
        "image prompt": examples,
        "with it, 0.7": crew.prompted_by(examples, pictures, words, 0.7),
        "without it, 0.7": crew.artist.change(pictures, words, 0.7, 4.0),
    }
    return laid_out(columns, words)


if __name__ == "__main__":
    main()
