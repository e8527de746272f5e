"""Quotas of stored images and their retention, with a real Redis: exact counts, and blobs that cannot be deleted."""

import logging
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import ResponseError

from img2img.blobs import ObjectStore
from img2img.domain.blob_keys import input_key, result_key, upload_key
from img2img.domain.job import JobOptions
from img2img.domain.parameters import Task
from img2img.domain.presigned_upload import PresignedUpload
from img2img.erasure import LATE_IMAGES_S, Eraser
from img2img.errors import QuotaExceeded, StorageFull
from img2img.redis import keys, outage
from img2img.redis.idempotency import IdempotencyKey
from img2img.redis.input_images import InputImageRefs
from img2img.redis.job_queue import InputsDeleted, JobQueue
from img2img.redis.queue_limits import QueueLimits
from img2img.worker.queue.retention import FIRST_RETRY_S, Retention
from tests.support.processes import Service
from tests.support.specs import make_spec
from tests.support.uploads import expire_upload


@pytest.fixture
def redis(idle_service: Service) -> Redis:
    return idle_service.redis


@pytest.fixture
def store(idle_service: Service) -> ObjectStore:
    return idle_service.store


def images_with(redis: Redis, in_all: int | None = None, of_owner: int | None = None) -> InputImageRefs:
    limits = QueueLimits(max_stored_bytes=in_all, max_stored_bytes_per_owner=of_owner)
    return JobQueue(redis, limits).input_images


def digest(index: int) -> str:
    return f"{index:064x}"


def counters(redis: Redis) -> dict[str, int]:
    return {name.decode(): int(value) for name, value in redis.hgetall(keys.STORED_BYTES).items()}


def test_quota_of_an_owner_is_exact_under_parallel_uploads(redis: Redis) -> None:
    images = images_with(redis, of_owner=1000)

    def upload(index: int) -> bool:
        try:
            images.retain_upload(upload_key(digest(index)), 30, 60, "ada")
        except QuotaExceeded:
            return False
        return True

    with ThreadPoolExecutor(16) as pool:
        accepted = sum(pool.map(upload, range(200)))
    assert accepted == 1000 // 30
    assert counters(redis) == {"all": accepted * 30, "of:ada": accepted * 30}
    assert images.stored_bytes("ada") == images.stored_bytes() == accepted * 30


def test_refusal_names_use_limit_and_time(redis: Redis) -> None:
    images = images_with(redis, of_owner=100)
    images.retain_upload("uploads/other", 90, 10, "bob")
    images.retain_upload("uploads/a", 60, 300, "ada")
    images.retain_upload("uploads/b", 30, 900, "ada")
    before = redis.hgetall(keys.STORED_BYTES), redis.zrange(keys.INPUT_IMAGES, 0, -1)
    with pytest.raises(QuotaExceeded, match="take 90 of 100 bytes") as caught:
        images.retain({"inputs/c": 6, "inputs/d": 6}, "ada")
    assert (caught.value.details["used"], caught.value.details["limit"]) == (90, 100)
    assert 290 < (caught.value.retry_after_s or 0) <= 300, "when the first of her own images expires"
    assert before == (redis.hgetall(keys.STORED_BYTES), redis.zrange(keys.INPUT_IMAGES, 0, -1)), "all or none"
    images.retain_upload("uploads/c", 6, 60, "ada")


def test_images_that_are_stored_already_always_fit(redis: Redis) -> None:
    images = images_with(redis, of_owner=100)
    for _ in range(3):
        images.retain_upload("uploads/a", 100, 60, "ada")
    assert counters(redis) == {"all": 100, "of:ada": 100}


def test_shared_image_counts_for_each_owner_and_once_in_all(redis: Redis) -> None:
    images = images_with(redis, in_all=150, of_owner=100)
    images.retain_upload("uploads/a", 100, 60, "ada")
    images.retain_upload("uploads/a", 100, 60, "bob")
    assert counters(redis) == {"all": 100, "of:ada": 100, "of:bob": 100}
    with pytest.raises(StorageFull, match="All stored images take 100 of 150 bytes") as caught:
        images.retain_upload("uploads/b", 60, 60, "eve")
    assert not isinstance(caught.value, QuotaExceeded)
    images.retain_upload("uploads/c", 50, 60, "eve")


