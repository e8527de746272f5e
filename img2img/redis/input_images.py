"""Retention of input images: the inputs of jobs, and the images that clients have uploaded.

An image is identified by its key in the blob store, which is a content hash, so jobs and owners share images. An input
is deleted with the last job that needs it. An upload is kept for some time after it was last uploaded or used, for each
owner separately, and is independent of the jobs: they have copies, converted for the model.

An image is removed from Redis before its blob is deleted. A client that sends the same image in between waits until the
deletion has ended and then stores the image again. If an input is deleted between `retain` and the submit of its job,
its generation has changed, and the submit is refused.

A hash is no secret, because it can be learnt without the image. So only an owner who has uploaded an image, or who has
a job with this input, can refer to it by its hash.
"""

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from itertools import chain, islice
from typing import Self
from uuid import uuid4

from redis import Redis

from img2img.domain.blob_keys import input_key
from img2img.errors import StorageFull, Unavailable
from img2img.redis import keys, scripts
from img2img.redis.clock import redis_clock
from img2img.redis.decode import decode
from img2img.redis.queue_limits import QueueLimits

# Longer than the deletion of a blob takes. If the process dies, the blob is deleted after this time.
DELETION_S = 60
# An input whose job was never queued, because the API server died, is deleted after this time.
UNUSED_S = 3600.0
# How long an image is waited for that is being deleted.
WAIT_S = 1.0
POLL_S = 0.02
# Uploads of all owners that one step of a list looks at, and the steps of one page.
SCAN_COUNT = 1000
MAX_SCANS = 20


@dataclass(frozen=True)
class StoredUpload:
    """An upload of an owner. `kept_until` is in seconds since the epoch."""

    blob_key: str
    size: int
    kept_until: float


