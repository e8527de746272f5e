"""The companions' figures of the model card; see `python -m img2img.demo_model.evaluate --all`."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import GLPNForDepthEstimation, SegformerForSemanticSegmentation

from img2img.domain.conditioning import ControlType

from ..autoencoder import as_pixels
from ..captions import full_caption, subject
from ..dataset import SIZE, Images, Sample
from ..edits import held_out_samples, held_out_scenes, images_of
from ..figures import Figures
from ..judge import HEADS, Judge, scene_map, word_indices
from ..painting import paint
from ..scenes import HELD_OUT_SEED, STYLES, TIMES
from ..styles import render
from . import maps, measures
from .annotators import glpn_pixels, segformer_pixels
from .companion_pipelines import CompanionPipelines
from .instructions import KINDS, Instruction, Kind, sample_instruction
from .masks import random_mask
from .upscaler import LARGE, reduced

CPU = torch.device("cpu")
EDIT_GUIDANCE, EDIT_IMAGE_GUIDANCE = 3.0, 1.2
STRENGTHS = (0.4, 0.5, 0.6, 0.7, 0.85)
WORD_HEADS: dict[Kind, str] = {"time": "time", "style": "style", "season": "season", "house": "house"}


def evaluate_companions(
    figures: Figures, companions: CompanionPipelines, judge: Judge, folder: Path, scenes: int
) -> None:
    """Measure every row of the companions' table; slow ones with half as many scenes."""
    annotators(figures, folder, scenes)
    controls(figures, companions, judge, folder, scenes)
    edits(figures, companions, judge, scenes)
    inpainting(figures, companions, scenes)
    upscaling(figures, companions, max(scenes // 8, 1))
    image_prompts(figures, companions, judge, scenes)


def annotators(figures: Figures, folder: Path, scenes: int) -> None:
    """Accuracy of depth and segmentation maps of renderings."""
    samples = held_out_samples(scenes)
    images = images_of(samples)
    right = torch.from_numpy(np.stack([paint(drawn.scene, SIZE).segmentation() for drawn in samples]))
    found = segmented(folder, images)
    figures.mention("segmenter: right class of a pixel", f"{(found == right).float().mean():.3f}")
    near = np.stack([paint(drawn.scene, SIZE).nearness(drawn.scene.horizon) for drawn in samples])
    wrong = measures.depth_disagreement(nearness_seen(folder, images), near)
    figures.mention("depth estimator: pairs of pixels in the wrong order", f"{wrong:.3f}")


@torch.inference_mode()
def segmented(folder: Path, images: Images) -> torch.Tensor:
    """Return the predicted class of each pixel as an index into CLASSES, (n, 128, 128)."""
    model = SegformerForSemanticSegmentation.from_pretrained(folder / "segmenter", dtype=torch.float32).eval()
    logits = model(segformer_pixels(as_pixels(images, CPU))).logits[:, maps.ADE20K_LABELS]
    return torch.nn.functional.interpolate(logits, size=(SIZE, SIZE), mode="bilinear").argmax(1)


@torch.inference_mode()
def nearness_seen(folder: Path, images: Images) -> measures.Floats:
    """Return the inverse of the predicted distances, (n, 128, 128)."""
    model = GLPNForDepthEstimation.from_pretrained(folder / "depth_estimator", dtype=torch.float32).eval()
    parts = [glpn_pixels(as_pixels(images[start : start + 8], CPU)) for start in range(0, len(images), 8)]
    return np.asarray(1 / torch.cat([model(part).predicted_depth for part in parts]).numpy())


def controls(figures: Figures, companions: CompanionPipelines, judge: Judge, folder: Path, scenes: int) -> None:
    """Compare results from noise with and without a map, with equal prompts and seeds."""
    samples = held_out_samples(scenes)
    images = images_of(samples)
    prompts = [full_caption(drawn.scene, drawn.style) for drawn in samples]
    canny, scribble = (
        np.stack([maps.lines(image, kind) for image in images]) for kind in (ControlType.CANNY, ControlType.SCRIBBLE)
    )
    depth = np.stack([maps.depth(drawn.scene) for drawn in samples])
    regions = np.stack([maps.segmentation(drawn.scene) for drawn in samples])
    cells = torch.stack([scene_map(drawn) for drawn in samples])
    free = companions.from_noise(prompts)
    by_canny = companions.controlled(prompts, {ControlType.CANNY: canny})
    by_scribble = companions.controlled(prompts, {ControlType.SCRIBBLE: scribble})
    by_depth = companions.controlled(prompts, {ControlType.DEPTH: depth})
    by_regions = companions.controlled(prompts, {ControlType.SEGMENTATION: regions})
    by_both = companions.controlled(prompts, {ControlType.CANNY: canny, ControlType.SEGMENTATION: regions})

    def edges(made: Images) -> float:
        return measures.edge_f1(made, canny)

    def strokes(made: Images) -> float:
        return measures.edge_f1(made, scribble, ControlType.SCRIBBLE)

    def iou(made: Images) -> float:
        return measures.mean_iou(judge.look_at(made).segmentation, cells)

    def wrong_order(made: Images) -> float:
        return measures.depth_disagreement(nearness_seen(folder, made), depth[..., 0] / 255.0)

    figures.times("canny: F1 of the edges", edges(by_canny), edges(free), 2.0)
    figures.times("scribble: F1 of the strokes", strokes(by_scribble), strokes(free), 2.0)
    figures.times("segmentation: mIoU of the regions", iou(by_regions), iou(free), 2.0)
    figures.times("depth: pairs in the wrong order, without / with", wrong_order(free), wrong_order(by_depth), 2.0)
    listed = f"{edges(by_both):.3f} / {iou(by_both):.3f}"
    either = edges(by_both) > edges(by_canny) and iou(by_both) > iou(by_regions)
    beside = f"against {edges(by_canny):.3f} of canny and {iou(by_regions):.3f} of segmentation"
    figures.holds("canny + segmentation: F1 / mIoU better than either alone", f"{listed} {beside}", either)
    figures.mention(
        "the other's figure: mIoU by canny / F1 by segmentation", f"{iou(by_canny):.3f} / {edges(by_regions):.3f}"
    )


def edits(figures: Figures, companions: CompanionPipelines, judge: Judge, scenes: int) -> None:
    """Measure success of edits and unwanted changes, compared with img2img that changes as much."""
    for kind in KINDS:
        instructions = [sample_instruction(HELD_OUT_SEED + index, kind) for index in range(scenes)]
        before, after = (np.stack(images) for images in zip(*(one.images() for one in instructions), strict=True))
        words = [one.words for one in instructions]
        made = companions.edited(before, words, EDIT_GUIDANCE, EDIT_IMAGE_GUIDANCE)
        success = _appears(judge, made, instructions)
        figures.at_least(f"edit {kind}: requested change appears", success, 0.8)
        kept = None if kind in ("time", "style", "season") else np.stack([~one.changed() for one in instructions])
        right = before if kept is not None else after
        edited = measures.distance(made, right, kept)
        stock = _img2img_distance(companions, judge, instructions, before, right, kept, success)
        reference = "from the input outside the change" if kept is not None else "from the rendered scene"
        figures.at_most(f"edit {kind}: RMSE {reference}, against img2img's {stock:.3f}", edited, stock / 2)


def _img2img_distance(
    companions: CompanionPipelines,
    judge: Judge,
    instructions: list[Instruction],
    before: Images,
    right: Images,
    where: np.ndarray[tuple[int, ...], np.dtype[np.bool_]] | None,
    success: float,
) -> float:
    """Return the distance of img2img at the smallest strength with the same success, else at the best strength."""
    prompts = [full_caption(one.after, one.style_after) for one in instructions]
    best = (-1.0, 0.0)
    for strength in STRENGTHS:
        made = companions.pipeline.change(before, prompts, strength, 4.0)
        reached = _appears(judge, made, instructions)
        far = measures.distance(made, right, where)
        if reached >= success:
            return far
        best = max(best, (reached, far))
    return best[1]


def _appears(judge: Judge, made: Images, instructions: list[Instruction]) -> float:
    """Return the share of images in which the judge detects the requested change."""
    kind, verdict = instructions[0].kind, judge.look_at(made)
    if kind in WORD_HEADS:
        head = list(HEADS).index(WORD_HEADS[kind])
        wanted = [word_indices(Sample(one.after, one.style_after))[head] for one in instructions]
        words = HEADS[WORD_HEADS[kind]]
        return float(
            np.mean([words.index(w) == i for w, i in zip(verdict.words[WORD_HEADS[kind]], wanted, strict=True)])
        )
    # Objects that are added or removed: compare the judge's map with the scenes before and after.
    now, then = (
        torch.stack([scene_map(Sample(scene, "photo")) for scene in scenes])
        for scenes in ([one.after for one in instructions], [one.before for one in instructions])
    )
    differs = now != then
    to_now, to_then = (((verdict.segmentation == some) & differs).sum(dim=(1, 2)) for some in (now, then))
    return float((to_now > to_then).float().mean())


def inpainting(figures: Figures, companions: CompanionPipelines, scenes: int) -> None:
    """Random masks at strength 1 with all other pixels kept: measures the seams."""
    samples = held_out_samples(scenes)
    images = images_of(samples)
    masks = [random_mask(drawn, random.Random(f"held-out mask {i}")) for i, drawn in enumerate(samples)]
    prompts = [full_caption(drawn.scene, drawn.style) for drawn in samples]
    inside = np.stack(masks)
    nine, four = (companions.inpainted(images, masks, prompts, nine_channels=nine) for nine in (True, False))
    seams = [measures.seam_error(made, images, masks) for made in (nine, four)]
    figures.at_most(f"inpainting: error of the step across the seam, four channels {seams[1]:.4f}", seams[0], seams[1])
    far = [measures.distance(made, images, inside) for made in (nine, four)]
    figures.mention("inpainting: RMSE from the original under the mask, nine / four", f"{far[0]:.3f} / {far[1]:.3f}")


def upscaling(figures: Figures, companions: CompanionPipelines, scenes: int) -> None:
    """From 128 to 512 pixels, compared with Pillow's bicubic resizing and the rendering at 512."""
    samples = [Sample(scene, STYLES[i % len(STYLES)]) for i, scene in enumerate(held_out_scenes(scenes))]
    large = np.stack([np.asarray(render(drawn.scene, drawn.style, LARGE)) for drawn in samples])
    small = np.stack([reduced(image) for image in large])
    made = companions.enlarged(small, [full_caption(drawn.scene, drawn.style) for drawn in samples])
    bicubic = np.stack(
        [np.asarray(Image.fromarray(one).resize((LARGE, LARGE), Image.Resampling.BICUBIC)) for one in small]
    )
    our_db, bicubic_db = (measures.gradient_psnr(some, large) for some in (made, bicubic))
    figures.at_least(f"upscaler: PSNR of the gradients, dB; bicubic {bicubic_db:.1f}", our_db, bicubic_db, digits=1)
    share = [measures.sharpness(some) / measures.sharpness(large) for some in (made, bicubic)]
    figures.mention("upscaler: sharpness against the rendering's, ours / bicubic", f"{share[0]:.2f} / {share[1]:.2f}")


def image_prompts(figures: Figures, companions: CompanionPipelines, judge: Judge, scenes: int) -> None:
    """Photos by day with prompts that name objects only; the image prompt shows a style or a time of day."""
    scenes_by_day = [replace(scene, time="day", season="summer") for scene in held_out_scenes(2 * scenes)]
    plain, others = scenes_by_day[:scenes], scenes_by_day[scenes:]
    rng = random.Random("words for image prompts")
    prompts = [subject(scene, rng) for scene in plain]
    given = images_of([Sample(scene, "photo") for scene in plain])
    styles = [STYLES[1 + i % 4] for i in range(scenes)]
    times = [TIMES[1 + i % 2] for i in range(scenes)]
    examples = {
        "style": images_of([Sample(scene, style) for scene, style in zip(others, styles, strict=True)]),
        "time": images_of([Sample(replace(s, time=t), "photo") for s, t in zip(others, times, strict=True)]),
    }
    without = judge.look_at(companions.pipeline.change(given, prompts, 0.7, 4.0)).words
    for head, wanted in {"style": styles, "time": times}.items():
        seen = judge.look_at(companions.prompted_by(examples[head], given, prompts, 0.7)).words[head]
        by_it = float(np.mean([one == other for one, other in zip(seen, wanted, strict=True)]))
        else_ = float(np.mean([one == other for one, other in zip(without[head], wanted, strict=True)]))
        figures.at_least(f"image prompt: its {head} appears, strength 0.7; without it {else_:.2f}", by_it, 0.7)
