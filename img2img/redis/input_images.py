"""References to input images: which of them unfinished jobs need, and until when the others are kept.

An image is identified by its key in the blob store. Keys are content hashes, so jobs share images. An image is removed
from Redis before its blob is deleted. A client that sends the same image in between waits until the deletion has ended
and then stores the image again.

A hash is no secret, because it can be learnt without the image. So Redis records who has sent an image, and only these
owners can refer to it by its hash.
"""

import time
from collections.abc import Iterable, Sequence
from copy import copy
from typing import Self

from redis import Redis

from img2img.errors import Unavailable
from img2img.redis import keys, scripts
from img2img.redis.clock import redis_clock
from img2img.redis.decode import decode

# Longer than the deletion of a blob takes. If the worker dies, the image can be sent again after this time.
DELETION_S = 60
# How long `retain` waits for a deletion to end.
WAIT_S = 1.0
POLL_S = 0.02


class InputImageRefs:
    """Reference counts and retention of input images. `visible_to` restricts `renew` to the images of one owner."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._owner: str | None = None
        self._clock = redis_clock(redis)
        self._renew = scripts.register(redis, "renew_images")
        self._retain = scripts.register(redis, "retain_images")
        self._claim_unused = scripts.register(redis, "claim_unused_image")

    def visible_to(self, owner: str | None) -> Self:
        """Return the references of which `renew` accepts only images of this owner; None means all images."""
        restricted = copy(self)
        restricted._owner = owner
        return restricted

    def retain(self, blob_keys: str | Iterable[str], keep_s: float, owner: str) -> None:
        """Keep images that `owner` has sent for at least keep_s seconds. Call this before storing their blobs.

        Raises:
            Unavailable: An earlier copy of an image is being deleted.
        """
        waiting = [blob_keys] if isinstance(blob_keys, str) else list(blob_keys)
        give_up_at = time.monotonic() + WAIT_S
        now = self._clock.now()
        while waiting and (waiting := self._retain(args=[now + keep_s, owner, now, *waiting])):
            if time.monotonic() > give_up_at:
                raise Unavailable("An earlier copy of this image is being deleted; try again in a moment.")
            time.sleep(POLL_S)

    def renew(self, blob_keys: Sequence[str], keep_s: float) -> list[str]:
        """Keep those of the images that can be referred to for another keep_s seconds, and return their keys."""
        whose = ["all", ""] if self._owner is None else ["one", self._owner]
        return list(map(decode, self._renew(args=[self._clock.now() + keep_s, *whose, *blob_keys])))

    def claim_unused(self, limit: int = 100) -> list[str]:
        """Return up to `limit` blob keys of images to delete. Delete their blobs, then call `confirm_deleted`."""
        now = self._clock.now()
        due = map(decode, self._redis.zrangebyscore(keys.INPUT_IMAGES, "-inf", now, 0, limit))
        return [blob for blob in due if self._claim_unused(args=[blob, now, DELETION_S])]

    def confirm_deleted(self, blob_key: str) -> None:
        """Allow an image to be stored again, after its blob was deleted."""
        self._redis.delete(keys.INPUT_IMAGE_DELETION.format(key=blob_key))
