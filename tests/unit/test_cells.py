"""Ids of cells, their settings, and lists of several cells merged page by page."""

import random
from dataclasses import dataclass
from uuid import uuid4

import pytest
from pydantic import ValidationError

from img2img.app.settings import ApiSettings
from img2img.domain.cells import cell_digits, derived_id, digits_of, new_id, parse_cells
from img2img.domain.job_batch import BatchMember
from img2img.redis.job_store import Cursor
from img2img.redis.merged_pages import merge_pages


def test_ids_name_their_cell() -> None:
    digits = digits_of("eu-1")
    ids = {new_id(digits) for _ in range(1000)}
    assert len(ids) == 1000
    assert {(len(one), cell_digits(one)) for one in ids} == {(32, digits)}
    batch = new_id(digits)
    assert {cell_digits(BatchMember(id=batch, index=index).job_id) for index in range(100)} == {digits}
    assert len({BatchMember(id=batch, index=index).job_id for index in range(100)}) == 100
    # Without cells, ids are those of earlier versions.
    assert cell_digits(new_id("")) is None
    assert derived_id("5a" * 16, "x") == "2d711642b726b04401627ca9fbac32f5"


def test_invalid_cells_are_refused_without_their_passwords() -> None:
    assert parse_cells("a=redis://x/0  b=redis+sentinel://s1,s2/main") == {
        "a": "redis://x/0",
        "b": "redis+sentinel://s1,s2/main",
    }
    for text in ("redis://:secret@x", "A=redis://:secret@x", "a=redis://:secret@x a=redis://y", "a="):
        with pytest.raises(ValidationError):
            ApiSettings(_env_file=None, cells=text)
    assert "secret" not in repr(ApiSettings(_env_file=None, cells="a=redis://:secret@x"))


def test_cells_have_settings_of_their_own() -> None:
    settings = ApiSettings(_env_file=None, cells="a=redis://x b=redis://y", store_url="s3://bucket/prefix/")
    cells = settings.by_cell()
    assert [(one.redis_url, one.store_url) for one in cells.values()] == [
        ("redis://x", "s3://bucket/prefix/a"),
        ("redis://y", "s3://bucket/prefix/b"),
    ]
    alone = ApiSettings(_env_file=None)
    assert alone.by_cell() == {"": alone}


@dataclass(frozen=True)
class Entry:
    id: str
    created_at: float


def page(entries: list[Entry], before: Cursor | None, limit: int) -> tuple[list[Entry], Cursor | None]:
    """A page as the job store returns it: entries that have expired are missing."""
    cursors = [Cursor(one.created_at, one.id) for one in entries]
    left = sorted((one for one in cursors if before is None or one < before), reverse=True)
    shown = [Entry(one.job_id, one.created_at) for one in left[:limit] if not one.job_id.startswith("0")]
    return shown, left[limit - 1] if len(left) > limit else None


@pytest.mark.parametrize("cells", [1, 2, 5])
def test_merged_pages_are_those_of_one_list(cells: int) -> None:
    rng = random.Random(cells)
    # Some at the same time.
    lists = [[Entry(uuid4().hex, float(rng.randrange(60))) for _ in range(rng.randrange(80))] for _ in range(cells)]
    for limit in (1, 3, 7, 100):
        seen: list[Entry] = []
        before, pages = None, 0
        while True:
            found, before = merge_pages([page(one, before, limit) for one in lists], limit)
            assert len(found) <= limit
            seen += found
            pages += 1
            if before is None:
                break
        expected = [one for entries in lists for one in entries if not one.id.startswith("0")]
        assert seen == sorted(expected, key=lambda one: (one.created_at, one.id), reverse=True)
