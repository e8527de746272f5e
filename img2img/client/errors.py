"""Errors that the client raises.

ClientError
├── ServiceUnreachable      no connection, or it broke
├── InvalidResponse         the response cannot be parsed
├── InvalidArgument         an argument cannot be used; nothing was sent
├── WaitTimeout             the job did not end in time
├── JobFailed               the job failed or was cancelled
└── ApiError                the service responded with an error
    ├── InvalidRequest      400, 413, 415, 422: change the request
    ├── AuthenticationError 401
    ├── PermissionDenied    403
    ├── JobNotFound         404
    ├── ResultNotReady      409
    ├── JobGone             410: expired or deleted
    ├── TooManyRequests     429
    ├── ServiceUnavailable  503, and 507: no room for the image
    └── ServerError         any other 5xx
"""

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import httpx

Json = dict[str, Any]

LOOPBACK = ("localhost", "127.0.0.1", "::1")


class ClientError(Exception):
    """Base of all errors of the client."""


class ServiceUnreachable(ClientError):
    """The service cannot be reached, or the connection broke."""


class InvalidResponse(ClientError):
    """The response cannot be parsed, for example because a proxy responded instead of the service."""


class InvalidArgument(ClientError, ValueError):
    """An argument of a method cannot be used; nothing was sent."""


class WaitTimeout(ClientError, TimeoutError):
    """The job did not end within the timeout; it goes on in the service."""


class JobFailed(ClientError):
    """The job failed or was cancelled. `code` is the stable code of the failure, or `cancelled`."""

    def __init__(self, message: str, *, job_id: str, code: str) -> None:
        super().__init__(message)
        self.job_id = job_id
        self.code = code


@dataclass(frozen=True)
class FieldError:
    """A field of the request that was rejected."""

    field: str
    message: str
    got: str | None = None

    def __str__(self) -> str:
        return f"{self.field}: {self.message}" + (f" (got {self.got})" if self.got is not None else "")


class ApiError(ClientError):
    """The service responded with an error (RFC 9457 problem details).

    Attributes:
        status: HTTP status, 0 for an error reported within an event stream.
        code: Stable code of the error, empty if the response has none.
        errors: The fields that were rejected.
        retry_after_s: Seconds after which to try again, None if unknown.
        problem: The whole problem document.
    """

    def __init__(
        self, message: str, *, status: int = 0, problem: Json | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.problem = problem or {"detail": message}
        self.code: str = self.problem.get("code", "")
        self.errors = field_errors(self.problem)
        self.retry_after_s = retry_after_s


class InvalidRequest(ApiError):
    """The request is invalid; `errors` names the fields."""

    def of_field(self, field: str, got: str | None) -> "InvalidRequest":
        """Return the error of one field of a larger request, which has the value `got`."""
        reason = self.errors[0].message if self.errors else str(self)
        rejected = {"field": field, "message": reason} | ({"got": got} if got else {})
        problem = {**self.problem, "errors": [rejected]}
        return InvalidRequest(_message(problem), status=self.status, problem=problem)


class AuthenticationError(ApiError):
    """The API key is missing or unknown, or was revoked, or has expired."""


class PermissionDenied(ApiError):
    """The API key lacks the scope for this request."""


class JobNotFound(ApiError):
    """The job, the uploaded image or the model does not exist, or belongs to another API key."""


class ResultNotReady(ApiError):
    """The job has not ended yet."""


class JobGone(ApiError):
    """The job or its result has expired, was deleted, or never came to be."""


class TooManyRequests(ApiError):
    """A rate limit or a queue limit of the API key is reached."""


class ServiceUnavailable(ApiError):
    """The service cannot take the request now; try again later."""


class ServerError(ApiError):
    """The service failed to handle the request."""


BY_STATUS: dict[int, type[ApiError]] = {
    400: InvalidRequest,
    401: AuthenticationError,
    403: PermissionDenied,
    404: JobNotFound,
    409: ResultNotReady,
    410: JobGone,
    413: InvalidRequest,
    415: InvalidRequest,
    422: InvalidRequest,
    429: TooManyRequests,
    503: ServiceUnavailable,
    507: ServiceUnavailable,
}


def error_of(response: httpx.Response, url: str) -> ApiError:
    """Return the error for a response that is no success."""
    status = response.status_code
    problem: Json | None = None
    message = f"{url} responded with status {status}"
    if response.headers.get("content-type", "").partition(";")[0] == "application/problem+json":
        # A proxy or a foreign server may respond with another document.
        with suppress(ValueError, LookupError, TypeError, AttributeError):
            document = response.json()
            message = _message(document)
            field_errors(document)
            problem = document
    retry_after = response.headers.get("retry-after", "")
    return BY_STATUS.get(status, ServerError if status >= 500 else ApiError)(
        message,
        status=status,
        problem=problem,
        retry_after_s=float(retry_after) if retry_after.isdecimal() else None,
    )


def unreachable(url: str, error: httpx.TransportError) -> ServiceUnreachable:
    """Return the error for a request that got no response."""
    is_local = isinstance(error, httpx.ConnectError) and httpx.URL(url).host in LOOPBACK
    return ServiceUnreachable(f"{url} cannot be reached: {error}{'; is `img2img serve` running?' if is_local else ''}")


def error_of_problem(problem: Json) -> ApiError:
    """Return the error for a problem document within an event stream."""
    status = problem.get("status", 0)
    return BY_STATUS.get(status, ApiError)(_message(problem), status=status, problem=problem)


def field_errors(problem: Json) -> tuple[FieldError, ...]:
    """Return the rejected fields of a problem document."""
    return tuple(
        FieldError(error["field"], error["message"], error.get("got")) for error in problem.get("errors") or ()
    )


def _message(problem: Json) -> str:
    errors = [str(error) for error in field_errors(problem)]
    if len(errors) > 1:
        return "\n  ".join([f"{len(errors)} fields were rejected", *errors])
    return "".join(errors) or str(problem.get("detail") or problem)
