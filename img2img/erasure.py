"""Deletes jobs and images for good: the records in Redis and the blobs that only they need."""

import time
from collections.abc import Iterable, Sequence

from img2img.blobs import BlobStore
from img2img.domain.blob_keys import result_keys, upload_key
from img2img.errors import Deleted, Expired, NotFound
from img2img.redis.job_queue import JobQueue

# A worker may store an image of a job that is being deleted. It deletes the image itself when it notices; if it dies,
# the image is deleted after this time.
LATE_IMAGES_S = 300


class Eraser:
    """Deletes jobs and images from Redis and from the blob store."""

    def __init__(self, jobs: JobQueue, store: BlobStore) -> None:
        self._jobs = jobs
        self._images = jobs.input_images
        self._store = store

    def delete_job(self, job_id: str) -> None:
        """Delete a job with its results, and with the inputs that no other job needs. It is cancelled if necessary.

        Can be repeated after an error of the store. Errors leave nothing for good: retention deletes the blobs later.
        """
        self._jobs.cancel(job_id)
        unused = self._jobs.job_store.forget(job_id, Deleted, again_at=time.time() + LATE_IMAGES_S)
        self._store.delete(*result_keys(job_id))
        self._delete_claimed(self._images.claim(unused or ()))

    def expire_job(self, job_id: str) -> None:
        """Delete a job whose time is over. Its pending webhook is still delivered."""
        # Blobs first, so that no blob is left without a record if the store fails.
        self._store.delete(*result_keys(job_id))
        unused = self._jobs.job_store.forget(job_id, Expired)
        self._delete_claimed(self._images.claim(unused or ()))

    def delete_upload(self, sha256: str) -> None:
        """Delete an uploaded image. Jobs that use it have their own copies.

        Raises:
            NotFound: There is no such upload.
        """
        key = upload_key(sha256)
        if not self._images.delete_upload(key):
            raise NotFound("There is no uploaded image of yours with this sha256.")
        self._delete_claimed(self._images.claim([key]))

    def drop_unused(self, blob_keys: Sequence[str]) -> None:
        """Delete those of the inputs that no job needs."""
        self._delete_claimed(self._images.drop_unused(blob_keys))

    def delete_unused(self) -> int:
        """Delete images whose time is over. Returns their number."""
        return self._delete_claimed(self._images.claim_unused())

    def _delete_claimed(self, blob_keys: Iterable[str]) -> int:
        claimed = list(blob_keys)
        for key in claimed:
            self._store.delete(key)
            self._images.confirm_deleted(key)
        return len(claimed)
