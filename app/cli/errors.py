"""How a command ends that could not do what it was asked to: one line, and an exit code."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import typer

REFUSED, USAGE, UNREACHABLE, INTERRUPTED = 1, 2, 3, 130


class WrongUsage(Exception):
    """What was asked for makes no sense, whatever the service would say."""


def fail(reason: str, code: int = REFUSED) -> NoReturn:
    """Says why on stderr, and ends the command."""
    complain(reason)
    raise typer.Exit(code)


def complain(reason: str) -> None:
    """A line on stderr; nothing where somebody else has said it."""
    if reason:
        typer.echo(f"img2img: {reason}", err=True)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turns what a user can put right into one line and an exit code."""
    from pydantic import ValidationError

    from img2img.client import RequestRefused, ServiceUnreachable
    from img2img.telemetry.tracing import TracingError

    from ..settings import complaint
    from ..supervisor.supervisor import ServeError

    try:
        yield
    except ValidationError as error:
        fail(complaint(error))
    except WrongUsage as error:
        fail(str(error), USAGE)
    except ServiceUnreachable as error:
        fail(str(error), UNREACHABLE)
    except (ServeError, RequestRefused, TracingError, OSError) as error:
        fail(str(error))