class InputImageRefs:
    """Uses and retention of input images. `visible_to` restricts uploads and references to those of one owner."""

    def __init__(self, redis: Redis, limits: QueueLimits = QueueLimits()) -> None:  # noqa: B008  # frozen
        self._redis = redis
        self._limits = limits
        self._owner: str | None = None
        self._clock = redis_clock(redis)
        self._renew = scripts.register(redis, "renew_images")
        self._retain = scripts.register(redis, "retain_images")
        self._retain_upload = scripts.register(redis, "retain_upload")
        self._delete_upload = scripts.register(redis, "delete_upload")
        self._drop_unused = scripts.register(redis, "drop_unused_images")
        self._claim_unused = scripts.register(redis, "claim_unused_image")
        self._confirm = scripts.register(redis, "confirm_image_deleted")

    def visible_to(self, owner: str | None) -> Self:
        """Return the references with only the uploads and inputs of this owner; None means those of all owners."""
        restricted = copy(self)
        restricted._owner = owner
        return restricted

    def retain(self, sizes: Mapping[str, int], owner: str) -> dict[str, str]:
        """Reserve the inputs of a job of `owner`. Call this before storing their blobs.

        They count in the total at once, and for the owner from the submit of the job, which checks the quota again.

        Args:
            sizes: Bytes of the blobs, by their keys.

        Raises:
            QuotaExceeded, StorageFull: The inputs exceed a quota; none of them is reserved.
            Unavailable: An earlier copy of an input is being deleted.
        """
        generations: dict[str, str] = {}
        waiting = dict(sizes)

        def retain_all() -> bool:
            args: list[str | float] = [self._clock.now() + UNUSED_S, uuid4().hex, owner, *self._quotas()]
            for key, size in waiting.items():
                args += [key, size]
            found = map(decode, self._checked(self._retain(args=args)))
            generations.update((key, one) for key, one in zip(waiting, found, strict=True) if one)
            for key in generations:
                waiting.pop(key, None)
            return not waiting

        if waiting:
            _until(retain_all)
        return generations

    def drop_unused(self, blob_keys: Sequence[str]) -> list[str]:
        """Claim those of the inputs for deletion that no job needs, and return their keys. See `claim_unused`."""
        self._drop_unused(args=blob_keys)
        return self.claim(blob_keys)

    def retain_upload(self, blob_key: str, size: int, keep_s: float, owner: str) -> None:
        """Keep an image of `size` bytes that `owner` uploads for keep_s seconds. Call this before storing its blob.

        Raises:
            QuotaExceeded, StorageFull: The image exceeds a quota.
            Unavailable: An earlier copy of the image is being deleted.
        """

        def retain() -> bool:
            args = [self._clock.now() + keep_s, owner, *self._quotas(), blob_key, size]
            reply = self._retain_upload(args=args)
            return decode(reply[0]) != "deleting" and not self._checked(reply)

        _until(retain)

    def has_upload(self, blob_key: str, owner: str) -> bool:
        """Return whether `owner` has uploaded the image and it was not deleted since."""
        return self.upload_kept_until(blob_key, owner) is not None

    def upload_kept_until(self, blob_key: str, owner: str) -> float | None:
        """Return the time until which an upload of `owner` is kept, None if there is no such upload."""
        kept_until: float | None = self._redis.zscore(keys.UPLOAD_OWNERS.format(key=blob_key), owner)
        return kept_until

    def existing_inputs(self, digests: Collection[str]) -> set[str]:
        """Return those of the SHA-256 of inputs that were not deleted."""
        asked = list(digests)
        sizes = self._redis.hmget(keys.INPUT_IMAGE_SIZES, list(map(input_key, asked))) if asked else []
        return {digest for digest, size in zip(asked, sizes, strict=True) if size is not None}

    def upload(self, blob_key: str, owner: str) -> StoredUpload | None:
        """Return an upload of an owner, None if there is no such upload."""
        kept_until = self.upload_kept_until(blob_key, owner)
        if kept_until is None:
            return None
        return StoredUpload(blob_key, int(self._redis.hget(keys.INPUT_IMAGE_SIZES, blob_key) or 0), kept_until)

    def uploads(self, owner: str, cursor: int, limit: int) -> tuple[list[StoredUpload], int]:
        """Return about `limit` uploads of an owner in no order, and the cursor of the next page; it is 0 at the end.

        There may be fewer, because one call looks at a limited number of uploads of all owners.
        """
        found: list[StoredUpload] = []
        for _ in range(MAX_SCANS):
            cursor, rows = self._redis.zscan(keys.INPUT_IMAGES, cursor, count=SCAN_COUNT)
            blob_keys = [decode(key) for key, _ in rows]
            with self._redis.pipeline(transaction=False) as pipe:
                for key in blob_keys:
                    pipe.zscore(keys.UPLOAD_OWNERS.format(key=key), owner)
                    pipe.hget(keys.INPUT_IMAGE_SIZES, key)
                replies = pipe.execute()
            for key, kept_until, size in zip(blob_keys, replies[::2], replies[1::2], strict=True):
                if kept_until is not None:
                    found.append(StoredUpload(key, int(size or 0), kept_until))
            if not cursor or len(found) >= limit:
                break
        return found, cursor

    def delete_upload(self, blob_key: str) -> bool:
        """Make an upload due for deletion, unless other owners have uploaded the image too.

        Returns False if there is no such upload.
        """
        return bool(self._delete_upload(args=[blob_key, *self._whose()]))

    def stored_bytes(self, owner: str | None = None) -> int:
        """Return the bytes of the images that an owner has sent; None means of all images, each counted once."""
        return int(self._redis.hget(keys.STORED_BYTES, "all" if owner is None else f"of:{owner}") or 0)

    def renew(self, blob_keys: Sequence[str], keep_s: float) -> list[str]:
        """Return the keys of the images that can be referred to. Uploads are kept for another keep_s seconds."""
        now = self._clock.now()
        return list(map(decode, self._renew(args=[now + keep_s, now, *self._whose(), *blob_keys])))

    def claim_unused(self, limit: int = 100) -> list[str]:
        """Return up to `limit` blob keys of images to delete. Delete their blobs, then call `confirm_deleted`."""
        due = self._redis.zrangebyscore(keys.INPUT_IMAGES, "-inf", self._clock.now(), 0, limit)
        return self.claim(map(decode, due))

    def claim(self, blob_keys: Iterable[str]) -> list[str]:
        """Return those of the images that are to be deleted, as `claim_unused` does."""
        now = self._clock.now()
        return [blob for blob in blob_keys if self._claim_unused(args=[blob, now, DELETION_S])]

    def expired(self, ended_jobs: Iterable[str], page: int = 500) -> Iterator[tuple[str, int]]:
        """Find images whose time is over, and the inputs that only some ended jobs need. Writes nothing.

        Args:
            ended_jobs: Ids of the jobs.

        Yields:
            Blob keys, and how many of the jobs need the image.
        """
        jobs, uses = iter(ended_jobs), Counter[str]()
        while ids := list(islice(jobs, page)):
            with self._redis.pipeline(transaction=False) as pipe:
                for job_id in ids:
                    pipe.hget(keys.JOB.format(id=job_id), "inputs")
                uses.update(chain.from_iterable(decode(inputs or b"").split() for inputs in pipe.execute()))
        yield from ((blob, count) for blob, count in uses.items() if self.is_expired(blob, count))
        now, offset = self._clock.now(), 0
        while due := list(map(decode, self._redis.zrangebyscore(keys.INPUT_IMAGES, "-inf", now, offset, page))):
            yield from ((blob, 0) for blob in due if self.is_expired(blob))
            offset += len(due)

    def is_expired(self, blob_key: str, ended_uses: int = 0) -> bool:
        """Return whether the time of an image is over, or it is unknown, and at most `ended_uses` jobs need it."""
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.zscore(keys.INPUT_IMAGES, blob_key)
            pipe.hgetall(keys.INPUT_IMAGE_USES.format(key=blob_key))
            pipe.zrange(keys.UPLOAD_OWNERS.format(key=blob_key), -1, -1, withscores=True)
            due_at, uses, last_upload = pipe.execute()
        if sum(int(count) for owner, count in uses.items() if owner != b"#") > ended_uses:
            return False
        return all(time <= self._clock.now() for time in (due_at or 0.0, *(kept for _, kept in last_upload)))

    def confirm_deleted(self, blob_key: str) -> None:
        """Allow an image to be stored again, after its blob was deleted."""
        self._confirm(args=[blob_key, ""])

    def postpone(self, blob_key: str, until: float) -> None:
        """List a claimed image again at a later time, because its blob cannot be deleted now."""
        self._confirm(args=[blob_key, until])

    def quota_error(self, whose: str, used: int, frees_at: str) -> StorageFull:
        """Return the error of a quota that is used up, from the reply of a script."""
        return self._limits.quota_error(whose, used, float(frees_at) if frees_at else None, self._clock.now())

    def _quotas(self) -> list[int | str]:
        quotas = (self._limits.max_stored_bytes_per_owner, self._limits.max_stored_bytes)
        return ["" if quota is None else quota for quota in quotas]

    def _checked(self, reply: list[bytes]) -> list[bytes]:
        """Return the rest of a script's reply. Raises QuotaExceeded or StorageFull."""
        outcome, *rest = reply
        if decode(outcome) != "ok":
            raise self.quota_error(decode(outcome), int(rest[0]), decode(rest[1]))
        return rest

    def _whose(self) -> tuple[str, str]:
        return ("all", "") if self._owner is None else ("one", self._owner)


def _until(is_retained: Callable[[], bool]) -> None:
    """Repeat the call while an earlier copy of an image is being deleted. Raises Unavailable after WAIT_S."""
    give_up_at = time.monotonic() + WAIT_S
    while not is_retained():
        if time.monotonic() > give_up_at:
            raise Unavailable("An earlier copy of this image is being deleted; try again in a moment.")
        time.sleep(POLL_S)
