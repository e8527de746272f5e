"""Limits per API key over real HTTP: rate and queued jobs."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import httpx
import pytest
from redis import Redis

from img2img.app.settings import ApiSettings
from img2img.redis.api_keys import ApiKeys
from img2img.redis.job_queue import JobQueue
from img2img.redis.model_registry import ModelRegistry
from tests.support.authenticated import authenticated_server, client_with
from tests.support.images import encoded, gradient
from tests.support.model_cards import CARD
from tests.support.problems import assert_problem

SMALL = {"num_inference_steps": "1", "strength": "1", "guidance_scale": "1"}  # 128 x 128 x 2: 0.032768 megapixel-steps
AT_ONCE = 30


@pytest.fixture(scope="module")
def small() -> bytes:
    return encoded(gradient(16, 16))


@contextmanager
def clients_of(
    settings: ApiSettings, redis: Redis, count: int = 1, **changes: object
) -> Iterator[tuple[httpx.Client, ...]]:
    """Clients with one key each, of a service with these settings."""
    redis.flushall()
    ModelRegistry(redis).register("test-worker", [CARD], ttl_s=60)
    with ExitStack() as stack:
        url = stack.enter_context(authenticated_server(settings, **changes))
        yield tuple(stack.enter_context(client_with(url, ApiKeys(redis))) for _ in range(count))


def post(client: httpx.Client, image: bytes, path: str = "/img2img", **headers: str) -> httpx.Response:
    return client.post(path, files={"image": image}, data=SMALL, headers=headers)


def post_at_once(clients: tuple[httpx.Client, ...], image: bytes) -> list[httpx.Response]:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(lambda n: post(clients[n % len(clients)], image), range(AT_ONCE)))


def test_rate_limit_counts_cost_per_key(settings: ApiSettings, redis: Redis, small: bytes) -> None:
    with clients_of(settings, redis, 2, rate_limit="1/hour") as (ada, bob):
        dry = post(ada, small, "/img2img?dry_run=true").json()
        most = int(1 / dry["cost"])
        left = [post(ada, small).headers["ratelimit"] for _ in range(3)]
        assert left == ['"cost";r=0'] * 3
        with ThreadPoolExecutor(AT_ONCE) as pool:
            responses = list(pool.map(lambda _: post(ada, small), range(AT_ONCE)))
        accepted = [response for response in responses if response.status_code == 202]
        rejected = [response for response in responses if response.status_code != 202]
        assert len(accepted) + 3 <= most
        assert (most - 3) - len(accepted) <= 1  # costs are rounded up to thousandths
        for response in rejected:
            assert_problem(response, 429, "rate_limited")
            assert 3000 < int(response.headers["retry-after"]) <= 7200
            assert response.headers["ratelimit-policy"] == '"cost";q=1;w=3600'
        assert rejected
        assert post(bob, small).status_code == 202
        assert post(ada, small, "/img2img?dry_run=true").status_code == 200
        assert ada.get("/jobs").status_code == 200
        large = bob.post("/img2img", files={"image": small}, data={"num_inference_steps": "150", "num_images": "8"})
        assert_problem(large, 422, "job_too_expensive")
        assert "retry-after" not in large.headers


def test_repeated_request_is_not_counted(settings: ApiSettings, redis: Redis, small: bytes) -> None:
    with clients_of(settings, redis, rate_limit="1/hour") as (client,):
        key = {"Idempotency-Key": "order-17"}
        first = post(client, small, **key)
        while post(client, small).status_code == 202:
            pass
        again = post(client, small, **key)
        assert (again.status_code, again.json()["id"]) == (202, first.json()["id"])


def test_queue_limit_per_key_holds_under_parallel_submits(
    settings: ApiSettings, redis: Redis, queue: JobQueue, small: bytes
) -> None:
    with clients_of(settings, redis, 2, max_queued_per_key=7) as (ada, bob):
        responses = post_at_once((ada,), small)
        accepted = [response for response in responses if response.status_code == 202]
        assert len(accepted) == queue.depth("demo") == redis.zcard("i2i:jobs") == 7
        for response in responses:
            if response.status_code != 202:
                assert_problem(response, 429, "too_many_queued")
                assert int(response.headers["retry-after"]) > 0
        assert post(bob, small).status_code == 202
        ada.post(f"/jobs/{accepted[0].json()['id']}/cancel")
        assert [post(ada, small).status_code for _ in range(2)] == [202, 429]


def test_total_queue_limit_holds_under_parallel_submits(
    settings: ApiSettings, redis: Redis, queue: JobQueue, small: bytes
) -> None:
    with clients_of(settings, redis, 5, max_queued=7, max_queued_per_key=5) as clients:
        responses = post_at_once(clients, small)
        assert sum(response.status_code == 202 for response in responses) == queue.depth("demo") == 7
        rejected = post(clients[0], small)
        if rejected.status_code == 429:  # only the key with 5 jobs
            rejected = post(clients[1], small)
        assert_problem(rejected, 503, "queue_full")
        assert int(rejected.headers["retry-after"]) > 0
        [running, *_] = queue.job_store.active_ids()
        queue.job_store.start(running, execution="e", worker="w")
        accepted = [client for client in clients if post(client, small).status_code == 202]
        assert len(accepted) == 1


def test_parallel_submits_with_one_idempotency_key_count_once(
    settings: ApiSettings, redis: Redis, small: bytes
) -> None:
    with clients_of(settings, redis, max_queued_per_key=AT_ONCE) as (client,):
        with ThreadPoolExecutor(AT_ONCE) as pool:
            responses = list(pool.map(lambda _: post(client, small, **{"Idempotency-Key": "k"}), range(AT_ONCE)))
        assert {response.status_code for response in responses} == {202}
        assert len({response.json()["id"] for response in responses}) == 1


def test_rejection_by_a_full_queue_is_not_counted(settings: ApiSettings, redis: Redis, small: bytes) -> None:
    with clients_of(settings, redis, max_queued=1, rate_limit="1/hour") as (client,):
        spent = post(client, small)
        counted = redis.mget(redis.keys("i2i:rate*"))
        assert spent.status_code == 202
        assert counted
        assert_problem(post(client, small), 503, "queue_full")
        assert redis.mget(redis.keys("i2i:rate*")) == counted


def test_clients_without_keys_share_one_rate_limit(settings: ApiSettings, redis: Redis, small: bytes) -> None:
    with clients_of(settings, redis, 2, keys="auto", max_queued_per_key=1) as (one, other):
        assert post(one, small).status_code == 202
        assert_problem(post(other, small), 429, "too_many_queued")


def test_no_rate_limit_counts_nothing(http: httpx.Client, submit: Callable[..., httpx.Response], redis: Redis) -> None:
    response = submit(prompt="a house", num_inference_steps=150, num_images=8)
    assert response.status_code == 202
    assert not {"ratelimit", "ratelimit-policy"} & response.headers.keys()
    assert redis.keys("i2i:rate*") == []
