"""Complete jobs as a worker does."""

from collections.abc import Sequence
from hashlib import sha256
from uuid import uuid4

from img2img.blobs import ObjectStore
from img2img.domain.blob_keys import result_key
from img2img.domain.job import ImageInfo
from img2img.domain.reuse import result_digest
from img2img.redis.job_queue import JobQueue
from tests.support.images import encoded, gradient


def succeed(
    job_id: str,
    queue: JobQueue,
    store: ObjectStore,
    result: bytes | None = None,
    *,
    withheld: Sequence[int] = (),
    fingerprint: str = "",
) -> bytes:
    """Complete a job as a worker does, and return its first PNG: `result`, or a gradient.

    Args:
        withheld: Indices of images that are not delivered.
        fingerprint: Of the model.
    """
    record = queue.job_store.get(job_id)
    assert record is not None
    execution = uuid4().hex
    assert queue.job_store.start(job_id, execution=execution, worker="test-worker")
    spec, images, pngs = record.spec, [], []
    for index in (index for index in range(spec.num_images) if index not in withheld):
        png = result or encoded(gradient(spec.width, spec.height, blue=index))
        store.put(result_key(job_id, index), png)
        images.append(
            ImageInfo(
                index=index,
                seed=spec.image_seed(index),
                width=spec.width,
                height=spec.height,
                sha256=sha256(png).hexdigest(),
                bytes=len(png),
            )
        )
        pngs.append(png)
    assert queue.job_store.succeed(
        job_id,
        execution=execution,
        images=images,
        timings={"denoise": 0.25},
        steps=record.steps,
        withheld=withheld,
        digest=result_digest(spec, fingerprint, is_moderated=False),
    )
    return pngs[0]