def test_expired_images_free_the_quota(redis: Redis, store: ObjectStore) -> None:
    images, retention = images_with(redis, of_owner=100), Retention(redis, store)
    images.retain_upload("uploads/a", 60, -1, "ada")
    images.retain_upload("uploads/a", 60, -1, "bob")
    images.retain_upload("uploads/b", 40, 60, "ada")
    retention.sweep()
    assert counters(redis) == {"all": 40, "of:ada": 40}
    images.retain_upload("uploads/c", 60, -1, "ada")
    expire_upload(redis, "uploads/b")
    retention.sweep()
    assert not redis.keys("i2i:inputs*")


def submit(queue: JobQueue, owner: str, *images: str, size: int = 70, ttl_s: float = 60) -> str:
    """Queue a job of two inputs at most, as the API server does."""
    region = {"mask": images[-1], "canvas": (64, 64), "box": (0, 0, 64, 64)}
    spec = make_spec(Task.INPAINT, image=images[0], region=region)
    generations = queue.input_images.retain(dict.fromkeys(map(input_key, spec.inputs), size), owner)
    return queue.submit(spec, JobOptions(owner=owner, result_ttl_s=ttl_s), generations).id


def test_inputs_count_until_the_last_job_of_their_owner_is_deleted(redis: Redis, store: ObjectStore) -> None:
    queue, retention = JobQueue(redis, QueueLimits(max_stored_bytes_per_owner=100)), Retention(redis, store)
    first, second = (submit(queue, "ada", digest(1), ttl_s=0) for _ in range(2))
    other = submit(queue, "bob", digest(1))
    retention.sweep()
    assert counters(redis) == {"all": 70, "of:ada": 70, "of:bob": 70}
    queue.cancel(first)
    retention.sweep()
    assert counters(redis) == {"all": 70, "of:ada": 70, "of:bob": 70}
    queue.cancel(second)
    retention.sweep()
    assert counters(redis) == {"all": 70, "of:bob": 70}
    Eraser(queue, store).delete_job(other)
    assert counters(redis) == {}
    assert not redis.keys("i2i:inputs*")


def test_inputs_of_refused_and_repeated_submits_do_not_count(redis: Redis, store: ObjectStore) -> None:
    queue = JobQueue(redis, QueueLimits(max_stored_bytes_per_owner=100))
    eraser, key = Eraser(queue, store), input_key(digest(1))
    generations = queue.input_images.retain({key: 70}, "ada")
    assert counters(redis) == {"all": 70}, "reserved"
    eraser.drop_unused([key])
    assert counters(redis) == {}
    with pytest.raises(InputsDeleted):
        queue.submit(make_spec(image=digest(1)), JobOptions(owner="ada"), generations)
    assert counters(redis) == {}
    again = IdempotencyKey("again", "f", "ada")
    for _ in range(2):
        generations = queue.input_images.retain({key: 70}, "ada")
        queue.submit_idempotent(again, make_spec(image=digest(1)), JobOptions(owner="ada"), generations)
        eraser.drop_unused([key])
        assert counters(redis) == {"all": 70, "of:ada": 70}


def test_quota_of_an_owner_is_exact_under_parallel_submits(redis: Redis) -> None:
    """All of them reserve their inputs before the first one is submitted."""
    queue = JobQueue(redis, QueueLimits(max_stored_bytes_per_owner=1000))
    reserved = [queue.input_images.retain({input_key(digest(index)): 30}, "ada") for index in range(100)]

    def submit_one(index: int) -> bool:
        try:
            queue.submit(make_spec(image=digest(index)), JobOptions(owner="ada"), reserved[index])
        except QuotaExceeded:
            return False
        return True

    with ThreadPoolExecutor(16) as pool:
        accepted = sum(pool.map(submit_one, range(100)))
    assert accepted == 1000 // 30
    assert counters(redis) == {"all": 3000, "of:ada": accepted * 30}
    queue.input_images.drop_unused([input_key(digest(index)) for index in range(100)])
    assert counters(redis) == {"all": accepted * 30, "of:ada": accepted * 30}


