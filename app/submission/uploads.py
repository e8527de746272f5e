"""Stores images for later requests: all routes that take uploads use it."""

from dataclasses import dataclass
from hashlib import sha256

from anyio.to_thread import run_sync

from img2img.domain.blob_keys import upload_key
from img2img.errors import Unavailable
from img2img.redis.idempotency import IdempotencyKey
from img2img.stored_images import write_by_digest

from ..dependencies import CallerDep, DecodersDep, FreeDiskDep, QueueDep, SettingsDep, StoreDep, StoreThreadsDep
from .submit import IdempotencyKeyHeader

# How often an image is stored that is deleted at the same time.
MAX_UPLOADS = 5


@dataclass(frozen=True)
class Upload:
    """A stored image. `is_replay`: its idempotency key was used before."""

    sha256: str
    size: tuple[int, int]
    is_replay: bool


@dataclass(frozen=True)
class Uploader:
    """Stores images of one caller."""

    settings: SettingsDep
    caller: CallerDep
    queue: QueueDep
    store: StoreDep
    store_threads: StoreThreadsDep
    free_disk: FreeDiskDep
    decoders: DecodersDep
    idempotency_key: IdempotencyKeyHeader = None

    async def upload(self, image: bytes) -> Upload:
        """Check an image and store it as the client sent it.

        Raises:
            ImageError, UnsupportedMedia: It is no image.
            QuotaExceeded, StorageFull, Unavailable: It cannot be stored.
        """
        size = await self.decoders.run(self._check, image, images=[image])
        digest, is_replay = sha256(image).hexdigest(), False
        if self.idempotency_key:
            reserved = IdempotencyKey(self.idempotency_key, digest, self.caller.owner)
            is_replay = not await run_sync(self.queue.reserve_idempotency_key, reserved, digest)
        await self.store_threads.run(self.free_disk.take, len(image))
        await self.store_threads.run(self._store, image, upload_key(digest))
        return Upload(digest, size, is_replay)

    def _check(self, data: bytes) -> tuple[int, int]:
        with self.decoders.open(data) as image:
            image.check()
            return image.size

    def _store(self, image: bytes, key: str) -> None:
        """Store an upload; again if it is deleted at the same time."""
        images = self.queue.input_images
        for _ in range(MAX_UPLOADS):
            images.retain_upload(key, len(image), self.settings.result_ttl, self.caller.owner)
            write_by_digest(self.store, key, image)
            if images.has_upload(key, self.caller.owner):
                return
        raise Unavailable("An earlier copy of this image is being deleted; try again in a moment.")
