"""Everything that an owner has sent is deleted, and nothing of others."""

import time
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest
from redis import Redis
from redis.exceptions import ResponseError

from img2img.app.http.rate_limit import RateLimiter
from img2img.domain.blob_keys import input_key, result_key, upload_key
from img2img.domain.job import JobOptions
from img2img.domain.job_batch import BatchMember, BatchRecord, BatchStatus
from img2img.domain.webhook import BatchWebhook, Webhook
from img2img.erasure import Eraser, Forgotten
from img2img.errors import Expired
from img2img.redis import outage
from img2img.redis.idempotency import IdempotencyKey
from img2img.redis.job_queue import JobQueue
from img2img.redis.keys import A1111_JOBS, JOB, JOBS_OF_OWNER, STORED_BYTES
from img2img.redis.owner_data import OwnerData
from img2img.worker.queue.retention import Retention
from tests.support.memory_store import MemoryStore
from tests.support.redis_servers import full_memory
from tests.support.specs import make_spec

ADA, BOB = "ada0" * 4, "b0b0" * 4
OWN_IMAGES = {ADA: "ad" * 32, BOB: "be" * 32}
HOOK = Webhook.model_validate({"url": "https://example.com/hook"})


class FailingStore(MemoryStore):
    """A store that fails at one of its deletions."""

    def __init__(self) -> None:
        super().__init__()
        self.deletions = 0
        self.fails_at: int | None = None

    def delete(self, *keys: str) -> None:
        self.deletions += 1
        if self.deletions == self.fails_at:
            raise OSError("the store is unavailable")
        super().delete(*keys)


class Data:
    """Data of both owners, of every kind."""

    def __init__(self, redis: Redis) -> None:
        redis.flushall()
        self.redis, self.store = redis, FailingStore()
        self.jobs = JobQueue(redis)
        self.eraser = Eraser(self.jobs, self.store)

    def fill(self, owner: str) -> None:
        shared, own = "5a" * 32, OWN_IMAGES[owner]
        for image in (shared, own):
            for index in range(2):
                self.submit(owner, image, f"{image[:2]}{index}")
        running = self.submit(owner, own, "running")
        self.jobs.job_store.start(running, execution="e", worker="w")
        self.store.put(result_key(running, 0), b"png")
        ended = self.submit(owner, own, "ended")
        self.jobs.cancel(ended)
        expired, deleted = self.submit(owner, own, "expired"), self.submit(owner, own, "deleted")
        self.jobs.cancel(expired)
        self.jobs.job_store.forget(expired, Expired)
        self.eraser.delete_job(deleted)
        for digest in (shared, own):
            self.jobs.input_images.retain_upload(upload_key(digest), 9, 600, owner)
            self.store.put(upload_key(digest), b"png")
        self.submit_batch(owner)
        RateLimiter("100/hour", self.redis).spend(owner, 1)
        self.redis.zadd(A1111_JOBS.format(owner=owner), {running: time.time()})

    def submit(self, owner: str, image: str, key: str) -> str:
        self.store.put(input_key(image), b"png")
        options = JobOptions(owner=owner, webhook=HOOK)
        spec = make_spec(image=image, prompt=f"a prompt of {owner}")
        generations = self.jobs.input_images.retain({input_key(image): 9}, owner)
        record, _ = self.jobs.submit_idempotent(IdempotencyKey(key, "f", owner), spec, options, generations)
        return record.id

    def submit_batch(self, owner: str) -> None:
        """Submit a batch of one job and cancel it, so that the webhook of the batch is pending."""
        hook = BatchWebhook.model_validate({"url": "https://example.com/batch"})
        batch = BatchRecord(
            id=uuid4().hex,
            status=BatchStatus.ACCEPTING,
            owner=owner,
            created_at=time.time(),
            result_ttl_s=600,
            total=1,
            webhook=hook,
        )
        self.jobs.batches.open(batch, "", None)
        options = JobOptions(owner=owner, batch=BatchMember(id=batch.id, index=0))
        spec = make_spec(image=OWN_IMAGES[owner], prompt=f"a prompt of {owner}")
        self.jobs.submit_to_batch([(spec, options)], {}, batch.created_at)
        self.jobs.batches.complete(batch.id)
        self.jobs.cancel_jobs(self.jobs.batches.last_job_ids(batch.id, 1))
        assert self.redis.hexists(f"i2i:outbox:{batch.id}", "webhook_host")

    def forget(self, owner: str) -> Forgotten:
        return self.eraser.forget_owner(OwnerData(self.redis, owner))

    def of(self, owner: str) -> dict[str, Any]:
        """Return the keys and values that name the owner, without RQ's and those that count all owners."""
        found: dict[str, Any] = {}
        for key in map(bytes.decode, self.redis.scan_iter("i2i:*")):
            kind = self.redis.type(key).decode()
            value = {
                "hash": self.redis.hgetall,
                "string": self.redis.get,
                "zset": lambda key: self.redis.zrange(key, 0, -1),
                "list": lambda key: self.redis.lrange(key, 0, -1),
            }[kind](key)
            if key == STORED_BYTES:
                value = value.get(f"of:{owner}".encode()) and f"of {owner}: {int(value[f'of:{owner}'.encode()])}"
            if owner in key or owner in str(value):
                found[key] = value
        return found


