"""Pictures by reference: one that was sent before, or a job's result. Nothing is ever fetched from elsewhere."""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from img2img.domain.job import JobStatus
from img2img.domain.spec import input_key, result_key, upload_key
from img2img.errors import Gone, NotFound, ParameterError

if TYPE_CHECKING:  # the command line reads references, and need not wait for Redis's client to be imported
    from img2img.blobs import BlobStore
    from img2img.redis.job_queue import JobQueue

SHA256 = re.compile(r"[0-9a-f]{64}")
RESULT_PATH = re.compile(r"/jobs/([0-9a-f]{32})/(?:images/([0-9])|result)")


@dataclass(frozen=True)
class UploadReference:
    """A picture that was sent before, by the sha256 of its bytes."""

    sha256: str


@dataclass(frozen=True)
class ResultReference:
    """A picture that a job made."""

    job_id: str
    index: int


ImageReference = UploadReference | ResultReference


def parse_reference(text: str) -> ImageReference | None:
    """What the text refers to; None where it is no reference."""
    if SHA256.fullmatch(text):
        return UploadReference(text)
    result = RESULT_PATH.fullmatch(text)
    return ResultReference(result[1], int(result[2] or 0)) if result else None


def fetch_reference(
    field: str, reference: ImageReference, queue: "JobQueue", store: "BlobStore", keep_s: float
) -> bytes:
    """The bytes of the picture; one that was sent is kept for another keep_s seconds. Raises ParameterError.

    A picture that the caller has not sent is refused as one that is not kept.
    """
    if isinstance(reference, ResultReference):
        return _result(field, reference, queue, store)
    keys = (upload_key(reference.sha256), input_key(reference.sha256))
    for key in queue.input_images.renew(keys, keep_s):
        picture = store.get(key)
        if picture is not None:
            return picture
    message = "No picture with this sha256 is kept here for you; send it with the request, or to POST /images first"
    raise ParameterError(field, message, got=reference.sha256)


def _result(field: str, reference: ResultReference, queue: "JobQueue", store: "BlobStore") -> bytes:
    path = f"/jobs/{reference.job_id}/images/{reference.index}"
    try:
        record = queue.job_store.find(reference.job_id)
    except (NotFound, Gone) as error:
        raise ParameterError(field, error.message, got=path) from None
    if record.status is not JobStatus.SUCCEEDED:
        raise ParameterError(field, f"That job is {record.status}; only a job that succeeded has pictures", got=path)
    picture = store.get(result_key(record.id, reference.index)) if reference.index < len(record.images) else None
    if picture is None:
        raise ParameterError(field, f"That job has {len(record.images)} picture(s), counted from 0", got=path)
    return picture
