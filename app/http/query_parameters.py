"""Query parameters that an operation does not have, and those that several have."""

from collections.abc import Iterator
from typing import Annotated

from fastapi import Query, Request
from fastapi.dependencies.models import Dependant
from pydantic import BeforeValidator

from img2img.domain.text_forms import Matches
from img2img.errors import ParameterError
from img2img.redis.job_store import CURSOR

FROM_PREVIOUS_PAGE = "the `next_cursor` of the previous page; leave it out for the first page"
EMPTY_IS_ABSENT = BeforeValidator(lambda value: value or None)
# Clients of the first page may send an empty one.
CursorQuery = Annotated[
    Annotated[str, Matches(f"{CURSOR}|^$", FROM_PREVIOUS_PAGE)] | None,
    EMPTY_IS_ABSENT,
    Query(description="`next_cursor` of the previous page."),
]


async def refuse_unknown_query(request: Request) -> None:
    """Raise ParameterError for a query parameter that the operation does not have, such as a misspelt `dry_run`, and
    for one that is sent twice.
    """
    if not request.query_params:
        return
    known = list(dict.fromkeys(_names(request.scope["route"].dependant)))
    given = [name for name, _ in request.query_params.multi_items()]
    for name, value in request.query_params.items():
        if given.count(name) > 1:
            raise ParameterError(name, "Query parameter sent more than once")
        if name not in known:
            listed = f"known are {', '.join(known)}" if known else "this operation has none"
            raise ParameterError(name, f"Unknown query parameter; {listed}", got=value)


def _names(dependant: Dependant) -> Iterator[str]:
    yield from (field.alias for field in dependant.query_params)
    for other in dependant.dependencies:
        yield from _names(other)