def test_an_upload_frees_the_quota_of_each_owner_at_its_time(redis: Redis, store: ObjectStore) -> None:
    images, retention = images_with(redis), Retention(redis, store)
    images.retain_upload("uploads/a", 60, 600, "ada")
    images.retain_upload("uploads/a", 60, -1, "bob")
    store.put("uploads/a", b"png")
    retention.sweep()
    assert counters(redis) == {"all": 60, "of:ada": 60}
    assert store.get("uploads/a")
    assert (redis.zscore(keys.INPUT_IMAGES, "uploads/a") or 0) > time.time() + 500
    images.retain_upload("uploads/a", 60, 600, "bob")
    assert images.visible_to("ada").delete_upload("uploads/a")
    assert not images.visible_to("ada").delete_upload("uploads/a")
    assert counters(redis) == {"all": 60, "of:bob": 60}
    images.retain_upload("uploads/a", 60, 600, "ada")
    assert images.delete_upload("uploads/a")
    assert images.claim_unused() == ["uploads/a"]
    assert counters(redis) == {}


def test_time_of_a_refusal_is_that_of_the_first_job_whose_inputs_are_deleted(redis: Redis) -> None:
    queue = JobQueue(redis, QueueLimits(max_stored_bytes_per_owner=100))
    shared = [submit(queue, "ada", digest(1), size=40, ttl_s=100 * n) for n in (1, 9)]
    alone = submit(queue, "ada", digest(2), size=40, ttl_s=300)
    submit(queue, "bob", digest(3), size=40, ttl_s=50)
    with pytest.raises(QuotaExceeded) as caught:
        submit(queue, "ada", digest(4), size=40)
    assert caught.value.details["frees_at"] is None, "no job has ended"
    for job_id in (*shared[:1], alone):
        queue.cancel(job_id)
    with pytest.raises(QuotaExceeded) as caught:
        submit(queue, "ada", digest(4), size=40)
    assert 290 < (caught.value.retry_after_s or 0) <= 300


def test_images_of_an_earlier_version_count_when_they_are_sent_again(redis: Redis, store: ObjectStore) -> None:
    queue, blob = JobQueue(redis), input_key(digest(1))
    job = queue.submit(make_spec(image=digest(1)), JobOptions(owner="ada"))
    assert counters(redis) == {}
    submit(queue, "bob", digest(1))
    assert counters(redis) == {"all": 70, "of:ada": 70, "of:bob": 70}
    Eraser(queue, store).delete_job(job.id)
    assert counters(redis) == {"all": 70, "of:bob": 70}
    assert queue.input_images.is_expired(blob) is False


class PartlyLocked:
    """A store with blobs that cannot be deleted."""

    def __init__(self, store: ObjectStore, *locked: str) -> None:
        self._store = store
        self.locked = set(locked)
        self.attempts: list[str] = []
        self.is_local = True

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)

    def delete(self, *blobs: str) -> None:
        self.attempts += blobs
        if self.locked & {*blobs}:
            raise PermissionError("Object is WORM protected")
        self._store.delete(*blobs)


def test_blobs_that_cannot_be_deleted_delay_no_others(
    redis: Redis, store: ObjectStore, caplog: pytest.LogCaptureFixture
) -> None:
    queue = JobQueue(redis)
    jobs = []
    for index in range(30):
        blob = upload_key(digest(index))
        queue.input_images.retain_upload(blob, 3, -100 + index, "ada")
        store.put(blob, b"png")
        job = queue.submit(make_spec(), JobOptions(result_ttl_s=-1))
        queue.cancel(job.id)
        store.put(result_key(job.id, 0), b"png")
        jobs.append(job.id)
    locked = PartlyLocked(store, upload_key(digest(0)), result_key(jobs[0], 0), result_key(jobs[1], 0))
    retention = Retention(redis, locked)  # type: ignore[arg-type]
    with caplog.at_level(logging.ERROR):
        retention.sweep()
        retention.sweep()
    assert len(caplog.records) == 2, "jobs and inputs, each once"
    assert "WORM" in caplog.text
    assert store.get(result_key(jobs[0], 0))
    assert store.get(upload_key(digest(0)))
    assert not any(store.get(result_key(job, 0)) for job in jobs[2:])
    assert not any(store.get(upload_key(digest(index))) for index in range(1, 30))
    locked.attempts.clear()
    retention.sweep()
    assert locked.attempts == [], "not before its time"
    [(_, again_at)] = redis.zrange(keys.INPUT_IMAGES, 0, -1, withscores=True)
    assert FIRST_RETRY_S - 10 < again_at - time.time() <= FIRST_RETRY_S + 1
    for delay_s in (2 * FIRST_RETRY_S, 4 * FIRST_RETRY_S):
        redis.zadd(keys.INPUT_IMAGES, {upload_key(digest(0)): 1})
        retention.sweep()
        [(_, again_at)] = redis.zrange(keys.INPUT_IMAGES, 0, -1, withscores=True)
        assert delay_s - 10 < again_at - time.time() <= delay_s + 1, "twice as long each time"
    locked.locked.clear()
    redis.zadd(keys.INPUT_IMAGES, {upload_key(digest(0)): 1})
    redis.zadd(keys.EXPIRING_JOBS, dict.fromkeys(jobs[:2], 1))
    retention.sweep()
    assert not store.get(upload_key(digest(0)))
    assert not redis.keys("i2i:inputs*")
    assert not redis.exists(keys.EXPIRING_JOBS)


