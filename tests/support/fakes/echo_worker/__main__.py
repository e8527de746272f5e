"""A worker without a model: registers one, and returns every input image unchanged.

With the model `missing` it fails to start, and with the model `stubborn` it ignores SIGTERM.
"""

import signal
import sys
import time
from hashlib import sha256
from uuid import uuid4

from redis import Redis

from img2img.blobs import ObjectStore
from img2img.domain.blob_keys import input_key, result_key
from img2img.domain.job import ImageInfo
from img2img.domain.model_card import ModelCard, model_name, size_buckets
from img2img.domain.parameters import Scheduler
from img2img.redis.job_queue import JobQueue
from img2img.redis.model_registry import ModelRegistry
from img2img.settings import SharedSettings


def echo(job_id: str, queue: JobQueue, store: ObjectStore) -> None:
    """Complete a job with its input image as every result."""
    execution = uuid4().hex
    if not queue.job_store.start(job_id, execution=execution, worker="echo"):
        return
    record = queue.job_store.get(job_id)
    assert record is not None
    image_bytes = store.get(input_key(record.spec.inputs[0]))
    assert image_bytes is not None
    images = []
    for index in range(record.spec.num_images):
        store.put(result_key(job_id, index), image_bytes)
        images.append(
            ImageInfo(
                index=index,
                seed=record.spec.image_seed(index),
                width=record.spec.result_size[0],
                height=record.spec.result_size[1],
                sha256=sha256(image_bytes).hexdigest(),
                bytes=len(image_bytes),
            )
        )
    queue.job_store.succeed(job_id, execution=execution, images=images, timings={}, steps=record.steps)


def main() -> None:
    settings = SharedSettings()
    if settings.model == "missing":
        sys.stderr.write("img2img worker: there is no model `missing`\n")
        sys.exit(2)
    signal.signal(signal.SIGTERM, signal.SIG_IGN if settings.model == "stubborn" else lambda *_: sys.exit(0))
    redis = Redis.from_url(settings.resolved_redis_url)
    queue, store, models = JobQueue(redis), ObjectStore(settings.resolved_store_url), ModelRegistry(redis)
    card = ModelCard(
        name=model_name(settings.model),
        family="none",
        native_size=64,
        size_multiple=8,
        min_size=8,
        max_size=512,
        sizes=size_buckets(64, 8),
        schedulers=tuple(Scheduler),
        default_scheduler=Scheduler.DDIM,
    )
    while True:
        models.register("echo", [card], ttl_s=5)
        for job_id in queue.job_store.active_ids():
            echo(job_id, queue, store)
        time.sleep(0.05)


main()
