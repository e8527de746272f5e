"""Merges pages of lists that several cells have, each newest first, into one page."""

from collections.abc import Sequence
from typing import Protocol, TypeVar

from img2img.redis.job_store import Cursor


class Listed(Protocol):
    """An entry of a list by creation time."""

    @property
    def id(self) -> str: ...

    @property
    def created_at(self) -> float: ...


T = TypeVar("T", bound=Listed)


def merge_pages(pages: Sequence[tuple[Sequence[T], Cursor | None]], limit: int) -> tuple[list[T], Cursor | None]:
    """Return up to `limit` entries of the pages, newest first, and the cursor of the next page if any.

    Args:
        pages: Entries before the same cursor, and the cursor of the next page of that list if any.
    """
    if len(pages) == 1:
        entries, last = pages[0]
        return list(entries), last
    entries = sorted((one for page, _ in pages for one in page), key=_cursor, reverse=True)
    # Older entries may belong behind those of the next page of another list.
    known_to = max((last for _, last in pages if last), default=None)
    known = [one for one in entries if known_to is None or _cursor(one) >= known_to]
    if len(known) > limit:
        return known[:limit], _cursor(known[limit - 1])
    return known, known_to


def _cursor(entry: Listed) -> Cursor:
    return Cursor(entry.created_at, entry.id)
