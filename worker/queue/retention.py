"""Deletes expired jobs with their images, and input images that no job needs any more."""

import logging
import threading

from redis import Redis
from redis.exceptions import RedisError

from img2img.blobs import BlobStore
from img2img.erasure import Eraser
from img2img.redis.job_queue import JobQueue
from img2img.redis.webhook_outbox import WebhookOutbox

log = logging.getLogger(__name__)

INTERVAL_S = 2.0


class Retention:
    """Enforces the deadlines and the retention times of jobs. Several workers can do it at the same time."""

    def __init__(self, redis: Redis, store: BlobStore) -> None:
        self._jobs = JobQueue(redis)
        self._outbox = WebhookOutbox(redis)
        self._eraser = Eraser(self._jobs, store)

    def run(self, closed: threading.Event) -> None:
        """Clean up at intervals until `closed` is set."""
        while not closed.wait(INTERVAL_S):
            try:
                self.sweep()
            except RedisError as error:
                log.warning("Redis is unavailable, retrying to delete expired jobs: %s", error)
            except Exception:
                log.exception("expired jobs could not be deleted, retrying")

    def sweep(self) -> None:
        """Cancel overdue jobs, and delete stale events, expired jobs and unused images."""
        self._jobs.cancel_overdue()
        self._outbox.drop_stale()
        expired = self._jobs.job_store.expired_ids()
        for job_id in expired:
            self._eraser.expire_job(job_id)
        unused = self._eraser.delete_unused()
        if expired or unused:
            log.info("deleted %d expired jobs and %d unused images", len(expired), unused)
