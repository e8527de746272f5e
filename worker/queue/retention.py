"""Deletes expired jobs with their images, and input images that no job needs any more."""

import logging
import threading
import time
from collections.abc import Callable, Collection
from itertools import islice
from typing import Protocol

from obstore.exceptions import BaseError as StoreError
from redis import Redis
from redis.exceptions import RedisError

from img2img.blobs import BlobStore
from img2img.domain.blob_keys import result_keys
from img2img.erasure import Eraser
from img2img.redis import outage
from img2img.redis.job_queue import JobQueue
from img2img.redis.webhook_outbox import WebhookOutbox

log = logging.getLogger(__name__)

INTERVAL_S = 2.0
# Time before something that could not be deleted is tried again: doubled each time, up to a maximum.
FIRST_RETRY_S, MAX_RETRY_S = 60.0, 3600.0
# A sweep in which deletions fail for this long ends: the store hangs.
MAX_FAILING_S = 10.0
# Jobs, and input images, whose blobs one sweep deletes while the disk is full.
MAX_FREED = 10_000


class ImageMemory(Protocol):
    """Outputs that a worker remembers, by the SHA-256 of the input images."""

    @property
    def images(self) -> frozenset[str]: ...

    def forget(self, images: Collection[str], /) -> None: ...


class Retention:
    """Enforces the deadlines and the retention times of jobs. Several workers can do it at the same time.

    Args:
        memory: outputs that this worker remembers; they are forgotten with their images.
    """

    def __init__(self, redis: Redis, store: BlobStore, memory: ImageMemory | None = None) -> None:
        self._memory = memory
        self._redis = redis
        self._jobs = JobQueue(redis)
        self._outbox = WebhookOutbox(redis)
        self._eraser = Eraser(self._jobs, store)
        self._store = store
        # Time before the next try, by the job or the blob that could not be deleted.
        self._retry_delays: dict[str, float] = {}

    def run(self, closed: threading.Event) -> None:
        """Clean up at intervals until `closed` is set."""
        while not closed.wait(INTERVAL_S):
            self._sweep_or_log()

    def wait_until_writable(self) -> None:
        """Clean up until Redis accepts writes, which it does not while its disk is full. Raises RedisError."""
        reason = None
        while found := outage.why_not_writable(self._redis):
            if found != reason:
                log.error("Redis accepts no writes: %s; waiting, and deleting expired images", found)
                reason = found
            self._sweep_or_log()
            time.sleep(INTERVAL_S)

    def _sweep_or_log(self) -> None:
        try:
            self.sweep()
        except RedisError as error:
            log.warning("Redis is unavailable, retrying to delete expired jobs: %s", outage.reason_of(error) or error)
        except Exception:
            log.exception("expired jobs could not be deleted, retrying")

    def sweep(self) -> None:
        """Cancel overdue jobs, and delete stale events, expired jobs and unused images.

        A blob that cannot be deleted is tried again later, and delays no other.

        Raises:
            RedisError: Redis does not respond, or rejects writes. If its disk is full, expired blobs are deleted.
        """
        self._forget_deleted_images()
        try:
            self._jobs.cancel_overdue()
            self._outbox.drop_stale()
            jobs, images, batches = self._jobs.job_store, self._jobs.input_images, self._jobs.batches
            self._delete(batches.expired_ids(), self._eraser.expire_batch, batches.postpone)
            expired = self._delete(jobs.expired_ids(), self._eraser.expire_job, jobs.postpone)
            unused = self._delete(images.claim_unused(), self._eraser.delete_claimed, images.postpone)
        except RedisError as error:
            if outage.is_disk_full(error):
                self._free_disk()
            raise
        if expired or unused:
            log.info("deleted %d expired jobs and %d unused images", expired, unused)

    def _forget_deleted_images(self) -> None:
        """Forget input images that no job needs any more."""
        if self._memory is not None and (remembered := self._memory.images):
            self._memory.forget(remembered - self._jobs.input_images.existing_inputs(remembered))

    def _delete(
        self, items: list[str], delete: Callable[[str], object], postpone: Callable[[str, float], object]
    ) -> int:
        """Delete items, and postpone those that cannot be deleted. Return the number of deleted ones."""
        started_at, failed, reason = time.monotonic(), list[str](), ""
        deleted = 0
        for item in items:
            try:
                delete(item)
                self._retry_delays.pop(item, None)
                deleted += 1
            except (StoreError, OSError) as error:
                reason = str(error).split("\n", 1)[0]
                failed.append(item)
                if time.monotonic() - started_at > MAX_FAILING_S:
                    break
        # Each is logged once.
        new = [item for item in failed if item not in self._retry_delays]
        for item in failed:
            delay_s = min(2 * self._retry_delays.get(item, FIRST_RETRY_S / 2), MAX_RETRY_S)
            self._retry_delays[item] = delay_s
            postpone(item, self._jobs.clock.now() + delay_s)
        if new:
            log.error("%d expired images cannot be deleted, retrying later: %s: %s", len(new), new[0], reason)
        return deleted

    def _free_disk(self) -> None:
        """Delete expired blobs without a write to Redis, whose disk is full: the store may be on the same one.

        Their records are deleted when Redis accepts writes. It may do so at any time, and a client may then send an
        image again that was found to be expired. So that is checked after the deletion, and the image is put back.
        """
        if not self._store.is_local:
            return
        freed, expired = 0, self._jobs.job_store.expired_ids(MAX_FREED)
        for job_id in expired:
            freed += self._try_to_free(self._store.delete, *result_keys(job_id))
        for key, uses in islice(self._jobs.input_images.expired(expired), MAX_FREED):
            freed += self._try_to_free(self._free_input, key, uses)
        log.info("the disk of Redis is full; deleted the images of %d expired jobs and inputs", freed)

    def _free_input(self, key: str, uses: int) -> None:
        data = self._store.get(key)
        if data is None or not self._is_free(key, uses):
            return
        self._store.delete(key)
        if not self._is_free(key, uses):
            self._store.put(key, data)

    def _is_free(self, key: str, uses: int) -> bool:
        """Whether no client can need an image: it is expired, and cannot be sent again because Redis rejects writes."""
        return self._jobs.input_images.is_expired(key, uses) and outage.why_not_writable(self._redis) is not None

    def _try_to_free(self, delete: Callable[..., None], *args: str | int) -> bool:
        try:
            delete(*args)
        except (StoreError, OSError) as error:
            log.info("an expired image cannot be deleted: %s", error)
            return False
        return True
