"""Error responses: problem documents (RFC 9457) with the fields that were rejected."""

import reprlib
from collections.abc import Mapping
from datetime import datetime
from http import HTTPStatus
from typing import Annotated, Any, Self

from pydantic import BaseModel, Field

from img2img.domain.job import JobFailure, JobStatus

# Parts of a request, the first element of `loc` in pydantic's errors.
REQUEST_PARTS = frozenset({"body", "path", "query", "header"})
MAX_SHOWN = 80
# The page of the service on which the codes of errors are explained.
ERRORS_PATH = "/docs/errors"


# Python 3.13 has renamed these. The texts of the API are the same with every version.
PHRASES = {
    413: "Request Entity Too Large",
    414: "Request-URI Too Long",
    416: "Requested Range Not Satisfiable",
    422: "Unprocessable Entity",
}


def status_phrase(status: int) -> str:
    """Return the short text of an HTTP status, such as `Not Found`."""
    return PHRASES.get(status) or HTTPStatus(status).phrase


class FieldProblem(BaseModel):
    """A field that was rejected, why, and the value that was received."""

    field: Annotated[str, Field(description="Path of the field, e.g. `controls.0.scale`.", examples=["strength"])]
    message: Annotated[str, Field(examples=["Input should be less than or equal to 1"])]
    got: Annotated[str | None, Field(description="The value received, shortened.", examples=["2"])] = None

    @classmethod
    def from_pydantic(cls, error: Mapping[str, Any]) -> Self:
        """Convert an entry of a pydantic error list."""
        location = error["loc"][1:] if error["loc"] and error["loc"][0] in REQUEST_PARTS else error["loc"]
        field = encodable(".".join(map(str, location))[:MAX_SHOWN]) or "body"
        if error["type"] == "missing":
            return cls(field=field, message="Field required")
        if error["type"] == "extra_forbidden" and error["msg"].startswith("Extra inputs"):
            return cls(field=field, message="Unknown field", got=truncate(error["input"]))
        if error["type"] == "json_invalid" or not location:
            # The input is the whole body, whose values can be images.
            return cls(field=field, message=error["msg"].removeprefix("Value error, "))
        return cls(field=field, message=error["msg"].removeprefix("Value error, "), got=truncate(error["input"]))


class Problem(BaseModel):
    """An error (RFC 9457). Branch on `code`, which is stable; `detail` is for people."""

    type: Annotated[
        str,
        Field(
            description="Relative URI of the explanation of `code`, on this service.",
            examples=[f"{ERRORS_PATH}#invalid_parameter"],
        ),
    ]
    title: str
    status: int
    detail: str
    code: str
    errors: Annotated[list[FieldProblem] | None, Field(description="The fields that were rejected.")] = None
    eta_s: Annotated[
        float | None, Field(description="Estimated seconds until the job would end, if it would miss its deadline.")
    ] = None
    categories: Annotated[list[str] | None, Field(description="Categories that moderation names.")] = None
    job_status: Annotated[JobStatus | None, Field(description="Status of the job, if it caused the error.")] = None
    error: Annotated[JobFailure | None, Field(description="Why the job failed.")] = None
    used: Annotated[int | None, Field(description="Bytes stored, if a quota is used up.")] = None
    limit: Annotated[int | None, Field(description="Bytes that may be stored, if a quota is used up.")] = None
    frees_at: Annotated[
        datetime | None, Field(description="Time at which a stored image expires, if a quota is used up.")
    ] = None


def truncate(value: object) -> str | None:
    """Return `value` as short text that can be encoded as JSON, for an error message."""
    if value is None:
        return None
    if isinstance(value, str):
        return encodable(value[:MAX_SHOWN] + "…" * (len(value) > MAX_SHOWN))
    # reprlib would first represent all of a file.
    return encodable(reprlib.repr(value[:MAX_SHOWN] if isinstance(value, bytes) else value))


def encodable(text: str) -> str:
    """Return the text with question marks in place of lone surrogates, which UTF-8 cannot encode."""
    return text.encode("utf-8", "replace").decode()
