"""Idempotency keys over real HTTP: repeated requests create one job."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from redis import Redis

from img2img.redis.idempotency import KEPT_S
from img2img.redis.job_queue import JobQueue
from tests.support.images import encoded, gradient
from tests.support.problems import assert_problem

Post = Callable[..., httpx.Response]


@pytest.fixture
def post(http: httpx.Client, image_bytes: bytes) -> Post:
    """Submit with an idempotency key."""

    def send(
        key: str = "order-17", image: bytes = image_bytes, path: str = "/img2img", **fields: Any
    ) -> httpx.Response:
        return http.post(path, headers={"Idempotency-Key": key}, files={"image": image}, data=fields)

    return send


def test_repeated_request_returns_the_current_job(http: httpx.Client, post: Post) -> None:
    first = post(prompt="a house")
    assert "idempotency-replayed" not in first.headers
    http.post(f"/jobs/{first.json()['id']}/cancel")
    again = post(prompt="a house", num_images="1")
    assert (again.status_code, again.headers["idempotency-replayed"]) == (202, "true")
    assert again.headers["location"] == first.headers["location"]
    assert again.json() == http.get(first.headers["location"]).json()
    assert again.json()["status"] == "cancelled"


def test_fifty_parallel_requests_create_one_job(post: Post, queue: JobQueue, redis: Redis) -> None:
    small = encoded(gradient(16, 16))
    with ThreadPoolExecutor(50) as pool:
        responses = list(pool.map(lambda _: post(image=small), range(50)))
    assert {response.status_code for response in responses} == {202}
    assert len({response.json()["id"] for response in responses}) == 1
    assert sum("idempotency-replayed" not in response.headers for response in responses) == 1
    assert queue.depth("demo") == redis.zcard("i2i:jobs") == 1
    [inputs] = redis.keys("i2i:inputs:jobs:*")
    assert redis.hget(inputs, "") == b"1"
    assert not redis.exists("i2i:inputs")


def test_same_key_with_another_request_is_rejected(post: Post, queue: JobQueue) -> None:
    same: dict[str, Any] = {"prompt": "a house"}
    post(**same)
    for other in ({"prompt": "a hut"}, same | {"priority": "high"}, same | {"image": encoded(gradient(16, 16))}):
        [error] = assert_problem(post(**other), 422, "idempotency_key_reused")["errors"]
        assert error["field"] == "Idempotency-Key"
    assert queue.depth("demo") == 1
    assert post(key="order-18", prompt="a hut").status_code == 202


def test_idempotency_key_expires_after_a_day(post: Post, redis: Redis) -> None:
    post()
    [key] = redis.keys("i2i:idempotency:*")
    assert KEPT_S - 10 < redis.ttl(key) <= KEPT_S == 24 * 3600


def test_repeated_request_of_a_deleted_job_creates_none(http: httpx.Client, post: Post) -> None:
    http.delete(f"/jobs/{post().json()['id']}")
    assert_problem(post(), 410, "deleted")


def test_rejected_request_and_dry_run_store_no_key(post: Post, redis: Redis) -> None:
    assert_problem(post(width=100), 422, "invalid_parameter")
    assert post(path="/img2img?dry_run=true").status_code == 200
    assert not redis.keys("i2i:idempotency:*")
    assert post().status_code == 202


@pytest.mark.parametrize("key", ["", "x" * 256, "two words", "caf\u00e9"])
def test_invalid_idempotency_keys_are_rejected(http: httpx.Client, image_bytes: bytes, key: str) -> None:
    response = http.post("/img2img", headers={"Idempotency-Key": key.encode("latin-1")}, files={"image": image_bytes})
    [error] = assert_problem(response, 422, "invalid_parameter")["errors"]
    assert error["field"] == "Idempotency-Key"
