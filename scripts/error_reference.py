"""Writes docs/errors.md from the codes of the service: `make errors`."""

from pathlib import Path
from textwrap import fill

from img2img.app import main as api  # imports all modules that define errors
from img2img.app.openapi.error_reference import entries

assert api
PAGE = Path(__file__).parents[1] / "docs" / "errors.md"
HEAD = """# Errors

Errors of the [HTTP API](api.md#errors) are `application/problem+json` (RFC 9457). Branch on `code`, which is stable;
`detail` is for people. A job that failed, or was cancelled by the service, has such a code as `error.code`. A running
service has this page at `/docs/errors`.
"""


def text() -> str:
    """Return the text of the page."""
    parts = [HEAD]
    for entry in entries():
        paragraphs = (f"## {entry.code}", entry.where, entry.cause, f"**Remedy:** {entry.remedy}")
        wrapped = [fill(one, 120, break_long_words=False, break_on_hyphens=False) for one in paragraphs]
        parts.append("\n\n".join(wrapped) + "\n")
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(text(), "utf-8")
