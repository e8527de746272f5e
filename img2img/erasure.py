"""Deletes jobs and images for good: the records in Redis and the blobs that only they need."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from img2img.blobs import BlobStore
from img2img.domain.blob_keys import result_keys, upload_key
from img2img.errors import Deleted, Expired, NotFound, UnreadableJob
from img2img.redis.job_queue import JobQueue
from img2img.redis.owner_data import OwnerData

# A worker may store an image of a job that is being deleted. It deletes the image itself when it notices; if it dies,
# the image is deleted after this time.
LATE_IMAGES_S = 300


@dataclass(frozen=True)
class Forgotten:
    """How much data of an owner was deleted.

    Attributes:
        jobs: Jobs with their results and inputs.
        uploads: Uploaded images.
        webhooks: Pending webhooks of expired jobs.
        idempotency_keys: Idempotency keys.
        rate_limits: Counters of the rate limit.
        gone_jobs: Records of deleted and expired jobs.
    """

    jobs: int
    uploads: int
    webhooks: int
    idempotency_keys: int
    rate_limits: int
    gone_jobs: int


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
        # A record that cannot be read is deleted too.
        with suppress(UnreadableJob):
            self._jobs.cancel(job_id)
        unused = self._jobs.job_store.forget(job_id, Deleted, again_at=self._jobs.clock.now() + LATE_IMAGES_S)
        self._store.delete(*result_keys(job_id))
        self.delete_claimed(*self._images.claim(unused or ()))

    def expire_job(self, job_id: str) -> None:
        """Delete a job whose time is over. Its pending webhook is still delivered."""
        # Blobs first, so that no blob is left without a record if the store fails.
        self._store.delete(*result_keys(job_id))
        unused = self._jobs.job_store.forget(job_id, Expired)
        self.delete_claimed(*self._images.claim(unused or ()))

    def delete_upload(self, sha256: str) -> None:
        """Delete an uploaded image. Jobs that use it have their own copies.

        Raises:
            NotFound: There is no such upload.
        """
        key = upload_key(sha256)
        if not self._images.delete_upload(key):
            raise NotFound("There is no uploaded image of yours with this sha256.")
        self.delete_claimed(*self._images.claim([key]))

    def forget_owner(self, data: OwnerData) -> Forgotten:
        """Delete everything that an owner has sent. Can be repeated after an error, and goes on where it ended."""
        jobs = 0
        while job_ids := data.job_ids():
            for job_id in job_ids:
                self.delete_job(job_id)
                data.unlist(job_id)
                jobs += 1
        webhooks = data.expired_jobs_with_webhook()
        for job_id in webhooks:
            self.delete_job(job_id)
        uploads = data.uploads()
        for key in uploads:
            data.end_upload(key)
            self.delete_claimed(*self._images.claim([key]))
        data.delete_lists()
        return Forgotten(
            jobs=jobs,
            uploads=len(uploads),
            webhooks=len(webhooks),
            idempotency_keys=data.delete_idempotency_keys(),
            rate_limits=data.delete_rate_limits(),
            gone_jobs=data.delete_records_of_gone_jobs(),
        )

    def drop_unused(self, blob_keys: Sequence[str]) -> None:
        """Delete those of the inputs that no job needs."""
        self.delete_claimed(*self._images.drop_unused(blob_keys))

    def delete_claimed(self, *blob_keys: str) -> None:
        """Delete images that were claimed for deletion."""
        for key in blob_keys:
            self._store.delete(key)
            self._images.confirm_deleted(key)