def test_deletion_of_a_killed_worker_is_repeated(redis: Redis, store: ObjectStore) -> None:
    images = images_with(redis)
    images.retain_upload("uploads/a", 3, -1, "ada")
    store.put("uploads/a", b"png")
    assert images.claim_unused() == ["uploads/a"]
    assert images.claim_unused() == [], "claimed"
    redis.zadd(keys.INPUT_IMAGES, {"uploads/a": 1})
    Retention(redis, store).sweep()
    assert store.get("uploads/a") is None
    assert not redis.keys("i2i:inputs*")


def test_image_sent_while_it_is_deleted_stays_listed(redis: Redis) -> None:
    images = images_with(redis)
    images.retain_upload("uploads/a", 3, -1, "ada")
    assert images.claim_unused() == ["uploads/a"]
    redis.delete(keys.INPUT_IMAGE_DELETION.format(key="uploads/a"))
    images.retain_upload("uploads/a", 3, 600, "ada")
    images.confirm_deleted("uploads/a")
    assert (redis.zscore(keys.INPUT_IMAGES, "uploads/a") or 0) > time.time() + 500


def deny_writes(redis: Redis) -> None:
    """Have Redis fail to save a snapshot, after which it rejects writes, as it does when its disk is full."""
    folder = Path(redis.config_get("dir")["dir"])
    redis.config_set("save", "3600 1000000")
    redis.config_set("stop-writes-on-bgsave-error", "yes")
    blocked = folder / "dump.rdb"
    blocked.mkdir(exist_ok=True)
    (blocked / "x").touch()
    redis.bgsave()
    while redis.info("persistence")["rdb_bgsave_in_progress"]:
        time.sleep(0.01)
    assert redis.info("persistence")["rdb_last_bgsave_status"] == "err"


def allow_writes(redis: Redis) -> None:
    shutil.rmtree(Path(redis.config_get("dir")["dir"]) / "dump.rdb")
    redis.bgsave()
    while redis.info("persistence")["rdb_bgsave_in_progress"]:
        time.sleep(0.01)


