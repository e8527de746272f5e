"""Reads and writes images in the blob store, and checks them: a damaged image is never used as a good one.

The name of an input is its SHA-256. The SHA-256 of a result is in the job record.
"""

import logging
from hashlib import sha256
from typing import Literal

from prometheus_client import Counter

from img2img.blobs import BlobStore
from img2img.domain.blob_keys import input_key, result_key, upload_key, without_hashes
from img2img.domain.job import JobRecord
from img2img.domain.presigned_upload import PresignedUpload
from img2img.errors import InputDamaged, InputMissing, ResultDamaged, Withheld
from img2img.redis.job_store import JobStore
from img2img.telemetry.logging import job_extra

# Not in a registry: API servers and workers have their own.
DAMAGED_IMAGES = Counter(
    "img2img_damaged_images",
    "Damaged or missing images found in the blob store, when they were needed.",
    ["kind"],
    registry=None,
)
for _kind in ("input", "result", "upload"):
    DAMAGED_IMAGES.labels(_kind)

log = logging.getLogger(__name__)


def read_result(store: BlobStore, job_store: JobStore, record: JobRecord, index: int) -> bytes:
    """Return a result image of a job that has succeeded.

    Raises:
        Withheld: The image is not delivered.
        ResultDamaged: The image is not stored, or not as the worker has stored it.
        Expired, Deleted: The job was removed while the image was read.
    """
    image, key = record.image(index), result_key(record.id, index)
    if image is None:
        raise Withheld(f"Image {index} of the job was flagged and is not delivered.")
    png = store.get(key)
    if png is None:
        job_store.find(record.id)
    elif len(png) == image.bytes and has_digest(png, image.sha256):
        return png
    report_damage("result", key, record.id, is_missing=png is None)
    raise ResultDamaged(f"Image {index} of the job is damaged or missing in the blob store; submit the job again.")


def read_input(store: BlobStore, digest: str, job_id: str) -> bytes:
    """Return an input image of a job. Raises InputDamaged if it is damaged or missing."""
    key = input_key(digest)
    png = store.get(key)
    if png is not None and has_digest(png, digest):
        return png
    report_damage("input", key, job_id, is_missing=png is None)
    raise InputDamaged


def read_upload(store: BlobStore, upload: PresignedUpload, job_id: str) -> bytes:
    """Return the file that a client has sent to the bucket for a job.

    Raises:
        InputMissing: The client has not sent it.
        InputDamaged: It is not what the client has declared.
    """
    key = upload_key(upload.id)
    image = store.get(key)
    if image is None:
        raise InputMissing
    if len(image) == upload.bytes and has_digest(image, upload.sha256):
        return image
    report_damage("upload", key, job_id)
    raise InputDamaged


def write_by_digest(store: BlobStore, key: str, image: bytes) -> None:
    """Store an image whose key is its SHA-256, and replace a damaged copy."""
    if store.put(key, image):
        return
    stored = store.get(key)
    if stored != image:
        if stored is not None:
            report_damage("upload" if key.startswith("uploads/") else "input", key)
        store.replace(key, image)


def has_digest(image: bytes, digest: str) -> bool:
    return sha256(image).hexdigest() == digest


def report_damage(
    kind: Literal["input", "result", "upload"], key: str, job_id: str | None = None, *, is_missing: bool = False
) -> None:
    """Log and count an image that is damaged or missing."""
    DAMAGED_IMAGES.labels(kind).inc()
    state = "missing" if is_missing else "damaged"
    log.error("%s in the blob store: %s", state, without_hashes(key), extra=job_extra(job_id) if job_id else None)
