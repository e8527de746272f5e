"""Maps errors to HTTP responses: problem documents (RFC 9457), or the formats of compatible APIs."""

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

from img2img.blobs import is_disk_full
from img2img.errors import (
    Gone,
    ImageError,
    Img2ImgError,
    InvalidApiKey,
    MissingApiKey,
    NotFound,
    ParameterError,
    RequestError,
    ResultDamaged,
    StorageFull,
    TooManyRequests,
    Unavailable,
    UnsupportedMedia,
)
from img2img.redis import outage
from img2img.telemetry.logging import job_extra

from ..schemas.problems import ERRORS_PATH, MAX_SHOWN, FieldProblem, Problem, encodable, status_phrase, truncate
from .error_formats import ProblemResponse
from .errors import (
    DeadlineUnmet,
    FlaggedRequest,
    ForbiddenHost,
    ForbiddenOrigin,
    HeadersTooLarge,
    InsufficientScope,
    JobTooExpensive,
    NotReady,
    PayloadTooLarge,
    RateLimited,
    RequestTimeout,
)
from .request_id import HEADER as REQUEST_ID_HEADER

STATUS: dict[type[Img2ImgError], HTTPStatus] = {
    RequestError: HTTPStatus.BAD_REQUEST,
    MissingApiKey: HTTPStatus.UNAUTHORIZED,
    InsufficientScope: HTTPStatus.FORBIDDEN,
    ForbiddenHost: HTTPStatus.FORBIDDEN,
    ForbiddenOrigin: HTTPStatus.FORBIDDEN,
    RequestTimeout: HTTPStatus.REQUEST_TIMEOUT,
    JobTooExpensive: HTTPStatus.UNPROCESSABLE_ENTITY,
    DeadlineUnmet: HTTPStatus.UNPROCESSABLE_ENTITY,
    FlaggedRequest: HTTPStatus.UNPROCESSABLE_ENTITY,
    TooManyRequests: HTTPStatus.TOO_MANY_REQUESTS,
    NotFound: HTTPStatus.NOT_FOUND,
    NotReady: HTTPStatus.CONFLICT,
    Gone: HTTPStatus.GONE,
    HeadersTooLarge: HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
    PayloadTooLarge: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    UnsupportedMedia: HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    ImageError: HTTPStatus.UNPROCESSABLE_ENTITY,
    ParameterError: HTTPStatus.UNPROCESSABLE_ENTITY,
    ResultDamaged: HTTPStatus.INTERNAL_SERVER_ERROR,
    Unavailable: HTTPStatus.SERVICE_UNAVAILABLE,
    StorageFull: HTTPStatus.INSUFFICIENT_STORAGE,
}
RETRY_AFTER_S = 5
# Images expire after hours.
STORAGE_RETRY_AFTER_S = 60
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
# Most fields that one response lists.
MAX_ERRORS = 20

log = logging.getLogger(__name__)


def status_of(error: type[Img2ImgError]) -> HTTPStatus | None:
    """Return the HTTP status of a kind of error, by its nearest base class in `STATUS`; None if no response has it."""
    return next((STATUS[kind] for kind in error.__mro__ if kind in STATUS), None)


def problem_response(error: Img2ImgError, headers: Mapping[str, str] | None = None) -> ProblemResponse:
    """Return the response for `error`: problem+json, or the format of the compatible API that was called."""
    status = status_of(type(error))
    assert status is not None
    extra: dict[str, Any] = dict(error.details)
    detail = error.message
    if isinstance(error, ParameterError):
        field, message = encodable(error.field[:MAX_SHOWN]), encodable(error.message)
        detail = f"{field}: {message}"
        extra["errors"] = [FieldProblem(field=field, message=message, got=truncate(error.got))]
    if isinstance(error, ImageError | UnsupportedMedia):
        message = error.message.removeprefix(f"{error.field}: ")
        extra["errors"] = [FieldProblem(field=error.field, message=message)]
    return _problem(status, error.code, detail, _headers(error) | dict(headers or {}), **extra)


def _headers(error: Img2ImgError) -> dict[str, str]:
    """Return `Retry-After` (RFC 9110), rate limit and `WWW-Authenticate` (RFC 6750) headers for `error`."""
    match error:
        case ResultDamaged():
            return {"Cache-Control": "no-store"}
        case StorageFull():
            return {"Retry-After": str(error.retry_after_s or STORAGE_RETRY_AFTER_S)}
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


