"""Everything in Redis that belongs to one owner, beside its jobs and images: found by a search through all keys."""

from collections.abc import Iterator
from itertools import chain

from redis import Redis

from img2img.domain.job import JobStatus
from img2img.redis import keys
from img2img.redis.decode import decode
from img2img.redis.input_images import InputImageRefs
from img2img.redis.job_store import job_index

# Keys that one SCAN looks at.
SCAN_COUNT = 1000


class OwnerData:
    """Finds and deletes the data of an owner. Everything can be repeated."""

    def __init__(self, redis: Redis, owner: str) -> None:
        self._redis = redis
        self._owner = owner

    def job_ids(self, limit: int = 100) -> list[str]:
        """Return ids of up to `limit` jobs."""
        return list(map(decode, self._redis.zrange(job_index(self._owner), 0, limit - 1)))

    def batch_ids(self) -> list[str]:
        """Return the ids of all batches of jobs."""
        return list(map(decode, self._redis.zrange(keys.BATCHES_OF_OWNER.format(owner=self._owner), 0, -1)))

    def unlist(self, job_id: str) -> None:
        """Remove a job from the lists of the owner, also if it has no record any more."""
        for status in (None, *JobStatus):
            self._redis.zrem(job_index(self._owner, status), job_id)

    def expired_jobs_with_webhook(self) -> list[str]:
        """Return the ids of jobs, and of batches, whose webhook is pending."""
        return [
            decode(job_id)
            for job_id, _ in self._redis.zscan_iter(keys.OUTBOX)
            if decode(self._redis.hget(keys.OUTBOX_EVENT.format(id=decode(job_id)), "owner") or b"") == self._owner
        ]

    def uploads(self) -> list[str]:
        """Return the blob keys of uploaded images."""
        return [
            decode(blob)
            for blob, _ in self._redis.zscan_iter(keys.INPUT_IMAGES)
            if self._redis.zscore(keys.UPLOAD_OWNERS.format(key=decode(blob)), self._owner) is not None
        ]

    def end_upload(self, blob_key: str) -> None:
        """Make an uploaded image due for deletion, unless others have uploaded it too."""
        InputImageRefs(self._redis).visible_to(self._owner).delete_upload(blob_key)

    def delete_idempotency_keys(self) -> int:
        """Delete idempotency keys. Returns their number."""
        return self._delete(self._scan(keys.IDEMPOTENT_REQUEST.format(owner=self._owner, digest="*")))

    def delete_rate_limits(self) -> int:
        """Delete the counters of the rate limit. Returns their number."""
        # The library separates the parts of a key by slashes.
        return self._delete(self._scan(f"{keys.RATE_LIMITS}*/{self._owner}/*"))

    def delete_records_of_gone_jobs(self) -> int:
        """Delete the records of deleted and expired jobs and batches: then unknown ids. Returns their number."""
        gone = chain(self._scan(keys.GONE_JOB.pattern), self._scan(keys.GONE_BATCH.pattern))
        return self._delete(key for key in gone if decode(self._redis.get(key) or "").endswith(f" {self._owner}"))

    def delete_lists(self) -> None:
        """Delete the list of unfinished jobs of the AUTOMATIC1111 API."""
        self._redis.delete(keys.A1111_JOBS.format(owner=self._owner))

    def _scan(self, pattern: str) -> Iterator[str]:
        return map(decode, self._redis.scan_iter(pattern, count=SCAN_COUNT))

    def _delete(self, names: Iterator[str]) -> int:
        # SCAN may return a key twice.
        return sum(int(self._redis.delete(name)) for name in set(names))
