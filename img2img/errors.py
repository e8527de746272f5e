"""The error tree. An error's docstring is its default message; it knows no HTTP.

Img2ImgError
├── RequestError            the caller's: refused at the door
│   ├── UnsupportedMedia
│   ├── PictureError
│   ├── ParameterError
│   │   └── KeyReused
│   ├── TooLarge
│   ├── TooSlow             the body did not come in time
│   ├── TooCostly           more than the client may ever have
│   ├── NoKey               no API key
│   │   └── UnknownKey
│   └── ScopeMissing        the key may not do this
├── TooMuch                 the client's: more than it may have now
│   ├── RateLimited
│   └── TooManyQueued
├── NotFound
├── NotReady                a result asked for before the job has ended
├── Gone                    a result that will never come
│   ├── Expired
│   └── Deleted
├── Unavailable             the service's: try again later
│   └── QueueFull
└── JobError                the job's: ends as a failed record, the worker lives on
    ├── Cancelled
    └── BadPixels
"""

from typing import Any


class Img2ImgError(Exception):
    """Something went wrong."""

    code = "error"

    def __init__(self, message: str | None = None, **details: Any) -> None:
        super().__init__(message or (type(self).__doc__ or "").split("\n\n")[0].strip())
        self.details = details

    @property
    def message(self) -> str:
        return str(self.args[0])


class RequestError(Img2ImgError):
    """The request cannot be honoured."""

    code = "bad_request"


class UnsupportedMedia(RequestError):
    """Only PNG, JPEG and WebP pictures are taken."""

    code = "unsupported_media_type"
    field = "image"  # of the request


class ImageError(RequestError):
    """The picture cannot be read."""

    code = "bad_picture"
    field = "image"  # of the request


class ParameterError(RequestError):
    """A parameter has a value that cannot be honoured."""

    code = "bad_parameter"

    def __init__(self, field: str, message: str, got: Any = None) -> None:
        super().__init__(message)
        self.field = field
        self.got = got


class IdempotencyKeyReused(ParameterError):
    """An idempotency key came with another request before."""

    code = "idempotency_key_reused"


class PayloadTooLarge(RequestError):
    """The request body is larger than this service takes."""

    code = "too_large"


class RequestTimeout(RequestError):
    """The request body did not arrive in time."""

    code = "too_slow"


class TooCostly(RequestError):
    """The job costs more than a client may ever have at once."""

    code = "too_costly"


class MissingApiKey(RequestError):
    """An API key is needed: send it as `Authorization: Bearer ...` or `X-API-Key`."""

    code = "no_key"


class InvalidApiKey(MissingApiKey):
    """This API key is not known here, or no longer."""

    code = "unknown_key"


class InsufficientScope(RequestError):
    """The API key may not do this."""

    code = "scope_missing"

    def __init__(self, scope: str) -> None:
        super().__init__(f"This needs an API key with the scope `{scope}`.")
        self.scope = scope


class TooManyRequests(Img2ImgError):
    """This is more than the client may have now."""

    code = "too_much"


class RateLimited(TooManyRequests):
    """The client has had the work that it may have for now."""

    code = "rate_limited"

    def __init__(self, message: str, retry_after_s: int, headers: dict[str, str]) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.headers = headers


class TooManyQueued(TooManyRequests):
    """As many jobs of this key are waiting as may."""

    code = "too_many_queued"


class NotFound(Img2ImgError):
    """There is no such thing here."""

    code = "not_found"


class NotReady(Img2ImgError):
    """The job has not ended yet; ask again later."""

    code = "not_ready"


class Gone(Img2ImgError):
    """The job ended without this result."""

    code = "gone"


class Expired(Gone):
    """The job has expired; what it made is no longer kept."""

    code = "expired"


class Deleted(Gone):
    """The job was deleted."""

    code = "deleted"


class Unavailable(Img2ImgError):
    """The service cannot take this right now; try again in a moment."""

    code = "unavailable"


class QueueFull(Unavailable):
    """As many jobs are waiting as may; try again when some are done."""

    code = "queue_full"


class JobError(Img2ImgError):
    """The job failed."""

    code = "job_failed"


class Cancelled(JobError):
    """The job was cancelled."""

    code = "cancelled"


class InvalidPixels(JobError):
    """The model produced values that are not numbers; another seed, scheduler or precision may help."""

    code = "bad_pixels"
