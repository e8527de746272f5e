"""Every pipeline class of diffusers that takes an image is served as docs/families.md says."""

from pathlib import Path

import pytest

from img2img.worker.pipelines.families import FAMILIES
from scripts import families
from tests.support.family_matrix import MODELS, measure

PAGE = families.FILE.read_text("utf-8")
ROWS = families.rows_of(PAGE)


@pytest.mark.parametrize("name", MODELS)
def test_class_gives_stock_pixels_as_the_page_says(tmp_path: Path, name: str) -> None:
    row = measure(name, tmp_path)
    assert row.tasks
    assert row.alone == 0
    assert row.together <= 1
    assert (row.tasks, row.merges, row.alone) == (ROWS[name].tasks, ROWS[name].merges, ROWS[name].alone)


def test_page_has_every_class_of_the_installed_diffusers() -> None:
    assert families.text(ROWS) == PAGE, "run `make families`"
    assert set(ROWS) == set(MODELS), "run `make families`"
    assert not [name for name in families.classes() if f"`{name}`" not in PAGE]


def test_every_class_of_a_family_is_measured() -> None:
    kinds = {kind.__name__ for family in FAMILIES for kind in family.pipelines.values()}
    assert kinds - set(MODELS) <= {"StableDiffusionInstructPix2PixPipeline", "StableDiffusionXLInstructPix2PixPipeline"}
