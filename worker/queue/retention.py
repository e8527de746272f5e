"""Deletes what nobody will ask for any more: jobs that have expired with their pictures, and unused input pictures."""

import logging

from redis import Redis

from img2img.blobs import BlobStore
from img2img.domain.spec import result_keys
from img2img.errors import Expired
from img2img.redis.job_queue import JobQueue
from img2img.redis.webhook_outbox import WebhookOutbox

log = logging.getLogger(__name__)


class Retention:
    """The end of everything that is kept for a time. Two at once do no harm."""

    def __init__(self, redis: Redis, store: BlobStore) -> None:
        self._jobs = JobQueue(redis)
        self._outbox = WebhookOutbox(redis)
        self._store = store

    def sweep(self) -> None:
        """One round: deadlines, events, jobs, inputs. Blobs go before what names them, so that none is left unnamed."""
        self._jobs.cancel_overdue()
        self._outbox.drop_stale()
        expired = self._jobs.job_store.expired_ids()
        for job_id in expired:
            self._store.delete(*result_keys(job_id))
            self._jobs.job_store.forget(job_id, Expired)
        unused = self._jobs.input_images.claim_unused()
        for key in unused:
            self._store.delete(key)
            self._jobs.input_images.confirm_deleted(key)
        if expired or unused:
            log.info("deleted %d expired jobs and %d unused inputs", len(expired), len(unused))
