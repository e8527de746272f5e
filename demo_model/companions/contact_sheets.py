"""The companions' images in the model card: `python -m img2img.demo_model.companions.contact_sheets`."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
from PIL import Image

from img2img.domain.conditioning import ControlType

from ..batch_pipeline import BatchPipeline
from ..captions import full_caption, subject
from ..contact_sheet import laid_out
from ..dataset import Images, Sample
from ..edits import held_out_samples, held_out_scenes, images_of
from ..scenes import HELD_OUT_SEED, STYLES
from ..styles import render
from . import maps
from .companion_pipelines import CompanionPipelines
from .evaluate import EDIT_GUIDANCE, EDIT_IMAGE_GUIDANCE
from .instructions import KINDS, sample_instruction
from .masks import random_mask
from .upscaler import LARGE, reduced

HERE = Path(__file__).parent
ROWS = 10


def main() -> None:
    companions = CompanionPipelines(BatchPipeline(HERE.parent / "weights"), HERE / "weights")
    for make in (controls, edits, inpainting, upscaling, image_prompts):
        make(companions).save(HERE / f"{make.__name__.replace('_', '-')}.png", optimize=True)


def controls(companions: CompanionPipelines) -> Image.Image:
    """Each map with its result from noise, then the result of the prompt alone."""
    samples = held_out_samples(ROWS)
    images, prompts = images_of(samples), [full_caption(drawn.scene, drawn.style) for drawn in samples]
    given = {
        ControlType.CANNY: np.stack([maps.lines(image, ControlType.CANNY) for image in images]),
        ControlType.SCRIBBLE: np.stack([maps.lines(image, ControlType.SCRIBBLE) for image in images]),
        ControlType.DEPTH: np.stack([maps.depth(drawn.scene) for drawn in samples]),
        ControlType.SEGMENTATION: np.stack([maps.segmentation(drawn.scene) for drawn in samples]),
    }
    columns: dict[str, Images] = {}
    for kind, drawn in given.items():
        columns[str(kind)] = drawn
        columns[f"by {kind}"] = companions.controlled(prompts, {kind: drawn})
    both = {kind: given[kind] for kind in (ControlType.CANNY, ControlType.SEGMENTATION)}
    columns["canny + segmentation"] = companions.controlled(prompts, both)
    columns["by the prompt alone"] = companions.from_noise(prompts)
    columns["where the maps are from"] = images
    return laid_out(columns, prompts)


def edits(companions: CompanionPipelines) -> Image.Image:
    """Two edits of each kind."""
    instructions = [
        sample_instruction(HELD_OUT_SEED + 100 + index, KINDS[index // 2]) for index in range(2 * len(KINDS))
    ]
    before, after = (np.stack(images) for images in zip(*(one.images() for one in instructions), strict=True))
    words = [one.words for one in instructions]
    prompts = [full_caption(one.after, one.style_after) for one in instructions]
    columns = {
        "input": before,
        "edited": companions.edited(before, words, EDIT_GUIDANCE, EDIT_IMAGE_GUIDANCE),
        "rendered so": after,
        "img2img, 0.6": companions.pipeline.change(before, prompts, 0.6, 4.0),
    }
    return laid_out(columns, words)


def inpainting(companions: CompanionPipelines) -> Image.Image:
    samples = held_out_samples(ROWS)
    images, prompts = images_of(samples), [full_caption(drawn.scene, drawn.style) for drawn in samples]
    masks = [random_mask(drawn, random.Random(f"held-out mask {i}")) for i, drawn in enumerate(samples)]
    columns = {
        "input": images,
        "masked": np.where(np.stack(masks)[..., None], np.uint8(128), images),
        "nine channels": companions.inpainted(images, masks, prompts, nine_channels=True),
        "four channels": companions.inpainted(images, masks, prompts, nine_channels=False),
    }
    return laid_out(columns, prompts)


def upscaling(companions: CompanionPipelines) -> Image.Image:
    """A quarter of each image."""
    samples = [Sample(scene, style) for scene, style in zip(held_out_scenes(4), STYLES, strict=False)]
    large = np.stack([np.asarray(render(drawn.scene, drawn.style, LARGE)) for drawn in samples])
    small = np.stack([reduced(image) for image in large])
    prompts = [full_caption(drawn.scene, drawn.style) for drawn in samples]
    columns = {
        "128 pixels": _resized(small, Image.Resampling.NEAREST),
        "bicubic": _resized(small, Image.Resampling.BICUBIC),
        "upscaler": companions.enlarged(small, prompts),
        "rendered at 512": large,
    }
    middle = slice(LARGE // 4, 3 * LARGE // 4)
    return laid_out({name: some[:, middle, middle] for name, some in columns.items()}, prompts, LARGE // 2)


def _resized(images: Images, way: Image.Resampling) -> Images:
    return np.stack([np.asarray(Image.fromarray(image).resize((LARGE, LARGE), way)) for image in images])


def image_prompts(companions: CompanionPipelines) -> Image.Image:
    scenes, rng = held_out_scenes(2 * ROWS), random.Random("image prompts of the contact sheet")
    images = images_of([Sample(scene, "photo") for scene in scenes[:ROWS]])
    words = [subject(scene, rng) for scene in scenes[:ROWS]]
    examples = images_of([Sample(scene, STYLES[index % len(STYLES)]) for index, scene in enumerate(scenes[ROWS:])])
    columns = {
        "input": images,
        "image prompt": examples,
        "with it, 0.7": companions.prompted_by(examples, images, words, 0.7),
        "without it, 0.7": companions.pipeline.change(images, words, 0.7, 4.0),
    }
    return laid_out(columns, words)


if __name__ == "__main__":
    main()
