"""Quotas of stored images, a full memory of Redis, and a full disk over real HTTP."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from PIL import Image
from redis import Redis

from img2img.app.backends.readiness import MAX_AGE_S
from img2img.app.settings import STORED_BYTES_PER_KEY, ApiSettings
from img2img.free_disk import FreeDisk, parse_reserve
from img2img.redis import keys
from img2img.redis.job_queue import JobQueue
from tests.http.test_limits import SMALL, clients_of
from tests.support.images import encoded, gradient
from tests.support.problems import assert_problem
from tests.support.redis_servers import full_memory

AT_ONCE = 20


def noise(side: int = 100) -> bytes:
    """Return a PNG of about 30 kB that no other call returns."""
    return encoded(Image.frombytes("RGB", (side, side), os.urandom(3 * side * side)), compress_level=0)


SIZE = len(noise())


def upload(client: httpx.Client, image: bytes | None = None) -> httpx.Response:
    return client.post("/images", files={"image": image or noise()})


def test_quota_of_a_key_holds_under_parallel_uploads(settings: ApiSettings, redis: Redis, queue: JobQueue) -> None:
    with clients_of(settings, redis, 2, max_stored_bytes_per_key=5 * SIZE) as (ada, bob):
        with ThreadPoolExecutor(AT_ONCE) as pool:
            responses = list(pool.map(lambda _: upload(ada), range(AT_ONCE)))
        accepted = [response for response in responses if response.status_code == 201]
        assert len(accepted) == 5
        assert queue.input_images.stored_bytes() == 5 * SIZE
        for response in responses:
            if response.status_code != 201:
                problem = assert_problem(response, 507, "storage_quota_exceeded")
                assert (problem["used"], problem["limit"]) == (5 * SIZE, 5 * SIZE)
                frees_in = datetime.fromisoformat(problem["frees_at"]) - datetime.now(UTC)
                assert timedelta(hours=23) < frees_in <= timedelta(hours=24)
                assert 80_000 < int(response.headers["retry-after"]) <= 86_400
        assert upload(bob).status_code == 201
        # Images that are stored already can be sent and used.
        sha256 = accepted[0].json()["sha256"]
        assert ada.post("/img2img?dry_run=true", json={"image": sha256}).status_code == 200


def test_inputs_of_jobs_count(settings: ApiSettings, redis: Redis, queue: JobQueue) -> None:
    small = encoded(gradient(16, 16))
    with clients_of(settings, redis, max_stored_bytes_per_key=SIZE + 100) as (client,):
        assert client.post("/img2img", files={"image": small}, data=SMALL).status_code == 202
        used = queue.input_images.stored_bytes()
        assert 100 < used < 10_000
        before = queue.depth("demo")
        assert_problem(upload(client), 507, "storage_quota_exceeded")
        refused = client.post("/img2img", files={"image": noise()}, data=SMALL)
        assert_problem(refused, 507, "storage_quota_exceeded")
        assert queue.depth("demo") == before
        assert client.post("/img2img", files={"image": small}, data=SMALL).status_code == 202, "the same input"
        assert queue.input_images.stored_bytes() == used


def test_quota_of_all_keys(settings: ApiSettings, redis: Redis) -> None:
    with clients_of(settings, redis, 2, max_stored_bytes=2 * SIZE) as (ada, bob):
        assert [upload(ada).status_code, upload(bob).status_code] == [201, 201]
        problem = assert_problem(upload(ada), 507, "storage_full")
        assert (problem["used"], problem["limit"]) == (2 * SIZE, 2 * SIZE)


def test_keys_have_a_quota_by_default(settings: ApiSettings) -> None:
    assert settings.stored_bytes_per_owner is None, "no keys: all clients are one owner"
    with_keys = settings.model_copy(update={"keys": "required"})
    assert with_keys.stored_bytes_per_owner == STORED_BYTES_PER_KEY
    assert with_keys.model_copy(update={"max_stored_bytes_per_key": 5}).stored_bytes_per_owner == 5


def test_full_disk_refuses_what_would_be_stored(settings: ApiSettings, redis: Redis) -> None:
    with clients_of(settings, redis, min_free_disk="99.99%") as (client,):
        problem = assert_problem(upload(client), 507, "storage_full")
        assert "except for 99.99%" in problem["detail"]
        refused = client.post("/img2img", files={"image": noise()}, data=SMALL)
        assert_problem(refused, 507, "storage_full")
        assert client.post("/img2img?dry_run=true", files={"image": noise()}, data=SMALL).status_code == 200
        ready = client.get("/readyz").json()
        assert (ready["ready"], ready["store"]["ok"]) == (False, False)
        assert not redis.keys("i2i:inputs*")


def test_redis_without_memory_is_named(settings: ApiSettings, redis: Redis, queue: JobQueue) -> None:
    with clients_of(settings, redis) as (client,):
        job = client.post("/img2img", files={"image": noise()}, data=SMALL).json()["id"]
        assert client.get("/readyz").status_code == 200
        with full_memory(redis):
            for response in (client.post("/img2img", files={"image": noise()}, data=SMALL), upload(client)):
                assert "Redis has no memory left (maxmemory)" in assert_problem(response, 503, "unavailable")["detail"]
                assert int(response.headers["retry-after"]) > 0
            time.sleep(MAX_AGE_S)
            ready = client.get("/readyz")
            assert ready.status_code == 503
            assert ready.json()["redis"] == {"ok": False, "detail": "Redis has no memory left (maxmemory)"}
            assert client.get(f"/jobs/{job}").status_code == 200
            assert client.post(f"/jobs/{job}/cancel").json()["status"] == "cancelled"
            assert client.delete(f"/jobs/{job}").status_code == 204
        time.sleep(MAX_AGE_S)
        assert client.get("/readyz").status_code == 200
        assert upload(client).status_code == 201


def test_models_are_listed_while_redis_rejects_writes(settings: ApiSettings, redis: Redis) -> None:
    with clients_of(settings, redis) as (client,):
        redis.sadd(keys.WORKERS, "expired")
        redis.replicaof("127.0.0.1", 1)
        try:
            assert client.get("/models").status_code == 200
            assert client.get("/readyz").json()["redis"]["detail"] == "this Redis is a read-only replica"
        finally:
            redis.replicaof("NO", "ONE")


@pytest.mark.parametrize("text", ["", "5", "x%", "-1%", "100%", "nan%", "1.5", "-3", "5 %%"])
def test_reserves(text: str) -> None:
    if text == "5":
        assert parse_reserve(text) == (0.0, 5)
        return
    with pytest.raises(ValueError, match="Input should be a percentage"):
        parse_reserve(text)


def test_buckets_have_no_disk() -> None:
    FreeDisk("s3://bucket/prefix", "99%").take(10**18)
