"""The figures of the model card: `python -m img2img.demo_model.evaluate`. Held-out scenes, 25 steps of dpmpp_2m."""

from __future__ import annotations

import argparse
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from img2img.domain.conditioning import ControlType

from .batch_pipeline import BatchPipeline
from .companions.companion_pipelines import CompanionPipelines
from .companions.evaluate import evaluate_companions
from .companions.maps import lines
from .companions.measures import edge_f1
from .dataset import Images, Sample, rendered_images
from .edits import (
    Edit,
    held_out_samples,
    held_out_scenes,
    house_edits,
    images_of,
    night_edits,
    pencil_edits,
    season_edits,
    style_edits,
    time_edits,
)
from .figures import Figures
from .judge import HEADS, TRAIN_IMAGES, Judge, scene_map, trained_judge, word_indices
from .photos import colour_distance, packaged_photos
from .recipe import recipe_for
from .scenes import STYLES, Style

HERE = Path(__file__).parent
COMPANIONS = HERE / "companions" / "weights"
STRENGTHS = (0.2, 0.4, 0.6, 0.8, 1.0)
GUIDANCES = (1.0, 4.0, 7.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, default=HERE / "weights")
    parser.add_argument("--work-dir", type=Path, default=HERE / ".work", help="folder of the judge and its images")
    parser.add_argument("--scenes", type=int, default=64)
    parser.add_argument("--all", action="store_true", help="the companions' figures, too, on half the scenes")
    arguments = parser.parse_args()
    pipeline, judge, figures = BatchPipeline(arguments.weights), _judge(arguments.work_dir), Figures()
    evaluate(figures, pipeline, judge, arguments.scenes)
    figures.print()
    if arguments.all:
        figures = Figures()
        evaluate_companions(figures, CompanionPipelines(pipeline, COMPANIONS), judge, COMPANIONS, arguments.scenes // 2)
        figures.print()


def evaluate(figures: Figures, pipeline: BatchPipeline, judge: Judge, scenes: int) -> None:
    """Measure every row of the demo model's table."""
    _judge_itself(figures, judge, scenes)
    _autoencoder(figures, pipeline, scenes)
    _strength(figures, pipeline, judge, scenes)
    _changes(figures, pipeline, judge, scenes)
    _pencil_and_night(figures, pipeline, scenes)
    _photos(figures, pipeline)
    _speed(figures, pipeline)


def _judge(work_dir: Path) -> Judge:
    images = recipe_for(torch.device("cuda" if torch.cuda.is_available() else "cpu")).images
    known = work_dir / f"pictures-{images}.npy"
    return trained_judge(work_dir, rendered_images(work_dir, images if known.exists() else TRAIN_IMAGES))


def _judge_itself(figures: Figures, judge: Judge, scenes: int) -> None:
    """Accuracy of the judge on held-out renderings."""
    samples = held_out_samples(4 * scenes)
    verdict = judge.look_at(images_of(samples))
    right = np.array([word_indices(drawn) for drawn in samples])
    for column, (name, words) in enumerate(HEADS.items()):
        seen = np.array([words.index(word) for word in verdict.words[name]])
        figures.mention(f"judge: right {name} of a rendered image", f"{(seen == right[:, column]).mean():.3f}")
    maps = torch.stack([scene_map(drawn) for drawn in samples])
    figures.mention("judge: right class of a map cell", f"{_agreement(verdict.segmentation, maps):.3f}")


def _autoencoder(figures: Figures, pipeline: BatchPipeline, scenes: int) -> None:
    bounds: dict[Style, float] = {"photo": 29.0, "watercolor": 29.0, "pencil": 24.0}
    for style in STYLES:
        images = images_of([Sample(scene, style) for scene in held_out_scenes(scenes)])
        errors = np.square((pipeline.restore(images) / 255.0) - images / 255.0).mean(axis=(1, 2, 3))
        psnr_db = float(np.mean(-10 * np.log10(errors)))
        if style in bounds:
            figures.at_least(f"autoencoder PSNR {style}, dB", psnr_db, bounds[style], digits=1)
        else:
            figures.mention(f"autoencoder PSNR {style}, dB", f"{psnr_db:.1f}")


def _strength(figures: Figures, pipeline: BatchPipeline, judge: Judge, scenes: int) -> None:
    """Larger strength must mean larger distance from the input; smaller strength must keep the layout."""
    edits = _mixed_edits(scenes)
    given, prompts = _given(edits), _prompts(edits)
    maps = torch.stack([scene_map(edit.given) for edit in edits])
    for guidance in GUIDANCES:
        changed = {strength: pipeline.change(given, prompts, strength, guidance) for strength in STRENGTHS}
        distances = [float(np.sqrt(np.square(changed[s] / 255.0 - given / 255.0).mean())) for s in STRENGTHS]
        rises = all(nearer < farther for nearer, farther in pairwise(distances))
        listed = " ".join(f"{distance:.3f}" for distance in distances)
        figures.holds(f"RMSE from the input rises with strength, guidance {guidance:g}", listed, rises)
        figures.at_most(f"RMSE from the input at strength 0.2, guidance {guidance:g}", distances[0], 0.12)
        kept = {s: _agreement(judge.look_at(changed[s]).segmentation, maps) for s in (0.4, 1.0)}
        both = f"{kept[0.4]:.3f} {kept[1.0]:.3f}"
        figures.mention(f"layout kept at strength 0.4 and 1.0, guidance {guidance:g}", both)
        figures.at_least(f"layout kept, strength 0.4 minus 1.0, guidance {guidance:g}", kept[0.4] - kept[1.0], 0.2)


def _changes(figures: Figures, pipeline: BatchPipeline, judge: Judge, scenes: int) -> None:
    """Share of images in which the judge detects the requested change."""
    edits_by_name = {"style": style_edits(scenes), "time of day": time_edits(scenes), "season": season_edits(scenes)}
    gains = []
    for name, edits in edits_by_name.items():
        figures.at_least(
            f"requested {name} appears, strength 0.7, guidance 4", _success(pipeline, judge, edits, 0.7, 4.0), 0.85
        )
        gains.append(_success(pipeline, judge, edits, 0.6, 4.0) - _success(pipeline, judge, edits, 0.6, 1.0))
    houses = house_edits(scenes)
    for guidance in (4.0, 7.5):
        share = _success(pipeline, judge, houses, 0.8, guidance)
        figures.at_least(f"requested house colour appears, strength 0.8, guidance {guidance:g}", share, 0.6)
    figures.at_least("success at guidance 4 minus at guidance 1, strength 0.6", float(np.mean(gains)), 0.2)


def _pencil_and_night(figures: Figures, pipeline: BatchPipeline, scenes: int) -> None:
    pencils = pencil_edits(scenes)
    sketches = pipeline.change(_given(pencils), _prompts(pencils), 0.6, 4.0) / 255.0
    figures.at_most(
        "pencil: mean chroma, strength 0.6", float((sketches.max(axis=3) - sketches.min(axis=3)).mean()), 0.06
    )
    nights = night_edits(scenes)
    dark = pipeline.change(_given(nights), _prompts(nights), 0.6, 4.0)
    figures.at_most(
        "night: mean luminance against the input, strength 0.6", _luminance(dark) / _luminance(_given(nights)), 0.6
    )


def _photos(figures: Figures, pipeline: BatchPipeline) -> None:
    """Photos of unknown subjects keep their edges and colours."""
    try:
        photos = packaged_photos()
    except ModuleNotFoundError as error:
        figures.mention("photos of unknown subjects", f"not measured: {error}")
        return
    maps = np.stack([lines(photo, ControlType.CANNY) for photo in photos])
    made = pipeline.change(photos, ["a photo"] * len(photos), 0.4, 4.0)
    figures.at_least(
        f"{len(photos)} photos of unknown subjects, strength 0.4: F1 of the edges", edge_f1(made, maps), 0.5
    )
    figures.at_most("the same: RMSE of the mean colours of 16 x 16 cells", colour_distance(made, photos), 0.1)


def _speed(figures: Figures, pipeline: BatchPipeline) -> None:
    edits = time_edits(1)
    pipeline.change(_given(edits), _prompts(edits), 0.6, 4.0)
    started = time.perf_counter()
    pipeline.change(_given(edits), _prompts(edits), 0.6, 4.0)
    seconds = time.perf_counter() - started
    figures.at_most(f"seconds for one image, strength 0.6, {torch.get_num_threads()} threads", seconds, 1.5, digits=2)


def _mixed_edits(scenes: int) -> list[Edit]:
    """Return style, time and season changes in turn."""
    kinds = (style_edits(scenes), time_edits(scenes), season_edits(scenes))
    return [kinds[index % 3][index] for index in range(scenes)]


def _given(edits: list[Edit]) -> Images:
    return images_of([edit.given for edit in edits])


def _prompts(edits: list[Edit]) -> list[str]:
    return [edit.prompt for edit in edits]


def _success(pipeline: BatchPipeline, judge: Judge, edits: list[Edit], strength: float, guidance: float) -> float:
    """Return the share of edits after which the judge predicts the expected word."""
    words = judge.look_at(pipeline.change(_given(edits), _prompts(edits), strength, guidance)).words
    return float(np.mean([words[edit.head][index] == edit.expected_word for index, edit in enumerate(edits)]))


def _agreement(seen: torch.Tensor, exact: torch.Tensor) -> float:
    return float((seen == exact).float().mean())


def _luminance(images: Images) -> float:
    return float((images @ np.array([0.299, 0.587, 0.114])).mean() / 255.0)


if __name__ == "__main__":
    main()
