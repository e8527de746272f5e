"""Reserves presigned uploads for one caller, and signs their URLs."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256

from anyio.to_thread import run_sync

from img2img.domain.blob_keys import upload_key
from img2img.domain.presigned_upload import PresignedUpload
from img2img.errors import Expired, ImageError, NoPresignedUploads
from img2img.presigned_uploads import UploadSigner
from img2img.redis.idempotency import IdempotencyKey

from ..dependencies import ContextDep
from ..http.errors import PayloadTooLarge
from ..schemas.requests import UploadRequest
from ..schemas.responses import Upload
from .submit import IdempotencyKeyHeader


@dataclass(frozen=True)
class Presigner:
    """Creates presigned uploads."""

    context: ContextDep
    idempotency_key: IdempotencyKeyHeader = None

    async def create(self, request: UploadRequest) -> tuple[Upload, bool]:
        """Return an upload, and whether its idempotency key was used before.

        Raises:
            NoPresignedUploads: The store is no bucket for which URLs can be signed.
            PayloadTooLarge, ImageError: The image is larger than the service accepts.
            QuotaExceeded, StorageFull, Unavailable: It cannot be stored.
            Expired: The upload of an earlier request with the idempotency key has expired.
        """
        signer, settings = self.context.services.upload_signer, self.context.services.settings
        if signer is None:
            raise NoPresignedUploads
        if request.bytes > settings.max_body_bytes:
            raise PayloadTooLarge(f"The image is larger than {settings.max_body_bytes:,} bytes.")
        if request.size and request.size[0] * request.size[1] > settings.max_pixels:
            width, height = request.size
            raise ImageError(f"The image has {width} x {height} pixels; at most {settings.max_pixels:,} are accepted.")
        return await run_sync(self._create, request, signer)

    def _create(self, request: UploadRequest, signer: UploadSigner) -> tuple[Upload, bool]:
        queue = self.context.services.queue
        now = queue.clock.now()
        upload, is_replay = PresignedUpload.new(request.sha256, request.bytes, request.size, now), False
        if self.idempotency_key:
            upload, is_replay = self._earlier(request, upload)
        if upload.expires_at - now < 1:
            raise Expired("The upload of this idempotency key has expired; create another one with a new key.")
        keep_s = self.context.services.settings.result_ttl
        queue.input_images.retain_upload(upload_key(upload.id), upload.bytes, keep_s, self.context.caller.owner)
        put = signer.sign(
            upload_key(upload.id),
            upload.sha256,
            upload.bytes,
            request.content_type,
            now=now,
            expires_at=upload.expires_at,
        )
        expires_at = datetime.fromtimestamp(upload.expires_at, UTC)
        return Upload(image=upload.path, url=put.url, headers=dict(put.headers), expires_at=expires_at), is_replay

    def _earlier(self, request: UploadRequest, new: PresignedUpload) -> tuple[PresignedUpload, bool]:
        """Return the upload that the same request has created before, if any, else the new one."""
        assert self.idempotency_key
        fingerprint = sha256(json.dumps(["upload", request.model_dump()]).encode()).hexdigest()
        key = IdempotencyKey(self.idempotency_key, fingerprint, self.context.caller.owner)
        queue = self.context.services.queue
        if queue.reserve_idempotency_key(key, new.id):
            return new, False
        earlier = PresignedUpload.parse(queue.find_id(key) or "")
        return (earlier, True) if earlier else (new, False)
