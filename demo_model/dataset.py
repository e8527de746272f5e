"""The training images: rendered once and cached in a file. Captions are sampled at every use."""

from __future__ import annotations

import multiprocessing
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.progress import track

from .captions import caption
from .crude import draw_crudely
from .scenes import STYLES, Scene, Style, sample_scene
from .styles import render
from .workers import is_first_worker, wait_for_workers

SIZE = 128
Images = npt.NDArray[np.uint8]
Drawer = Callable[[int], Images]


@dataclass(frozen=True)
class Sample:
    """One training image before rendering."""

    scene: Scene
    style: Style

    def caption(self, rng: random.Random) -> str:
        return caption(self.scene, self.style, rng)


def sample(seed: int) -> Sample:
    return Sample(sample_scene(seed), random.Random(f"style {seed}").choice(STYLES))


def rendered_images(work_dir: Path, count: int) -> Images:
    """Return a memory map (count, 128, 128, 3) of the images of seeds 0 to count - 1, rendered if necessary."""
    return cached(work_dir / f"pictures-{count}.npy", range(count), _render_sample)


def crude_images(work_dir: Path, count: int) -> Images:
    """Return a memory map (count, 128, 128, 3) of crude drawings, so that the autoencoder knows drawings by users."""
    return cached(work_dir / f"crude-{count}.npy", range(count), _render_crude)


def _render_sample(seed: int) -> Images:
    drawn = sample(seed)
    return np.asarray(render(drawn.scene, drawn.style, SIZE))


def _render_crude(seed: int) -> Images:
    return np.asarray(draw_crudely(sample_scene(seed), SIZE))


def cached(path: Path, seeds: range, draw: Drawer, shape: tuple[int, ...] = (SIZE, SIZE, 3)) -> Images:
    """Return a memory map (seeds, *shape) of the results of `draw` for each seed, made on all cores if necessary."""
    if not path.exists() and is_first_worker():
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".part")
        images = np.lib.format.open_memmap(unfinished, "w+", np.uint8, (len(seeds), *shape))
        with multiprocessing.get_context("spawn").Pool() as pool:
            drawn = pool.imap(draw, seeds, chunksize=64)
            for index, image in enumerate(track(drawn, f"rendering {path.stem}", total=len(seeds))):
                images[index] = image
        images.flush()
        unfinished.rename(path)
    wait_for_workers()
    return np.load(path, mmap_mode="r")  # type: ignore[no-any-return]
