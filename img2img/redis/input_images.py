"""References to input images: which of them unfinished jobs need, and until when the others are kept.

An image is identified by its key in the blob store. Keys are content hashes, so jobs share images. An image is removed
from Redis before its blob is deleted. A client that sends the same image in between waits until the deletion has ended
and then stores the image again.

A hash is no secret, because it can be learnt without the image. So Redis records who has sent an image, and only these
owners can refer to it by its hash.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from typing import Self

from redis import Redis

from img2img.errors import Unavailable
from img2img.redis import keys, scripts
from img2img.redis.decode import decode
from img2img.redis.queue_limits import QueueLimits

# Longer than the deletion of a blob takes. If the worker dies, the image can be sent again after this time.
DELETION_S = 60
# How long `retain` waits for a deletion to end.
WAIT_S = 1.0
POLL_S = 0.02


class InputImageRefs:
    """Reference counts and retention of input images. `visible_to` restricts `renew` to the images of one owner."""

    def __init__(self, redis: Redis, limits: QueueLimits = QueueLimits()) -> None:  # noqa: B008  # frozen
        self._redis = redis
        self._limits = limits
        self._owner: str | None = None
        self._renew = scripts.register(redis, "renew_images")
        self._retain = scripts.register(redis, "retain_images")
        self._end_deletion = scripts.register(redis, "end_image_deletion")
        self._claim_unused = scripts.register(redis, "claim_unused_image")

    def visible_to(self, owner: str | None) -> Self:
        """Return the references of which `renew` accepts only images of this owner; None means all images."""
        restricted = copy(self)
        restricted._owner = owner
        return restricted

    def retain(self, sizes: Mapping[str, int], keep_s: float, owner: str) -> None:
        """Keep images that `owner` has sent for at least keep_s seconds. Call this before storing their blobs.

        Args:
            sizes: Bytes of the blobs, by their keys.

        Raises:
            QuotaExceeded, StorageFull: The images exceed a quota; none of them is kept.
            Unavailable: An earlier copy of an image is being deleted.
        """
        give_up_at = time.monotonic() + WAIT_S
        while sizes:
            deleting = self._retain_once(sizes, keep_s, owner)
            if not deleting:
                return
            if time.monotonic() > give_up_at:
                raise Unavailable("An earlier copy of this image is being deleted; try again in a moment.")
            sizes = {key: sizes[key] for key in deleting}
            time.sleep(POLL_S)

    def _retain_once(self, sizes: Mapping[str, int], keep_s: float, owner: str) -> list[str]:
        """Keep images, and return those of which an earlier copy is being deleted."""
        limits = (self._limits.max_stored_bytes_per_owner, self._limits.max_stored_bytes)
        now = time.time()
        args: list[str | float] = [now + keep_s, owner, now, *("" if limit is None else limit for limit in limits)]
        for key, size in sizes.items():
            args += [key, size]
        outcome, *rest = self._retain(args=args)
        if decode(outcome) != "ok":
            used, frees_at = rest
            raise self._limits.quota_error(decode(outcome), int(used), float(frees_at) if frees_at else None)
        return list(map(decode, rest[0]))

    def stored_bytes(self, owner: str | None = None) -> int:
        """Return the bytes of the images that an owner has sent; None means of all images, each counted once."""
        return int(self._redis.hget(keys.STORED_BYTES, "all" if owner is None else f"of:{owner}") or 0)

    def renew(self, blob_keys: Sequence[str], keep_s: float) -> list[str]:
        """Keep those of the images that can be referred to for another keep_s seconds, and return their keys."""
        whose = ["all", ""] if self._owner is None else ["one", self._owner]
        return list(map(decode, self._renew(args=[time.time() + keep_s, *whose, *blob_keys])))

    def claim_unused(self, limit: int = 100) -> list[str]:
        """Return up to `limit` blob keys of images to delete. Delete their blobs, then call `confirm_deleted`.

        Without that call, because the worker dies, they are returned again after DELETION_S.
        """
        due = map(decode, self._redis.zrangebyscore(keys.INPUT_IMAGES, "-inf", time.time(), 0, limit))
        return [blob for blob in due if self._claim_unused(args=[blob, time.time(), DELETION_S])]

    def expired(self, page: int = 500) -> Iterator[str]:
        """Yield the blob keys of images whose time is over and that no job needs. Writes nothing."""
        now, offset = time.time(), 0
        while due := list(map(decode, self._redis.zrangebyscore(keys.INPUT_IMAGES, "-inf", now, offset, page))):
            uses = self._redis.hmget(keys.INPUT_IMAGE_USES, due)
            yield from (blob for blob, count in zip(due, uses, strict=True) if count is None)
            offset += len(due)

    def is_expired(self, blob_key: str) -> bool:
        """Return whether the time of an image is over and no job needs it, or it is unknown."""
        with self._redis.pipeline() as pipe:
            pipe.zscore(keys.INPUT_IMAGES, blob_key)
            pipe.hexists(keys.INPUT_IMAGE_USES, blob_key)
            kept_until, is_used = pipe.execute()
        return not is_used and (kept_until is None or kept_until <= time.time())

    def confirm_deleted(self, blob_key: str) -> None:
        """Allow an image to be stored again, after its blob was deleted."""
        self._end_deletion(args=[blob_key, ""])

    def postpone(self, blob_key: str, until: float) -> None:
        """List a claimed image again at a later time, because its blob cannot be deleted now."""
        self._end_deletion(args=[blob_key, until])
