"""Deletes jobs and images for good: the records in Redis and the blobs that only they need."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from img2img.blobs import BlobStore
from img2img.domain.blob_keys import presigned_upload, result_keys, upload_key
from img2img.errors import Deleted, Expired, Gone, NotFound, UnreadableJob
from img2img.redis.job_queue import JobQueue
from img2img.redis.owner_data import OwnerData

# A worker may store an image of a job that is being deleted. It deletes the image itself when it notices; if it dies,
# the image is deleted after this time.
LATE_IMAGES_S = 300
# Jobs of a batch that are deleted before others get a turn.
DELETED_AT_ONCE = 200


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

    def delete_batch(self, batch_id: str, reason: type[Gone] = Deleted) -> None:
        """Delete a batch with its jobs, as `delete_job` does. Can be repeated after an error."""
        batches = self._jobs.batches
        batches.mark_cancelled(batch_id)
        while page := batches.last_job_ids(batch_id, DELETED_AT_ONCE):
            self._jobs.cancel_jobs(page)
            for job_id in page:
                self.delete_job(job_id)
            batches.unlist(batch_id, page)
        batches.forget(batch_id, reason)

    def expire_batch(self, batch_id: str) -> None:
        """Delete some of the jobs of a batch whose time is over; with the last of them, the batch.

        A batch that was never completed is deleted: its client never got its id.
        """
        batches = self._jobs.batches
        record = batches.get(batch_id)
        if record is not None and not record.has_ended:
            self.delete_batch(batch_id)
            return
        page = batches.last_job_ids(batch_id, DELETED_AT_ONCE)
        for job_id in page:
            self.expire_job(job_id)
        batches.unlist(batch_id, page)
        if len(page) < DELETED_AT_ONCE:
            batches.forget(batch_id, Expired)

    def expire_job(self, job_id: str) -> None:
        """Delete a job whose time is over. Its pending webhook is still delivered."""
        # Blobs first, so that no blob is left without a record if the store fails.
        self._store.delete(*result_keys(job_id))
        unused = self._jobs.job_store.forget(job_id, Expired)
        self.delete_claimed(*self._images.claim(unused or ()))

    def delete_upload(self, name: str) -> None:
        """Delete an uploaded image. Jobs that use it have their own copies, or keep it until they are deleted.

        Args:
            name: Its SHA-256, or the id of a presigned upload.

        Raises:
            NotFound: There is no such upload.
        """
        key = upload_key(name)
        if not self._images.delete_upload(key):
            raise NotFound(f"There is no uploaded image of yours with this {'id' if '-' in name else 'sha256'}.")
        self.delete_claimed(*self._images.claim([key]))

    def forget_owner(self, data: OwnerData) -> Forgotten:
        """Delete everything that an owner has sent. Can be repeated after an error, and goes on where it ended."""
        jobs = 0
        while job_ids := data.job_ids():
            for job_id in job_ids:
                self.delete_job(job_id)
                data.unlist(job_id)
                jobs += 1
        for batch_id in data.batch_ids():
            self.delete_batch(batch_id)
        webhooks = data.expired_jobs_with_webhook()
        for job_id in webhooks:
            self.delete_job(job_id)
            # The event may be that of a batch.
            self._jobs.batches.forget(job_id, Deleted)
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
            upload = presigned_upload(key)
            if upload is not None and upload.expires_at + LATE_IMAGES_S > self._jobs.clock.now():
                # The client can still send the image.
                self._images.postpone(key, upload.expires_at + LATE_IMAGES_S)
            else:
                self._images.confirm_deleted(key)
