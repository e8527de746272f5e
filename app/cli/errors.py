"""How a command ends that cannot do its work: one line on stderr, and an exit code."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import typer

from .printing import echo

REFUSED, USAGE, UNREACHABLE, INTERRUPTED = 1, 2, 3, 130


class WrongUsage(Exception):
    """The arguments of the command make no sense together."""


def fail(reason: str, code: int = REFUSED) -> NoReturn:
    """Print the reason on stderr and end the command."""
    complain(reason)
    raise typer.Exit(code)


def complain(reason: str) -> None:
    """Print a line on stderr, and further lines indented, so that none looks like another message of this command.

    Prints nothing for an empty reason.
    """
    first, *others = reason.split("\n")
    if reason:
        echo(f"img2img: {first}", err=True)
    for line in others:
        echo(f"  {line.lstrip(' ')}", err=True)


@contextmanager
def client_errors() -> Iterator[None]:
    """Turn the errors of a command that uses a service into one line and an exit code."""
    from img2img.client import ClientError, ServiceUnreachable

    try:
        yield
    except WrongUsage as error:
        fail(str(error), USAGE)
    except ServiceUnreachable as error:
        fail(str(error), UNREACHABLE)
    except (ClientError, OSError) as error:
        fail(str(error))


@contextmanager
def server_errors(extra: str) -> Iterator[None]:
    """Turn the errors of a command that runs the service into one line and an exit code.

    Args:
        extra: The extra of the distribution that the command needs.
    """
    try:
        with client_errors(), _settings_errors():
            yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "img2img":
            raise
        fail(f"the server is not installed ({error}): pip install 'img2img-server[{extra}]'", USAGE)


@contextmanager
def _settings_errors() -> Iterator[None]:
    from pydantic import ValidationError

    from img2img.settings import describe_errors
    from img2img.telemetry.tracing import TracingError

    from ..supervisor.errors import ServeError, TemporaryServeError
    from ..supervisor.redis_server import RedisUnavailable

    try:
        yield
    except ValidationError as error:
        fail(describe_errors(error), USAGE)
    except TemporaryServeError as error:
        fail(str(error))
    except (ServeError, RedisUnavailable, TracingError) as error:
        fail(str(error), USAGE)
