"""References to images: to an image uploaded before, or to a result of a job. URLs are never fetched."""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from img2img.domain.blob_keys import input_key, upload_key
from img2img.domain.job import JobStatus
from img2img.domain.presigned_upload import PATH, PresignedUpload
from img2img.errors import Gone, NotFound, ParameterError

# The command line parses references without importing the Redis client, on which `stored_images` depends.
if TYPE_CHECKING:
    from img2img.blobs import BlobStore
    from img2img.redis.job_queue import JobQueue

SHA256 = re.compile(r"[0-9a-f]{64}")
RESULT_PATH = re.compile(r"/jobs/([0-9a-f]{32})/(?:images/([0-9])|result)")


@dataclass(frozen=True)
class UploadReference:
    """An uploaded image, by the sha256 of its bytes."""

    sha256: str


@dataclass(frozen=True)
class ResultReference:
    """A result image of a job."""

    job_id: str
    index: int


ImageReference = UploadReference | ResultReference | PresignedUpload


def parse_reference(text: str) -> ImageReference | None:
    """Return the reference that the text holds, if it is one."""
    if SHA256.fullmatch(digest := text[:65].lower()):
        return UploadReference(digest)
    if text.startswith(PATH):
        return PresignedUpload.parse(text.removeprefix(PATH))
    result = RESULT_PATH.fullmatch(text)
    return ResultReference(result[1], int(result[2] or 0)) if result else None


def fetch_reference(
    field: str, reference: ImageReference, queue: "JobQueue", store: "BlobStore", keep_s: float
) -> bytes:
    """Return the bytes of a referenced image. An uploaded image is kept for another keep_s seconds.

    Args:
        field: The field to name in errors.

    Raises:
        ParameterError: There is no such image, its stored copy is damaged, or the caller has not uploaded it.
        ResultDamaged: The stored image of the job is damaged or missing.
    """
    if isinstance(reference, ResultReference):
        return _fetch_result(field, reference, queue, store)
    if isinstance(reference, PresignedUpload):
        return _fetch_sent(field, reference, queue, store, keep_s)
    from img2img.stored_images import has_digest, report_damage

    keys = (upload_key(reference.sha256), input_key(reference.sha256))
    message = "No image of yours with this sha256 is stored; send it with the request, or to POST /images first"
    for key in queue.input_images.renew(keys, keep_s):
        image = store.get(key)
        if image is not None:
            if has_digest(image, reference.sha256):
                return image
            report_damage("upload" if key.startswith("uploads/") else "input", key)
            message = "The stored copy of this image is damaged; send it with the request, or to POST /images again"
    raise ParameterError(field, message, got=reference.sha256)


def check_sent(field: str, upload: PresignedUpload, queue: "JobQueue", keep_s: float) -> None:
    """Keep a presigned upload for another keep_s seconds. Raises ParameterError if the caller has no such upload."""
    if not queue.input_images.renew([upload_key(upload.id)], keep_s):
        message = "There is no such upload of yours, or it has expired or was deleted; create one with POST /uploads"
        raise ParameterError(field, message, got=upload.path)


def _fetch_sent(field: str, upload: PresignedUpload, queue: "JobQueue", store: "BlobStore", keep_s: float) -> bytes:
    from img2img.stored_images import has_digest, report_damage

    check_sent(field, upload, queue, keep_s)
    key = upload_key(upload.id)
    image = store.get(key)
    if image is None:
        raise ParameterError(field, "The image was not sent to the URL of this upload", got=upload.path)
    if len(image) != upload.bytes or not has_digest(image, upload.sha256):
        report_damage("upload", key)
        raise ParameterError(field, "The stored image is not what was declared; create another upload", got=upload.path)
    return image


def _fetch_result(field: str, reference: ResultReference, queue: "JobQueue", store: "BlobStore") -> bytes:
    from img2img.stored_images import read_result

    path = f"/jobs/{reference.job_id}/images/{reference.index}"
    try:
        record = queue.job_store.find(reference.job_id)
    except (NotFound, Gone) as error:
        raise ParameterError(field, error.message, got=path) from None
    if record.status is not JobStatus.SUCCEEDED:
        raise ParameterError(field, f"That job is {record.status}; only a job that succeeded has images", got=path)
    if reference.index >= record.spec.num_images:
        raise ParameterError(field, f"That job has {record.spec.num_images} image(s), counted from 0", got=path)
    try:
        return read_result(store, queue.job_store, record, reference.index)
    except Gone as error:
        raise ParameterError(field, error.message, got=path) from None