@pytest.fixture
def data(redis: Redis) -> Data:
    data = Data(redis)
    data.fill(ADA)
    data.fill(BOB)
    return data


def without_shared(found: dict[str, Any]) -> dict[str, Any]:
    """Leave out what both owners use."""
    return {key: value for key, value in found.items() if "5a" * 32 not in key and not key.startswith("i2i:queue:")}


def test_data_of_one_owner_is_deleted(data: Data) -> None:
    bobs, blobs = without_shared(data.of(BOB)), set(data.store._blobs)
    assert len(without_shared(data.of(ADA))) == len(bobs) > 20
    forgotten = data.forget(ADA)
    assert forgotten == Forgotten(
        jobs=7, uploads=2, webhooks=1, idempotency_keys=8, rate_limits=forgotten.rate_limits, gone_jobs=10
    )
    assert forgotten.rate_limits >= 1
    assert data.of(ADA) == {}
    assert without_shared(data.of(BOB)) == bobs
    left = set(data.store._blobs)
    assert {upload_key("5a" * 32), input_key("5a" * 32), upload_key("be" * 32), input_key("be" * 32)} < left
    gone = blobs - left
    assert {upload_key("ad" * 32), input_key("ad" * 32)} < gone
    assert len(gone) == 3  # and the result of the running job
    assert data.forget(ADA) == Forgotten(0, 0, 0, 0, 0, 0)


def test_deletion_continues_after_an_error_of_the_store(data: Data) -> None:
    attempts = 0
    while True:
        data.store.deletions, data.store.fails_at = 0, 2 if attempts < 20 else None
        attempts += 1
        try:
            data.forget(ADA)
        except OSError:
            continue
        break
    assert attempts > 3
    assert data.of(ADA) == {}
    data.store.fails_at = None
    # Retention deletes the blobs at which the store has failed.
    for key in data.redis.zrange("i2i:inputs", 0, -1):
        data.redis.zadd("i2i:inputs", {key: 1}, xx=True)
    data.eraser.delete_claimed(*data.jobs.input_images.claim_unused())
    for job_id in data.redis.zrange("i2i:expiring", 0, -1):
        data.eraser.expire_job(job_id.decode())
    assert not [key for key in data.store._blobs if "ad" * 32 in key]


def test_damaged_records_and_lists_are_deleted(data: Data) -> None:
    jobs_of_ada = JOBS_OF_OWNER.format(owner=ADA)
    [one] = map(bytes.decode, data.redis.zrange(jobs_of_ada, 0, 0))
    data.redis.hset(JOB.format(id=one), "spec", "{")
    data.redis.zadd(jobs_of_ada, {"0" * 32: 1})
    data.forget(ADA)
    assert data.of(ADA) == {}


def test_data_is_deleted_while_redis_has_no_memory(data: Data) -> None:
    with full_memory(data.redis):
        assert reason_of_rejection(lambda: data.submit(BOB, OWN_IMAGES[BOB], "another"))
        assert data.forget(ADA).jobs == 7
    assert data.of(ADA) == {}


def test_jobs_batches_and_uploads_end_while_redis_has_no_memory(data: Data) -> None:
    jobs, retention = data.jobs, Retention(data.redis, data.store)
    late = jobs.submit(make_spec(), JobOptions(owner=BOB, deadline_s=-1)).id
    expired = jobs.submit(make_spec(), JobOptions(owner=BOB, result_ttl_s=-1)).id
    jobs.cancel(expired)
    [batch] = OwnerData(data.redis, ADA).batch_ids()
    with full_memory(data.redis):
        data.eraser.delete_batch(batch)
        data.eraser.delete_upload("ad" * 32)
        jobs.cancel_jobs(jobs.queued_ids("demo", 2))
        retention.sweep()
        assert reason_of_rejection(lambda: data.submit(ADA, OWN_IMAGES[ADA], "another"))
    assert jobs.batches.get(batch) is None
    assert upload_key("ad" * 32) not in data.store._blobs
    cancelled = jobs.job_store.get(late)
    assert cancelled
    assert cancelled.status == "cancelled"
    assert not data.redis.exists(JOB.format(id=expired))


def reason_of_rejection(submit: Callable[[], object]) -> str | None:
    with pytest.raises(ResponseError) as caught:
        submit()
    return outage.reason_of(caught.value)
