"""Query parameters that an operation does not have."""

from collections.abc import Iterator

from fastapi import Request
from fastapi.dependencies.models import Dependant

from img2img.errors import ParameterError


async def refuse_unknown_query(request: Request) -> None:
    """Raise ParameterError for a query parameter that the operation does not have, such as a misspelt `dry_run`."""
    if not request.query_params:
        return
    known = list(dict.fromkeys(_names(request.scope["route"].dependant)))
    for name, value in request.query_params.items():
        if name not in known:
            listed = f"known are {', '.join(known)}" if known else "this operation has none"
            raise ParameterError(name, f"Unknown query parameter; {listed}", got=value)


def _names(dependant: Dependant) -> Iterator[str]:
    yield from (field.alias for field in dependant.query_params)
    for other in dependant.dependencies:
        yield from _names(other)
