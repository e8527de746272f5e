"""The one table from errors to HTTP: every refusal is an `application/problem+json` document (RFC 9457)."""

import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from obstore.exceptions import BaseError as StoreError
from redis.exceptions import RedisError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import Match

from img2img.errors import Gone, Img2ImgError, NotFound, ParameterError, RequestError, TooManyRequests, Unavailable
from img2img.telemetry.logging import job_extra

from ..schemas.responses import FieldProblem, Problem, truncate
from .errors import (
    ImageError,
    InsufficientScope,
    InvalidApiKey,
    JobTooExpensive,
    MissingApiKey,
    NotReady,
    PayloadTooLarge,
    RateLimited,
    RequestTimeout,
    UnsupportedMedia,
)

STATUS: dict[type[Img2ImgError], HTTPStatus] = {
    RequestError: HTTPStatus.BAD_REQUEST,
    MissingApiKey: HTTPStatus.UNAUTHORIZED,
    InsufficientScope: HTTPStatus.FORBIDDEN,
    RequestTimeout: HTTPStatus.REQUEST_TIMEOUT,
    JobTooExpensive: HTTPStatus.UNPROCESSABLE_ENTITY,
    TooManyRequests: HTTPStatus.TOO_MANY_REQUESTS,
    NotFound: HTTPStatus.NOT_FOUND,
    NotReady: HTTPStatus.CONFLICT,
    Gone: HTTPStatus.GONE,
    PayloadTooLarge: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    UnsupportedMedia: HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    ImageError: HTTPStatus.UNPROCESSABLE_ENTITY,
    ParameterError: HTTPStatus.UNPROCESSABLE_ENTITY,
    Unavailable: HTTPStatus.SERVICE_UNAVAILABLE,
}
PROBLEM_JSON = "application/problem+json"
RETRY_AFTER_S = 5
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
MAX_ERRORS = 20  # in one answer

log = logging.getLogger(__name__)


def status_of(error: Img2ImgError) -> HTTPStatus:
    """The HTTP status of an error."""
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


def problem_response(error: Img2ImgError, headers: Mapping[str, str] | None = None) -> Response:
    """The answer that says this error."""
    status = status_of(error)
    extra: dict[str, Any] = dict(error.details)
    detail = error.message
    if isinstance(error, ParameterError):
        detail = f"{error.field}: {error.message}"
        extra["errors"] = [FieldProblem(field=error.field[:80], message=error.message, got=truncate(error.got))]
    if isinstance(error, ImageError | UnsupportedMedia):
        extra["errors"] = [FieldProblem(field=error.field, message=error.message)]
    return _problem(status, error.code, detail, headers or _headers(error), **extra)


def _headers(error: Img2ImgError) -> dict[str, str]:
    """What the answer says to the client's machinery."""
    match error:
        case Unavailable():
            return {"Retry-After": str(RETRY_AFTER_S)}
        case RateLimited():
            return {"Retry-After": str(error.retry_after_s), **error.headers}
        case TooManyRequests():
            return {"Retry-After": str(RETRY_AFTER_S)}
        case InvalidApiKey():
            return {"WWW-Authenticate": 'Bearer realm="img2img", error="invalid_token"'}
        case MissingApiKey():
            return {"WWW-Authenticate": 'Bearer realm="img2img"'}
        case InsufficientScope():
            return {"WWW-Authenticate": f'Bearer realm="img2img", error="insufficient_scope", scope="{error.scope}"'}
    return {}


def _problem(status: int, code: str, detail: str, headers: Mapping[str, str] | None = None, **extra: Any) -> Response:
    problem = Problem(title=HTTPStatus(status).phrase, status=status, detail=detail, code=code, **extra)
    body = problem.model_dump_json(exclude_none=True)
    return Response(body, status_code=status, headers=headers, media_type=PROBLEM_JSON)


async def _on_refusal(_request: Request, error: Exception) -> Response:
    assert isinstance(error, Img2ImgError)
    return problem_response(error)


async def _on_invalid(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    problems = [FieldProblem.of(e) for e in error.errors()[:MAX_ERRORS]]
    detail = "; ".join(f"{p.field}: {p.message}" for p in problems)
    return _problem(HTTPStatus.UNPROCESSABLE_ENTITY, ParameterError.code, detail, errors=problems)


async def _on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = HTTPStatus(error.status_code).name.lower()
    headers = error.headers
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        headers = {"Allow": ", ".join(_methods_at(request))}  # Starlette names those of the path's first route only
    return _problem(error.status_code, code, error.detail, headers)


def _methods_at(request: Request) -> list[str]:
    def taken(method: str) -> bool:
        scope = {**request.scope, "method": method}
        return any(route.matches(scope)[0] is Match.FULL for route in request.app.routes)

    return [method for method in METHODS if taken(method)]


async def _on_outage(request: Request, error: Exception) -> Response:
    job_id = request.path_params.get("job_id")
    log.error("Redis or the store failed: %r", error, extra=job_extra(job_id) if job_id else None)
    part = "queue" if isinstance(error, RedisError) else "picture store"
    return problem_response(Unavailable(f"The {part} does not answer; try again in a moment."))


async def _on_disconnect(_request: Request, _error: Exception) -> Response:
    return Response(status_code=HTTPStatus.BAD_REQUEST)  # nobody is there to read it


async def _on_bug(_request: Request, _error: Exception) -> Response:
    return _problem(HTTPStatus.INTERNAL_SERVER_ERROR, "internal_error", "Something went wrong on our side.")


def install_error_handlers(app: FastAPI) -> None:
    """Makes the application answer errors by the table."""
    app.add_exception_handler(Img2ImgError, _on_refusal)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(RedisError, _on_outage)
    app.add_exception_handler(StoreError, _on_outage)
    app.add_exception_handler(OSError, _on_outage)
    app.add_exception_handler(ClientDisconnect, _on_disconnect)
    app.add_exception_handler(Exception, _on_bug)
