"""Errors that only an HTTP request can cause. See `img2img.errors` for the rest of the tree.

RequestError                    (img2img.errors)
├── PayloadTooLarge
├── RequestTimeout
├── HeadersTooLarge
├── FlaggedRequest
├── JobTooExpensive
├── DeadlineUnmet
├── InsufficientScope
├── ForbiddenHost
└── ForbiddenOrigin
TooManyRequests                 (img2img.errors)
└── RateLimited
Img2ImgError                    (img2img.errors)
└── NotReady
Unavailable                     (img2img.errors)
└── Overloaded
"""

from collections.abc import Sequence
from typing import Literal

from img2img.errors import Img2ImgError, RequestError, TooManyRequests, Unavailable

# Beginnings of messages, by the flagged part.
FLAGGED = {
    "prompt": "The prompt was",
    "input": "An image of the request was",
    "result": "The result is not delivered: it was",
}


class PayloadTooLarge(RequestError):
    """The request body is larger than this service accepts."""

    code = "payload_too_large"


class RequestTimeout(RequestError):
    """The request body did not arrive in time."""

    code = "request_timeout"


class HeadersTooLarge(RequestError):
    """The request has too many headers, or too long ones."""

    code = "headers_too_large"


class JobTooExpensive(RequestError):
    """The job costs more than the rate limit allows for a whole period."""

    code = "job_too_expensive"


class DeadlineUnmet(RequestError):
    """The job would not end by its deadline.

    Args:
        deadline_s: Seconds to the deadline.
        eta_s: Estimated seconds to the end of the job.
    """

    code = "deadline_unmet"

    def __init__(self, deadline_s: float, eta_s: float) -> None:
        message = (
            f"The job would end in about {eta_s:g} s, after its deadline of {deadline_s:g} s. Request less work or a "
            "later deadline, or try again when the queue is shorter."
        )
        super().__init__(message, eta_s=eta_s)


class FlaggedRequest(RequestError):
    """Moderation has flagged the request or its result.

    Args:
        subject: The flagged part.
        categories: Categories that the moderation endpoint names.
    """

    code = "flagged"

    def __init__(self, subject: Literal["prompt", "input", "result"], categories: Sequence[str] = ()) -> None:
        names = f" ({', '.join(categories)})" if categories else ""
        super().__init__(f"{FLAGGED[subject]} flagged{names}.", categories=list(categories))


class InsufficientScope(RequestError):
    """The API key lacks the scope that the request needs."""

    code = "insufficient_scope"

    def __init__(self, scope: str, message: str | None = None) -> None:
        super().__init__(message or f"This needs an API key with the scope `{scope}`.")
        self.scope = scope


class ForbiddenHost(RequestError):
    """The service is addressed by a host name that it does not accept."""

    code = "forbidden_host"


class ForbiddenOrigin(RequestError):
    """A web page of another origin has made the request."""

    code = "forbidden_origin"


class RateLimited(TooManyRequests):
    """The client has reached its rate limit."""

    code = "rate_limited"

    def __init__(self, message: str, retry_after_s: int, headers: dict[str, str]) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.headers = headers


class Overloaded(Unavailable):
    """The server has too many requests in progress; try again in a few seconds."""

    code = "overloaded"


class NotReady(Img2ImgError):
    """The job has not ended yet; ask again later."""

    code = "not_ready"
