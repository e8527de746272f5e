"""Train companions: `python -m img2img.demo_model.companions.train [NAME ...]`. Resumes after an interruption."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from ..dataset import rendered_images
from ..workers import default_worker_count, run_workers
from . import maps
from .annotators import train_annotator
from .base import Base, encoded, load_base
from .controlnet import map_maker, train_controlnet
from .editor import train_editor
from .image_prompts import train_image_prompts
from .inpainter import train_inpainter
from .lora import train_lora
from .recipe import CompanionRecipe, recipe_for
from .upscaler import train_upscaler

HERE = Path(__file__).parent
BASE_WEIGHTS = HERE.parent / "weights"


def main() -> None:
    arguments = _arguments()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    workers = arguments.workers or default_worker_count(device)
    arguments.work_dir.mkdir(parents=True, exist_ok=True)
    run_workers(workers, partial(train, arguments.names, arguments.work_dir, arguments.out, device))


def train(names: list[str], work_dir: Path, out: Path, device: torch.device) -> None:
    """Train one after another; finished companions are only written again."""
    for name in names:
        TRAINERS[name](recipe_for(device), load_base(BASE_WEIGHTS, device), work_dir, out)


def _controlnet(name: str, recipe: CompanionRecipe, base: Base, work_dir: Path, out: Path) -> None:
    images = rendered_images(work_dir, recipe.images)
    latents = encoded(base, images, work_dir / f"companion-latents-{recipe.images}.pt")
    make = map_maker(name, images, maps.painted_maps(work_dir, recipe.images))
    # Starting from the UNet's encoder, the small differences of distant objects had no effect after eight minutes.
    start = out / "segmentation" if name == "depth" else None
    train_controlnet(name, recipe, base, latents, make, work_dir, out, start)


Trainer = Callable[[CompanionRecipe, Base, Path, Path], None]
TRAINERS: dict[str, Trainer] = {
    "segmentation": partial(_controlnet, "segmentation"),
    "lines": partial(_controlnet, "lines"),
    "depth": partial(_controlnet, "depth"),
    "edit": train_editor,
    "inpaint": train_inpainter,
    "upscaler": train_upscaler,
    "image_prompt": train_image_prompts,
    "lora": train_lora,
    "segmenter": partial(train_annotator, "segmenter"),
    "depth_estimator": partial(train_annotator, "depth_estimator"),
}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=list(TRAINERS), default=list(TRAINERS), metavar="NAME")
    parser.add_argument("--work-dir", type=Path, default=HERE.parent / ".work", help="folder of images and checkpoints")
    parser.add_argument("--out", type=Path, default=HERE / "weights", help="where a folder per companion is written")
    parser.add_argument("--workers", type=int, help="training processes; by default one per core, or one on a GPU")
    return parser.parse_args()


if __name__ == "__main__":
    main()
