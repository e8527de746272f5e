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
from collections.abc import Callable, Iterable, Sequence
from copy import copy
from typing import Self
from uuid import uuid4

from redis import Redis

from img2img.errors import Unavailable
from img2img.redis import keys, scripts
from img2img.redis.clock import redis_clock
from img2img.redis.decode import decode

# Longer than the deletion of a blob takes. If the process dies, the blob is deleted after this time.
DELETION_S = 60
# An input whose job was never queued, because the API server died, is deleted after this time.
UNUSED_S = 3600.0
# How long an image is waited for that is being deleted.
WAIT_S = 1.0
POLL_S = 0.02


class InputImageRefs:
    """Uses and retention of input images. `visible_to` restricts uploads and references to those of one owner."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
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

    def retain(self, blob_keys: Iterable[str]) -> dict[str, str]:
        """Reserve the inputs of a job. Call this before storing their blobs.

        Returns:
            The generations of the inputs, for the submit of the job.

        Raises:
            Unavailable: An earlier copy of an input is being deleted.
        """
        generations: dict[str, str] = {}
        waiting = list(blob_keys)

        def retain_all() -> bool:
            found = map(decode, self._retain(args=[self._clock.now() + UNUSED_S, uuid4().hex, *waiting]))
            generations.update((key, one) for key, one in zip(waiting, found, strict=True) if one)
            waiting[:] = [key for key in waiting if key not in generations]
            return not waiting

        if waiting:
            _until(retain_all)
        return generations

    def drop_unused(self, blob_keys: Sequence[str]) -> list[str]:
        """Claim those of the inputs for deletion that no job needs, and return their keys. See `claim_unused`."""
        self._drop_unused(args=blob_keys)
        return self.claim(blob_keys)

    def retain_upload(self, blob_key: str, keep_s: float, owner: str) -> None:
        """Keep an image that `owner` uploads for at least keep_s seconds. Call this before storing its blob.

        Raises:
            Unavailable: An earlier copy of the image is being deleted.
        """
        _until(lambda: bool(self._retain_upload(args=[self._clock.now() + keep_s, owner, blob_key])))

    def has_upload(self, blob_key: str, owner: str) -> bool:
        """Return whether `owner` has uploaded the image and it was not deleted since."""
        return self._redis.zscore(keys.UPLOAD_OWNERS.format(key=blob_key), owner) is not None

    def delete_upload(self, blob_key: str) -> bool:
        """Make an upload due for deletion, unless other owners have uploaded the image too.

        Returns False if there is no such upload.
        """
        return bool(self._delete_upload(args=[blob_key, *self._whose()]))

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

    def confirm_deleted(self, blob_key: str) -> None:
        """Allow an image to be stored again, after its blob was deleted."""
        self._confirm(args=[blob_key])

    def _whose(self) -> tuple[str, str]:
        return ("all", "") if self._owner is None else ("one", self._owner)


def _until(is_retained: Callable[[], bool]) -> None:
    """Repeat the call while an earlier copy of an image is being deleted. Raises Unavailable after WAIT_S."""
    give_up_at = time.monotonic() + WAIT_S
    while not is_retained():
        if time.monotonic() > give_up_at:
            raise Unavailable("An earlier copy of this image is being deleted; try again in a moment.")
        time.sleep(POLL_S)
