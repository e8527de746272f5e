"""Records of batches of jobs. The scripts that change jobs count them in the record of their batch."""

import json
from collections.abc import Mapping, Sequence
from copy import copy
from itertools import chain
from typing import Any, Self

from redis import Redis

from img2img.domain.job_batch import BatchCounts, BatchRecord, BatchStatus
from img2img.errors import Gone, InvalidApiKey, QueueFull, TooManyQueued
from img2img.redis import keys, scripts
from img2img.redis.clock import redis_clock
from img2img.redis.decode import decode
from img2img.redis.durability import DurableWrites
from img2img.redis.idempotency import KEPT_S, IdempotencyKey
from img2img.redis.job_record import Scalar
from img2img.redis.job_store import GONE_S, Cursor
from img2img.redis.lookup import checked
from img2img.redis.queue_limits import QueueLimits

# A batch that is not complete after this time is deleted: its API server has died, and the client has not tried again.
INCOMPLETE_S = 3600.0
_JSON_FIELDS = ("webhook", "delivery")


class JobBatches:
    """The batches. `visible_to` restricts `find`, `page` and `job_ids` to those of one owner."""

    def __init__(self, redis: Redis, limits: QueueLimits, writes: DurableWrites) -> None:
        self._redis = redis
        self._limits = limits
        self._writes = writes
        self._owner: str | None = None
        self._clock = redis_clock(redis)
        self._open_script = scripts.register(redis, "open_batch")
        self._complete_script = scripts.register(redis, "complete_batch")
        self._forget_script = scripts.register(redis, "forget_batch")
        self._stop_script = scripts.register(redis, "stop_batch")

    def visible_to(self, owner: str | None) -> Self:
        """Return a store with only the batches of this owner; None means all."""
        restricted = copy(self)
        restricted._owner = owner
        return restricted

    def open(self, record: BatchRecord, key_id: str, key: IdempotencyKey | None) -> str | None:
        """Begin a batch. Returns the id of the batch of an earlier request with the idempotency key, if any.

        Raises:
            QueueFull, TooManyQueued: Its jobs are more than may wait.
            InvalidApiKey: The API key was revoked.
            IdempotencyKeyReused: Another request came with this key.
        """
        batch: dict[str, Any] = {
            "id": record.id,
            "owner": record.owner,
            "key_id": key_id or None,
            "total": record.total,
            "created_at": record.created_at,
            "delete_at": record.created_at + INCOMPLETE_S,
            "max_queued": self._limits.max_queued,
            "max_queued_per_owner": self._limits.max_queued_per_owner,
        }
        if key is not None:
            batch |= {"idempotency_key": key.redis_key, "fingerprint": key.fingerprint, "idempotency_ttl_s": KEPT_S}
        # Lua decodes null as a value that counts as true.
        known = {name: value for name, value in batch.items() if value is not None}
        fields = chain.from_iterable(_to_fields(record).items())
        reply = decode(self._writes.run(self._open_script, args=[json.dumps(known), *fields]))
        if reply == "revoked":
            raise InvalidApiKey
        if reply == "owner_limit":
            raise TooManyQueued(_too_many(record.total, self._limits.max_queued_per_owner, "of your jobs"))
        if reply == "limit":
            raise QueueFull(_too_many(record.total, self._limits.max_queued, "jobs"))
        return key.job_id(reply[1:]) if key is not None and reply.startswith("=") else None

    def complete(self, batch_id: str) -> bool:
        """Mark a batch as complete: all of its jobs are queued. Returns False if it was deleted."""
        return bool(self._writes.run(self._complete_script, args=[batch_id, f"{self._clock.now():.6f}"]))

    def mark_cancelled(self, batch_id: str) -> None:
        """Let no further job of the batch be queued."""
        self._stop_script(args=[batch_id])

    def get(self, batch_id: str) -> BatchRecord | None:
        """Return the record, of any owner, or None if there is none."""
        fields = self._redis.hgetall(keys.BATCH.format(id=batch_id))
        return from_fields(batch_id, fields) if b"total" in fields else None

    def find(self, batch_id: str) -> BatchRecord:
        """Return the record.

        Raises:
            NotFound: There is no such batch, or it belongs to another owner.
            Expired: The batch's time to live is over.
            Deleted: The batch was deleted.
        """
        return checked(
            self.get(batch_id),
            f"batch {batch_id}",
            owner=self._owner,
            now=self._clock.now,
            gone=lambda: self._redis.get(keys.GONE_BATCH.format(id=batch_id)),
        )

    def page(self, before: Cursor | None, limit: int) -> tuple[list[BatchRecord], Cursor | None]:
        """Return up to `limit` batches created before a cursor, newest first, and the cursor of the next page."""
        index = keys.BATCHES_OF_OWNER.format(owner=self._owner) if self._owner else keys.BATCHES
        newest = before.created_at if before else "+inf"
        rows = self._redis.zrevrangebyscore(index, newest, "-inf", 0, limit + 2, withscores=True)
        cursors = [Cursor(float(score), decode(batch_id)) for batch_id, score in rows]  # type: ignore[str-unpack]
        cursors = [cursor for cursor in cursors if before is None or cursor < before]
        records = [record for cursor in cursors[:limit] if (record := self.get(cursor.job_id))]
        return records, cursors[limit - 1] if len(cursors) > limit else None

    def job_ids(self, batch_id: str, start: int, count: int) -> list[tuple[str, int]]:
        """Return ids and indices of up to `count` jobs, from an index on."""
        name = keys.BATCH_JOBS.format(id=batch_id)
        rows = self._redis.zrangebyscore(name, start, "+inf", 0, count, withscores=True)
        return [(decode(job_id), int(index)) for job_id, index in rows]  # type: ignore[str-unpack]

    def last_job_ids(self, batch_id: str, count: int, skip: int = 0) -> list[str]:
        """Return the ids of up to `count` jobs, last first, without the last `skip`."""
        name = keys.BATCH_JOBS.format(id=batch_id)
        return list(map(decode, self._redis.zrevrange(name, skip, skip + count - 1)))

    def ended_job_ids(self, batch_id: str, start: int, count: int) -> list[str]:
        """Return the ids of up to `count` ended jobs in the order of their ends, without the first `start`."""
        return list(
            map(decode, self._redis.lrange(keys.BATCH_ENDED_JOBS.format(id=batch_id), start, start + count - 1))
        )

    def unlist(self, batch_id: str, job_ids: Sequence[str]) -> None:
        """Remove jobs without a record from a batch."""
        if job_ids:
            self._redis.zrem(keys.BATCH_JOBS.format(id=batch_id), *job_ids)

    def forget(self, batch_id: str, reason: type[Gone]) -> None:
        """Delete the record of a batch whose jobs are deleted, and remember the reason for GONE_S."""
        self._writes.run(self._forget_script, args=[batch_id, reason.code, GONE_S])

    def expired_ids(self, limit: int = 10) -> list[str]:
        """Return ids of batches whose time to live is over, and of those that were never completed."""
        return list(map(decode, self._redis.zrangebyscore(keys.EXPIRING_BATCHES, "-inf", self._clock.now(), 0, limit)))

    def postpone(self, batch_id: str, until: float) -> None:
        """List an expired batch again at a later time."""
        self._redis.zadd(keys.EXPIRING_BATCHES, {batch_id: until}, xx=True)


