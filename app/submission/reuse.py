"""Reuse of results: finds an earlier job with the same parameters, and copies its images for a new one."""

from dataclasses import dataclass

from img2img.blobs import BlobStore
from img2img.domain.blob_keys import result_key, result_keys
from img2img.domain.job import JobRecord
from img2img.domain.reuse import ReusedResult, result_digest
from img2img.domain.spec import JobSpec
from img2img.errors import Gone, NotFound, ParameterError, ResultDamaged
from img2img.free_disk import FreeDisk
from img2img.redis.job_queue import JobQueue
from img2img.stored_images import read_result

from ..dependencies import Services
from ..schemas.requests import Img2ImgRequest

# A copy that is not used, because the API server died, is deleted after this time.
UNUSED_S = 300


def check_reuse(request: Img2ImgRequest) -> None:
    """Raise ParameterError if the request wants an earlier result, but none could be the same."""
    if request.reuse and request.seed is None:
        raise ParameterError("seed", "`reuse` needs it: without one, each request gets another seed")


def reuse_cost(spec: JobSpec) -> float:
    """Return the work of copying the images, in megapixel-steps: one step of each."""
    width, height = spec.result_size
    return width * height * spec.num_images / 1e6


@dataclass(frozen=True)
class EarlierResults:
    """The results of an owner's earlier jobs."""

    services: Services

    @property
    def _queue(self) -> JobQueue:
        return self.services.queue

    @property
    def _store(self) -> BlobStore:
        return self.services.store

    @property
    def _free_disk(self) -> FreeDisk:
        return self.services.free_disk

    def find(self, spec: JobSpec, owner: str) -> JobRecord | None:
        """Return the latest job with all images that this one would make, by the model as it is now."""
        card = self.services.models.find(spec.model)
        is_moderated = self.services.moderation is not None
        digest = result_digest(spec, card.fingerprint, is_moderated=is_moderated) if card else None
        return self._queue.job_store.find_same(owner, digest) if digest else None

    def copy(self, earlier: JobRecord, job_id: str | None = None) -> ReusedResult | None:
        """Copy the images of a job for a new one. Returns None if they cannot be read any more.

        Args:
            job_id: Id of the new job; default: a random one.
        """
        job_store, job_id = self._queue.job_store, job_id or self._queue.new_id()
        try:
            pngs = [read_result(self._store, job_store, earlier, image.index) for image in earlier.images]
        except (ResultDamaged, Gone, NotFound):
            return None
        self._free_disk.take(sum(map(len, pngs)))
        job_store.expire_at(job_id, self._queue.clock.now() + UNUSED_S)
        for image, png in zip(earlier.images, pngs, strict=True):
            self._store.put(result_key(job_id, image.index), png)
        assert earlier.result_digest
        return ReusedResult(job_id=job_id, source=earlier.id, digest=earlier.result_digest, images=earlier.images)

    def drop(self, reused: ReusedResult) -> None:
        """Delete copies that are not used after all."""
        self._store.delete(*result_keys(reused.job_id))
        self._queue.job_store.expire_at(reused.job_id, None)