def test_expired_blobs_are_deleted_while_redis_rejects_writes(redis: Redis, store: ObjectStore) -> None:
    queue, retention = JobQueue(redis), Retention(redis, store)
    for index in range(700):
        blob = upload_key(digest(index))
        queue.input_images.retain_upload(blob, 3, -1 if index < 600 else 60, "ada")
        store.put(blob, b"png")
    used = upload_key(digest(0))
    redis.hset(keys.INPUT_IMAGE_USES.format(key=used), mapping={"#": "generation", "ada": 1})
    prolonged = upload_key(digest(1))
    redis.zadd(keys.UPLOAD_OWNERS.format(key=prolonged), {"bob": time.time() + 60})
    own, shared = "aa" * 32, "bb" * 32
    done = submit(queue, "ada", own, shared, ttl_s=-1)
    submit(queue, "bob", shared)
    for blob in (own, shared):
        store.put(input_key(blob), b"png")
    queue.cancel(done)
    store.put(result_key(done, 0), b"png")
    late = queue.submit(make_spec(), JobOptions(deadline_s=-1))
    deny_writes(redis)
    assert outage.why_not_writable(redis) == "the disk of Redis is full or cannot be written"
    for _ in range(2):
        with pytest.raises(ResponseError, match="MISCONF"):
            retention.sweep()
    kept = [index for index in range(700) if store.get(upload_key(digest(index)))]
    assert kept == [0, 1, *range(600, 700)]
    assert store.get(result_key(done, 0)) is None
    assert store.get(input_key(own)) is None
    assert store.get(input_key(shared)), "another job needs it"
    allow_writes(redis)
    assert outage.why_not_writable(redis) is None
    redis.hdel(keys.INPUT_IMAGE_USES.format(key=used), "ada")
    for _ in range(7):
        retention.sweep()
    assert queue.input_images.stored_bytes() == 303 + 70
    assert not redis.exists(keys.JOB.format(id=done))
    record = queue.job_store.get(late.id)
    assert record
    assert record.status == "cancelled"


def test_image_that_is_sent_again_during_such_a_deletion_is_put_back(redis: Redis, store: ObjectStore) -> None:
    images = images_with(redis)
    blob = upload_key(digest(1))
    images.retain_upload(blob, 3, -1, "ada")
    store.put(blob, b"png")

    class Racing(PartlyLocked):
        """A client sends the image again between the check and the deletion: Redis accepts writes again."""

        def delete(self, *blobs: str) -> None:
            allow_writes(redis)
            images.retain_upload(blob, 3, 60, "bob")
            assert not store.put(blob, b"png"), "the blob exists, so the client's copy is not written"
            super().delete(*blobs)

    deny_writes(redis)
    with pytest.raises(ResponseError, match="MISCONF"):
        Retention(redis, Racing(store)).sweep()  # type: ignore[arg-type]
    assert store.get(blob) == b"png"


def test_write_probe_writes_nothing(redis: Redis) -> None:
    offset = redis.info("persistence")["aof_current_size"]
    outage.check_writable(redis)
    assert not redis.exists(keys.WRITE_PROBE)
    time.sleep(0.1)
    assert redis.info("persistence")["aof_current_size"] == offset


def test_reasons_of_redis_are_told_apart(redis: Redis) -> None:
    redis.config_set("maxmemory", redis.info("memory")["used_memory"] - 100_000)
    assert outage.why_not_writable(redis) == "Redis has no memory left (maxmemory)"
    with pytest.raises(ResponseError) as caught:
        JobQueue(redis).submit(make_spec())
    assert outage.reason_of(caught.value) == "Redis has no memory left (maxmemory)"
    redis.config_set("maxmemory", 0)
    redis.replicaof("127.0.0.1", 1)
    assert outage.why_not_writable(redis) == "this Redis is a read-only replica"
    redis.replicaof("NO", "ONE")
    assert outage.why_not_writable(redis) is None
    assert outage.reason_of(ResponseError("WRONGTYPE")) is None


def test_image_that_is_sent_after_its_upload_was_deleted_is_deleted_too(redis: Redis, store: ObjectStore) -> None:
    queue = JobQueue(redis)
    eraser, now = Eraser(queue, store), queue.clock.now()
    upload = PresignedUpload.new(digest(1), 5, None, now)
    old = PresignedUpload.new(digest(1), 5, None, now - 24 * 3600)
    for one in (upload, old):
        queue.input_images.retain_upload(upload_key(one.id), 5, 3600, "ada")
        store.put(upload_key(one.id), b"image")
        eraser.delete_upload(one.id)
        assert store.get(upload_key(one.id)) is None
    assert counters(redis) == {}
    # Its URL is valid for some time.
    store.put(upload_key(upload.id), b"image")
    [(listed, due_at)] = redis.zrange(keys.INPUT_IMAGES, 0, -1, withscores=True)
    assert (listed.decode(), due_at) == (upload_key(upload.id), upload.expires_at + LATE_IMAGES_S)
    redis.zadd(keys.INPUT_IMAGES, {listed: now})
    eraser.delete_claimed(*queue.input_images.claim_unused())
    assert store.get(upload_key(upload.id)) is None
    assert counters(redis) == {}
