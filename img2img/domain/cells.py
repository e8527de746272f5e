"""Cells: parts of a service, each with a Redis. Ids of jobs and batches say which cell has them."""

import re
from hashlib import sha256
from uuid import uuid4

NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,30}")
DIGITS = 4
# The digit of an id that is the version of a UUID, which is 4 in ids without a cell.
MARK_AT, MARK = 12, "c"


def digits_of(cell: str) -> str:
    """Return the digits with which the ids of a cell begin; none for a service without cells."""
    return sha256(cell.encode()).hexdigest()[:DIGITS] if cell else ""


def new_id(digits: str) -> str:
    """Return a random id of 32 hexadecimal digits, of the cell with these digits."""
    return _marked(digits, uuid4().hex) if digits else uuid4().hex


def derived_id(parent: str, text: str) -> str:
    """Return the id that a text always has, in the cell of another id."""
    digest, digits = sha256(text.encode()).hexdigest(), cell_digits(parent)
    return _marked(digits, digest) if digits else digest[:32]


def cell_digits(id: str) -> str | None:
    """Return the digits of the cell that has made an id, None if a service without cells has made it."""
    return id[:DIGITS] if len(id) == 32 and id[MARK_AT] == MARK else None


def _marked(digits: str, random: str) -> str:
    return f"{digits}{random[DIGITS:MARK_AT]}{MARK}{random[MARK_AT + 1 : 32]}"


def parse_cells(text: str) -> dict[str, str]:
    """Return the URLs in `name=URL name=URL`, by name. Raises ValueError."""
    cells: dict[str, str] = {}
    for part in text.split():
        name, separator, url = part.partition("=")
        if not separator or not url or not NAME.fullmatch(name):
            raise ValueError("it should be name=URL of each cell, separated by spaces; names have a-z, 0-9 and -")
        if name in cells or digits_of(name) in map(digits_of, cells):
            raise ValueError(f"the cell {name} needs another name")
        cells[name] = url
    return cells
