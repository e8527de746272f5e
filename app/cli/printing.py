"""Prints lines, JSON documents and tables. Everything that commands print goes through this module.

Texts come from the service, from other users (prompts, names) and from file names, so characters that control a
terminal are escaped.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import typer
from pydantic import BaseModel

from img2img.printable import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from img2img.client import ClientError


# The console of the live display that is shown now.
_display: "ContextVar[Console | None]" = ContextVar("display", default=None)


@contextmanager
def above_display(console: "Console") -> Iterator[None]:
    """Print lines above the live display of `console`, which would overwrite them otherwise."""
    token = _display.set(console)
    try:
        yield
    finally:
        _display.reset(token)


def echo(line: str, *, err: bool = False) -> None:
    """Print one line on stdout, or on stderr."""
    console = _display.get()
    if console and (sys.stderr if err else sys.stdout).isatty():
        console.print(printable(line), markup=False, highlight=False, emoji=False, soft_wrap=True)
    else:
        typer.echo(printable(line), err=err)


def to_json(document: object) -> str:
    """Return a document as one line of JSON, in printable ASCII."""
    return json.dumps(document).replace("\x7f", "\\u007f")


def response_document(response: BaseModel) -> dict[str, Any]:
    """Return a response as JSON, with the fields that the service sent."""
    return response.model_dump(mode="json", exclude_unset=True)


def print_fields(document: dict[str, Any]) -> None:
    """Print the fields of a document that are not empty, one a line."""
    for name, value in document.items():
        if isinstance(value, dict) and value:
            echo(f"{name}:")
            for inner_name, inner in value.items():
                echo(f"  {inner_name}: {_text(inner)}")
        elif value not in (None, [], {}):
            echo(f"{name}: {_text(value)}")


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def problem_document(error: "ClientError") -> dict[str, Any]:
    """Return the problem document of an error that the service responded with."""
    return {"problem": getattr(error, "problem", {"detail": str(error)})}


def new_table(*columns: str) -> "Table":
    """Return a table in which ids and names of models are never shortened."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in columns:
        whole = name in ("id", "model")
        table.add_column(name, no_wrap=True, overflow="ignore" if whole else "ellipsis", min_width=32 * (name == "id"))
    return table


def add_row(table: "Table", *values: object) -> None:
    """Add a row to a table."""
    table.add_row(*(None if value is None else printable(str(value)) for value in values))


def print_table(table: "Table") -> None:
    """Print a table. In a pipe its columns are as wide as their values."""
    from rich.console import Console

    console = Console(markup=False, highlight=False)
    if not console.is_terminal:
        console.width = 10_000
    console.print(table)