def _problem(
    status: int, code: str, detail: str, headers: Mapping[str, str] | None = None, **extra: Any
) -> ProblemResponse:
    problem = Problem(
        type=f"{ERRORS_PATH}#{code}", title=status_phrase(status), status=status, detail=detail, code=code, **extra
    )
    return ProblemResponse(problem, headers)


async def _handle_img2img_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, Img2ImgError)
    return problem_response(error)


async def _handle_validation_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    problems = [FieldProblem.from_pydantic(e) for e in error.errors()[:MAX_ERRORS]]
    fields_by_message: dict[str, list[str]] = {}
    for problem in problems:
        fields_by_message.setdefault(problem.message, []).append(problem.field)
    detail = "; ".join(f"{', '.join(fields)}: {message}" for message, fields in fields_by_message.items())
    return _problem(HTTPStatus.UNPROCESSABLE_ENTITY, ParameterError.code, detail, errors=problems)


async def _handle_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = status_phrase(error.status_code).lower().replace(" ", "_")
    headers = error.headers
    if error.status_code in (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED):
        return Response(status_code=error.status_code, headers=headers)
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        # Starlette lists only the methods of the first route with this path.
        headers = {"Allow": ", ".join(_allowed_methods(request))}
    return _problem(error.status_code, code, error.detail, headers)


def _allowed_methods(request: Request) -> list[str]:
    def is_allowed(method: str) -> bool:
        scope = {**request.scope, "method": method}
        return any(route.matches(scope)[0] is Match.FULL for route in request.app.routes)

    return [method for method in METHODS if is_allowed(method)]


async def _handle_outage(request: Request, error: Exception) -> Response:
    job_id = request.path_params.get("job_id")
    log.error("Redis or the blob store failed: %r", error, extra=job_extra(job_id) if job_id else None)
    return problem_response(_outage(error))


def _outage(error: Exception) -> Img2ImgError:
    """Return the error for a failure of Redis or the blob store."""
    if outage.is_disk_full(error):
        return StorageFull("The disk of the queue is full: it accepts no jobs until expired images are deleted.")
    if reason := outage.reason_of(error):
        return Unavailable(f"The queue accepts no changes: {reason}. Try again later.")
    if is_disk_full(error):
        return StorageFull("The disk of the blob store is full; try again when images have expired.")
    part = "queue" if isinstance(error, RedisError) else "blob store"
    return Unavailable(f"The {part} is not available; try again in a few seconds.")


async def _handle_os_error(request: Request, error: Exception) -> Response:
    # Pillow raises an OSError without a number for an image that it cannot read.
    if isinstance(error, OSError) and error.errno is None:
        log.error("unexpected error", exc_info=error)
        return await _handle_unexpected_error(request, error)
    return await _handle_outage(request, error)


async def _handle_disconnect(_request: Request, _error: Exception) -> Response:
    # The client has gone, so this is only for the access log.
    return Response(status_code=HTTPStatus.BAD_REQUEST)


async def _handle_unexpected_error(request: Request, _error: Exception) -> Response:
    detail = "The server encountered an unexpected error."
    # uvicorn closes the connection after an unexpected error, and the client should not use it again. This response is
    # made outside of all middleware.
    headers = {"Connection": "close", REQUEST_ID_HEADER: request.state.request_id}
    return _problem(HTTPStatus.INTERNAL_SERVER_ERROR, "internal_error", detail, headers)


def install_error_handlers(app: FastAPI) -> None:
    """Register the handlers that turn exceptions into responses."""
    app.add_exception_handler(Img2ImgError, _handle_img2img_error)
    app.add_exception_handler(RequestValidationError, _handle_validation_error)
    app.add_exception_handler(HTTPException, _handle_http_exception)
    app.add_exception_handler(RedisError, _handle_outage)
    app.add_exception_handler(StoreError, _handle_outage)
    app.add_exception_handler(OSError, _handle_os_error)
    app.add_exception_handler(ClientDisconnect, _handle_disconnect)
    app.add_exception_handler(Exception, _handle_unexpected_error)
