"""Keys of images in the blob store."""

import re

from img2img.domain.parameters import MAX_IMAGES
from img2img.domain.presigned_upload import PresignedUpload


def input_key(sha256: str) -> str:
    """Return the key of a job's input blob: an image as the model sees it."""
    return f"inputs/{sha256}.png"


def upload_key(name: str) -> str:
    """Return the key of an image as the client sent it.

    Args:
        name: Its SHA-256, or the id of a presigned upload.
    """
    return f"uploads/{name}"


def presigned_upload(key: str) -> PresignedUpload | None:
    """Return the presigned upload that is stored under a key, None if it is another blob."""
    return PresignedUpload.parse(key.removeprefix("uploads/")) if key.startswith("uploads/") else None


def uploaded_hash(key: str) -> str | None:
    """Return the SHA-256 of an upload by its key, None for other blobs."""
    folder, _, digest = key.partition("/")
    return digest if folder == "uploads" else None


def without_hashes(text: str) -> str:
    """Return the text with `...` in place of every SHA-256, for text that leaves the service: it may be of an input."""
    return _HASH.sub("...", text)


_HASH = re.compile(r"(?<![0-9A-Za-z])[0-9a-f]{64}(?![0-9A-Za-z])")


def result_key(job_id: str, index: int) -> str:
    """Return the key of a job's result image; the first writer wins."""
    return f"results/{job_id}/{index}.png"


def result_keys(job_id: str) -> list[str]:
    """Return the keys of all results that a job can have."""
    return [result_key(job_id, index) for index in range(MAX_IMAGES)]
