"""Formats of error responses, by path: problem documents, and those that the clients of compatible APIs know."""

from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any

from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from ..schemas.problems import Problem

PROBLEM_JSON = "application/problem+json"
# Clients of OpenAI handle an invalid request by this status only.
OPENAI_BAD_REQUESTS = frozenset({HTTPStatus.UNPROCESSABLE_ENTITY, HTTPStatus.UNSUPPORTED_MEDIA_TYPE})
OPENAI_TYPES = {
    HTTPStatus.TOO_MANY_REQUESTS: "rate_limit_error",
    # The job has failed or was cancelled. Not a status that clients retry.
    HTTPStatus.GONE: "server_error",
}


def openai_error(problem: Problem) -> tuple[int, dict[str, Any]]:
    """Return the status and the body of an error in OpenAI's format."""
    if problem.code == "flagged" and problem.status == HTTPStatus.UNPROCESSABLE_ENTITY:
        kind, code = "image_generation_user_error", "moderation_blocked"
        return HTTPStatus.BAD_REQUEST, _openai_body(problem.detail, kind, None, code)
    status = HTTPStatus.BAD_REQUEST if problem.status in OPENAI_BAD_REQUESTS else problem.status
    default = "server_error" if status >= HTTPStatus.INTERNAL_SERVER_ERROR else "invalid_request_error"
    field = problem.errors[0].field if problem.errors else None
    return status, _openai_body(problem.detail, OPENAI_TYPES.get(HTTPStatus(status), default), field, problem.code)


def _openai_body(message: str, kind: str, param: str | None, code: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def hugging_face_error(problem: Problem) -> tuple[int, dict[str, Any]]:
    """Return the status and the body of an error in Hugging Face's format."""
    return problem.status, {"error": problem.detail}


# By the first part of the path. Clients of the other APIs show problem documents.
FORMATS: dict[str, Callable[[Problem], tuple[int, dict[str, Any]]]] = {
    "v1": openai_error,
    "hf": hugging_face_error,
}


class ProblemResponse(Response):
    """A problem document; to the clients of a compatible API, the same error in the format of that API."""

    def __init__(self, problem: Problem, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(problem.model_dump_json(exclude_none=True), problem.status, headers, PROBLEM_JSON)
        self._problem = problem
        self._own_headers = headers

    def for_path(self, path: str) -> Response:
        """Return the response to a request of this path."""
        convert = FORMATS.get(path.lstrip("/").partition("/")[0])
        if convert is None:
            return self
        status, content = convert(self._problem)
        return JSONResponse(content, status, self._own_headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = self.for_path(scope["path"])
        if response is self:
            await super().__call__(scope, receive, send)
        else:
            await response(scope, receive, send)
