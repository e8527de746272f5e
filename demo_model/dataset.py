"""The training pictures: rendered once, kept in one file on disk; their captions are worded anew at every use."""

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
Pictures = npt.NDArray[np.uint8]
Drawer = Callable[[int], Pictures]


@dataclass(frozen=True)
class Sample:
    """One picture of the training set, before it is drawn."""

    scene: Scene
    style: Style

    def caption(self, rng: random.Random) -> str:
        return caption(self.scene, self.style, rng)


def sample(seed: int) -> Sample:
    return Sample(sample_scene(seed), random.Random(f"style {seed}").choice(STYLES))


def rendered_pictures(work_dir: Path, count: int) -> Pictures:
    """(count, 128, 128, 3) memory map: the pictures of seeds 0 to count - 1, rendered if they are not there yet."""
    return cached(work_dir / f"pictures-{count}.npy", range(count), _render_sample)


def crude_pictures(work_dir: Path, count: int) -> Pictures:
    """(count, 128, 128, 3) memory map of crude drawings: the autoencoder must know what people will bring."""
    return cached(work_dir / f"crude-{count}.npy", range(count), _render_crude)


def _render_sample(seed: int) -> Pictures:
    drawn = sample(seed)
    return np.asarray(render(drawn.scene, drawn.style, SIZE))


def _render_crude(seed: int) -> Pictures:
    return np.asarray(draw_crudely(sample_scene(seed), SIZE))


def cached(path: Path, seeds: range, draw: Drawer, shape: tuple[int, ...] = (SIZE, SIZE, 3)) -> Pictures:
    """(seeds, *shape) memory map: what `draw` makes of each seed, on all cores, if the file is not there yet."""
    if not path.exists() and is_first_worker():
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".part")
        pictures = np.lib.format.open_memmap(unfinished, "w+", np.uint8, (len(seeds), *shape))
        with multiprocessing.get_context("spawn").Pool() as pool:
            drawn = pool.imap(draw, seeds, chunksize=64)
            for index, picture in enumerate(track(drawn, f"rendering {path.stem}", total=len(seeds))):
                pictures[index] = picture
        pictures.flush()
        unfinished.rename(path)
    wait_for_workers()
    return np.load(path, mmap_mode="r")  # type: ignore[no-any-return]