def _too_many(total: int, limit: int | None, whose: str) -> str:
    return (
        f"The batch has {total:,} jobs, and at most {limit:,} {whose} may wait; submit a smaller batch, or try again "
        "when some are done."
    )


def _to_fields(record: BatchRecord) -> dict[str, Scalar]:
    fields: dict[str, Scalar] = {
        "status": BatchStatus.ACCEPTING.value,
        "owner": record.owner,
        "created_at": record.created_at,
        "result_ttl_s": record.result_ttl_s,
        "total": record.total,
    }
    if record.traceparent is not None:
        fields["traceparent"] = record.traceparent
    if record.webhook is not None:
        fields["webhook"] = record.webhook.model_dump_json()
        fields["webhook_host"] = record.webhook.host
    return fields


def from_fields(batch_id: str, fields: Mapping[Any, bytes | str]) -> BatchRecord:
    """Return the record that a hash holds. Raises ValueError if a field has an invalid value."""
    text: dict[str, Any] = {decode(name): decode(value) for name, value in fields.items() if value}
    counts = {name: text.get(name, 0) for name in BatchCounts.model_fields}
    text |= {name: json.loads(text[name]) for name in _JSON_FIELDS if name in text}
    return BatchRecord.model_validate({**text, "id": batch_id, "counts": counts, "cancelled": "stopped" in text})
