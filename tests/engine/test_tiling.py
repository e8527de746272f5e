"""Splitting of a large image into tiles and blending of the results."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from img2img.domain.parameters import Task
from img2img.domain.spec import JobSpec
from img2img.domain.tiling import Tiling
from img2img.worker.images.tiled_image import TiledImage
from tests.support.specs import make_spec

TILING = Tiling(upscaler=False, side=64, overlap=8, multiple=8)


def job(width: int, height: int, *, times: int = 2, tiling: Tiling = TILING, **changes: object) -> JobSpec:
    size = {"width": width, "height": height, "upscale": times, "tiling": tiling}
    defaults = {"task": Task.UPSCALE, "prompt": "", "strength": 0.3, "guidance_scale": 1.0}
    return make_spec(**{**defaults, **size, **changes})


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(5).integers(0, 256, (height, width, 3), np.uint8))


# No deadline: tests may run on a busy machine.
@settings(deadline=None)
@given(
    st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 16), st.integers(0, 4), st.sampled_from([8, 16, 32, 64])
)
def test_grid_covers_the_result_with_overlapping_tiles(
    width: int, height: int, units: int, overlap: int, multiple: int
) -> None:
    overlap = min(overlap, units - 1) * multiple
    tiling = Tiling(upscaler=False, side=units * multiple, overlap=overlap, multiple=multiple)
    grid = tiling.grid((width, height))
    for length, canvas, side, starts in (
        (width, grid.canvas[0], grid.tile[0], grid.lefts),
        (height, grid.canvas[1], grid.tile[1], grid.tops),
    ):
        assert length <= canvas < max(length, tiling.side // 2) + multiple
        assert tiling.side // 2 <= side <= tiling.side
        assert starts[0] == 0
        assert starts[-1] + side == canvas
        assert all(value % multiple == 0 for value in (canvas, side, *starts))
        for before, after in pairwise(starts):
            assert overlap <= before + side - after < side
    assert len(grid.boxes) == len(grid)


def test_grid_of_small_image_has_one_tile() -> None:
    assert job(32, 32).grid.boxes == [(0, 0, 64, 64)]
    assert job(20, 32).grid.boxes == [(0, 0, 40, 64)]
    assert job(3, 5).grid.boxes == [(0, 0, 32, 32)]


def test_cost_and_steps_include_every_tile() -> None:
    one, many = job(32, 32), job(88, 32, num_images=2)
    assert (one.passes, one.total_steps) == (1, 3)
    assert (many.passes, many.total_steps) == (2 * 3, 2 * 3 * 3)
    assert many.cost == pytest.approx(one.cost * 6)


@pytest.mark.parametrize("size", [(32, 32), (51, 37), (200, 3), (1, 1), (129, 77)])
@pytest.mark.parametrize("by_upscaler", [False, True])
def test_unchanged_tiles_join_to_the_resized_image(size: tuple[int, int], by_upscaler: bool) -> None:
    spec = job(
        *size, times=4, tiling=TILING.model_copy(update={"upscaler": by_upscaler, "multiple": 16, "overlap": 16})
    )
    image = noise(*size)
    resampling = Image.Resampling.NEAREST if by_upscaler else Image.Resampling.LANCZOS
    tiled = TiledImage(image, spec)
    tiles = [tiled.tile(number) for number in range(len(tiled.grid))]
    width, height = tiled.grid.tile
    assert {tile.size for tile in tiles} == {(width // 4, height // 4) if by_upscaler else (width, height)}
    results = [np.asarray(tile.resize((width, height), resampling)) for tile in tiles]
    whole = tiled.merge(results)
    assert (whole == np.asarray(image.resize((size[0] * 4, size[1] * 4), resampling))).all()


def test_different_tiles_are_blended() -> None:
    tiled = TiledImage(noise(90, 70), job(90, 70))
    grid = tiled.grid
    values = np.random.default_rng(1).integers(0, 256, len(grid))
    tiles = [np.full((grid.tile[1], grid.tile[0], 3), value, np.uint8) for value in values]
    whole = tiled.merge(tiles).astype(int)
    for axis, starts, side in ((1, grid.lefts, grid.tile[0]), (0, grid.tops, grid.tile[1])):
        narrowest = min(before + side - after for before, after in pairwise(starts))
        steepest = 255 * np.pi / 2 / narrowest
        assert np.abs(np.diff(whole, axis=axis)).max() <= steepest + 1, "there is a hard edge"
    assert whole.min() >= values.min()
    assert whole.max() <= values.max()
