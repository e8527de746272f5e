"""Every error code with its cause and remedy: `/docs/errors`, and docs/errors.md (scripts/error_reference.py).

The statuses of a code are those of its exceptions. `type` of a problem document leads to the entry of its code.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape

from fastapi import FastAPI
from starlette.responses import HTMLResponse

from img2img.errors import Img2ImgError

from ..http.problem_details import status_of
from ..schemas.problems import ERRORS_PATH, status_phrase
from .error_causes import CAUSES

# Statuses of codes that are no exceptions of this project.
OTHER_STATUSES = {"method_not_allowed": {405}, "internal_error": {500}}
CODE = re.compile(r"`([^`]+)`")

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>img2img: errors</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ max-width: 46rem; margin: 2rem auto; padding: 0 1rem; font: 1rem/1.5 system-ui, sans-serif; }}
h2 {{ margin: 2rem 0 0; font: bold 1.1rem ui-monospace, monospace; }}
h2:target {{ background: Mark; color: MarkText; }}
p {{ margin: .3rem 0; }}
</style>
<h1>Errors</h1>
<p>Errors are <code>application/problem+json</code> (RFC 9457). Branch on <code>code</code>, which is stable.</p>
{entries}
</html>
"""


@dataclass(frozen=True)
class ErrorEntry:
    """An error code of responses, or of `error.code` of a job, or of both.

    Attributes:
        statuses: HTTP statuses of responses with this code, ascending.
        is_of_jobs: Whether jobs end with it.
        cause, remedy: Sentences in Markdown, only with inline code.
    """

    code: str
    statuses: tuple[int, ...]
    is_of_jobs: bool
    cause: str
    remedy: str

    @property
    def where(self) -> str:
        """The places where clients see the code, in Markdown."""
        places = [f"{status} {status_phrase(status)}" for status in self.statuses]
        return ", ".join([*places, *["`error.code` of a job"] * self.is_of_jobs])


def raised() -> Iterator[type[Img2ImgError]]:
    """Yield the classes of all errors that are imported."""
    kinds: list[type[Img2ImgError]] = [Img2ImgError]
    while kinds:
        kind = kinds.pop()
        yield kind
        kinds += kind.__subclasses__()


def entries() -> list[ErrorEntry]:
    """Return the entries of all codes, in the order of the alphabet."""
    statuses: dict[str, set[int]] = {code: set() for code in CAUSES} | OTHER_STATUSES
    for kind in raised():
        status = status_of(kind)
        if status and kind.code in CAUSES:
            statuses[kind.code].add(int(status))
    return [
        ErrorEntry(code, tuple(sorted(statuses[code])), cause.is_of_jobs, cause.cause, cause.remedy)
        for code, cause in sorted(CAUSES.items())
    ]


def html() -> str:
    """Return the page that the service serves."""
    return PAGE.format(
        entries="\n".join(
            f'<h2 id="{entry.code}">{entry.code}</h2>\n<p>{_html(entry.where)}</p>\n'
            f"<p>{_html(entry.cause)}</p>\n<p><b>Remedy:</b> {_html(entry.remedy)}</p>"
            for entry in entries()
        )
    )


def _html(text: str) -> str:
    return CODE.sub(r"<code>\1</code>", escape(text))


def install_error_page(app: FastAPI) -> None:
    """Add `/docs/errors`."""

    @app.get(ERRORS_PATH, include_in_schema=False)
    async def errors_page() -> HTMLResponse:
        return HTMLResponse(html())
