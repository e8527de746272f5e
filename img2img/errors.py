"""Exceptions shared by the API server and the workers. An exception's docstring is its default message.

Img2ImgError
├── RequestError                the request is wrong; `app/http/errors.py` has those that only HTTP knows
│   ├── ParameterError
│   │   └── IdempotencyKeyReused
│   ├── UnsupportedMedia
│   ├── ImageError
│   ├── NoPresignedUploads
│   └── MissingApiKey
│       └── InvalidApiKey
│           └── ExpiredApiKey
├── TooManyRequests             the client has reached a limit
│   └── TooManyQueued
├── NotFound
├── Gone                        the job ended without the result, for good
│   ├── Expired
│   ├── Deleted
│   └── Withheld
├── ResultDamaged               the stored image is not the one that the job made
├── Unavailable                 the service cannot do it now; try again later
│   ├── QueueFull
│   ├── UnreadableJob
│   └── NotConfirmed            it may have been done, but is not yet durable
├── StorageFull                 there is no room for an image; older images expire
│   └── QuotaExceeded
└── JobError                    ends one job as failed; the worker continues
    ├── Cancelled
    ├── Flagged
    ├── InputDamaged
    ├── InputInvalid
    ├── InputMissing
    └── InvalidPixels
"""

from typing import Any


class Img2ImgError(Exception):
    """Something went wrong.

    Attributes:
        code: Stable identifier of the kind of error, which clients see.
        details: Further members of the error document.
    """

    code = "error"

    def __init__(self, message: str | None = None, **details: Any) -> None:
        super().__init__(message or (type(self).__doc__ or "").split("\n\n")[0].strip())
        self.details = details

    @property
    def message(self) -> str:
        return str(self.args[0])


class RequestError(Img2ImgError):
    """The request is invalid."""

    code = "bad_request"


class ParameterError(RequestError):
    """A parameter has an invalid value."""

    code = "invalid_parameter"

    def __init__(self, field: str, message: str, got: Any = None) -> None:
        super().__init__(message)
        self.field = field
        self.got = got


class IdempotencyKeyReused(ParameterError):
    """The idempotency key belongs to another request."""

    code = "idempotency_key_reused"


class UnsupportedMedia(RequestError):
    """The image is not a PNG, JPEG or WebP file."""

    code = "unsupported_media_type"
    field = "image"


class ImageError(RequestError):
    """The image cannot be read."""

    code = "invalid_image"
    field = "image"


class NoPresignedUploads(RequestError):
    """This service takes no presigned uploads; send the image with the request, or to `POST /images`."""

    code = "no_presigned_uploads"


class MissingApiKey(RequestError):
    """An API key is needed: send it as `Authorization: Bearer ...` or `X-API-Key`."""

    code = "missing_api_key"


class InvalidApiKey(MissingApiKey):
    """The API key is unknown or revoked."""

    code = "invalid_api_key"


class ExpiredApiKey(InvalidApiKey):
    """The API key has expired; the operator of the service can create another one."""

    code = "expired_api_key"


class TooManyRequests(Img2ImgError):
    """The client has reached a limit; try again later."""

    code = "too_many_requests"


class TooManyQueued(TooManyRequests):
    """The API key has as many waiting jobs as it may have."""

    code = "too_many_queued"


class NotFound(Img2ImgError):
    """There is no such resource."""

    code = "not_found"


class Gone(Img2ImgError):
    """The job ended without this result."""

    code = "gone"


class Expired(Gone):
    """The job has expired and its results are deleted."""

    code = "expired"


class Deleted(Gone):
    """The job was deleted."""

    code = "deleted"


class Withheld(Gone):
    """The image was flagged and is not delivered."""

    code = "flagged"


class ResultDamaged(Img2ImgError):
    """The image is damaged or missing in the blob store; submit the job again."""

    code = "result_damaged"


class Unavailable(Img2ImgError):
    """The service is temporarily unavailable; try again in a moment."""

    code = "unavailable"


class QueueFull(Unavailable):
    """The queue is full; try again when some of the waiting jobs are done."""

    code = "queue_full"


class UnreadableJob(Unavailable):
    """A later version of the service has written this job, and this server cannot read it; try again in a moment."""

    code = "unreadable_job"


class NotConfirmed(Unavailable):
    """Redis did not confirm in time that the change is durable; repeat the request."""

    code = "not_confirmed"


class StorageFull(Img2ImgError):
    """There is no room for more images.

    Attributes:
        retry_after_s: Seconds after which there may be room; None if unknown.
    """

    code = "storage_full"

    def __init__(self, message: str | None = None, *, retry_after_s: int | None = None, **details: Any) -> None:
        super().__init__(message, **details)
        self.retry_after_s = retry_after_s


class QuotaExceeded(StorageFull):
    """The API key has stored as many bytes of images as it may."""

    code = "storage_quota_exceeded"


class JobError(Img2ImgError):
    """The job failed."""

    code = "job_failed"


class Cancelled(JobError):
    """The job was cancelled."""

    code = "cancelled"


class Flagged(JobError):
    """Every image of the job was flagged, so none is delivered; another prompt, image or seed may help."""

    code = "flagged"


class InputDamaged(JobError):
    """An input image is damaged or missing in the blob store; submit the job again with the image."""

    code = "input_damaged"


class InputInvalid(JobError):
    """An input image that was sent to the bucket cannot be used.

    Args:
        code: That of the error which the API server would respond with.
    """

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


class InputMissing(JobError):
    """The image was not sent to the URL of its upload; create another upload, send the image, and submit again."""

    code = "input_missing"


class InvalidPixels(JobError):
    """The model produced values that are not numbers; another seed, scheduler or precision may help."""

    code = "invalid_pixels"
