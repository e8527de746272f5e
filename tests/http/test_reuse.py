"""Requests with `reuse` over real HTTP: answered by the result of an earlier job, and by nothing else."""

import json
from base64 import b64encode
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from redis import Redis

from img2img.app.settings import ApiSettings
from img2img.blobs import ObjectStore
from img2img.domain.blob_keys import input_key, result_key
from img2img.domain.job import JobStatus
from img2img.redis import keys
from img2img.redis.job_queue import JobQueue
from img2img.redis.model_registry import ModelRegistry
from img2img.worker.queue.retention import Retention
from tests.http.test_limits import clients_of
from tests.support.finished_jobs import succeed
from tests.support.images import encoded, gradient
from tests.support.model_cards import CARD
from tests.support.problems import assert_problem

FINGERPRINT = "f" * 64
KNOWN = CARD.model_copy(update={"fingerprint": FINGERPRINT})
IMAGE = b64encode(encoded(gradient(160, 120))).decode()
REQUEST = {"image": IMAGE, "prompt": "a house", "seed": 5, "num_images": 2}

Run = Callable[..., str]


@pytest.fixture
def http(http: httpx.Client, redis: Redis) -> httpx.Client:
    """A client of a service whose workers report the fingerprint of the model."""
    ModelRegistry(redis).register("test-worker", [KNOWN], ttl_s=60)
    return http


@pytest.fixture
def run(http: httpx.Client, queue: JobQueue, store: ObjectStore) -> Run:
    """Submit a job, complete it as a worker does, and return its id."""

    def run(client: httpx.Client = http, *, withheld: tuple[int, ...] = (), **fields: Any) -> str:
        job = client.post("/img2img", json=REQUEST | fields).json()
        assert job["status"] == "queued", job
        succeed(job["id"], queue, store, withheld=withheld, fingerprint=FINGERPRINT)
        return str(job["id"])

    return run


def reuse(client: httpx.Client, **fields: Any) -> dict[str, Any]:
    response = client.post("/img2img", json=REQUEST | {"reuse": True} | fields)
    assert response.status_code == 202, response.text
    return dict(response.json())


def images_of(client: httpx.Client, job_id: str) -> list[bytes]:
    return [client.get(f"/jobs/{job_id}/images/{index}").content for index in (0, 1)]


def test_earlier_result_is_copied(http: httpx.Client, run: Run, store: ObjectStore, queue: JobQueue) -> None:
    earlier = run()
    job = reuse(http)
    assert (job["status"], job["reused_from"], job["progress"]["fraction"]) == ("succeeded", earlier, 1)
    assert job["id"] != earlier
    assert job == http.get(f"/jobs/{job['id']}").json()
    assert job["started_at"] == job["finished_at"] == job["created_at"] < job["expires_at"]
    original = http.get(f"/jobs/{earlier}").json()
    assert original["reused_from"] is None
    assert job["request"] == original["request"]
    assert [{**image, "url": ""} for image in job["images"]] == [{**image, "url": ""} for image in original["images"]]
    assert images_of(http, job["id"]) == images_of(http, earlier)
    assert queue.depth("demo") == 1, "the first job, which the test has taken from no queue"
    assert [one["id"] for one in http.get("/jobs?status=succeeded").json()["jobs"]] == [job["id"], earlier]
    # Either can be deleted without the other.
    assert http.delete(f"/jobs/{earlier}").status_code == 204
    assert [bool(store.get(result_key(one, 0))) for one in (earlier, job["id"])] == [False, True]
    assert store.get(input_key(original["request"]["image"])) is not None
    # The copy is as good as the original.
    assert reuse(http)["reused_from"] == job["id"]


@pytest.mark.parametrize(
    "fields",
    [
        {"seed": 6},
        {"prompt": "a hut"},
        {"num_images": 1},
        {"image": b64encode(encoded(gradient(160, 120, blue=9))).decode()},
    ],
)
def test_other_parameters_are_run(http: httpx.Client, run: Run, fields: dict[str, Any]) -> None:
    run()
    job = reuse(http, **fields)
    assert (job["status"], job["reused_from"]) == ("queued", None)


def test_defaults_are_resolved_before_jobs_are_compared(http: httpx.Client, run: Run) -> None:
    earlier = run()
    resolved = http.get(f"/jobs/{earlier}").json()["request"]
    given = {name: resolved[name] for name in ("strength", "num_inference_steps", "guidance_scale", "scheduler")}
    assert reuse(http, **given, priority="low", deadline_s=100)["reused_from"] == earlier


def test_only_other_models_and_lacking_results_are_run(
    http: httpx.Client, run: Run, redis: Redis, store: ObjectStore
) -> None:
    flagged, damaged = run(seed=1, withheld=(1,)), run(seed=2)
    store.replace(result_key(damaged, 1), b"damaged")
    run(seed=3)
    for seed in (1, 2):
        assert reuse(http, seed=seed)["status"] == "queued", (flagged, damaged)
    for fingerprint in ("0" * 64, ""):
        ModelRegistry(redis).register("test-worker", [KNOWN.model_copy(update={"fingerprint": fingerprint})], ttl_s=60)
        assert reuse(http, seed=3)["status"] == "queued"


def test_unfinished_and_deleted_jobs_are_not_reused(http: httpx.Client, run: Run, redis: Redis) -> None:
    assert reuse(http)["status"] == "queued"
    assert reuse(http)["status"] == "queued"
    earlier = run(seed=9)
    http.delete(f"/jobs/{earlier}")
    assert reuse(http, seed=9)["status"] == "queued"
    assert not redis.keys(keys.SAME_RESULTS.pattern)


def test_expired_result_is_not_reused(http: httpx.Client, run: Run, redis: Redis, store: ObjectStore) -> None:
    earlier = run()
    redis.hset(keys.JOB.format(id=earlier), "expires_at", 1)
    redis.zadd(keys.EXPIRING_JOBS, {earlier: 1})
    assert reuse(http)["status"] == "queued"
    Retention(redis, store).sweep()
    assert not redis.keys(keys.SAME_RESULTS.pattern)


def test_copies_of_a_request_that_failed_are_deleted(
    http: httpx.Client, run: Run, redis: Redis, store: ObjectStore
) -> None:
    """As if the API server had died between copying and submitting."""
    run()
    job = reuse(http)
    redis.delete(keys.JOB.format(id=job["id"]))
    redis.zadd(keys.EXPIRING_JOBS, {job["id"]: 1})
    Retention(redis, store).sweep()
    assert store.get(result_key(job["id"], 0)) is None


@pytest.mark.parametrize("seed", [None, -1])
def test_reuse_needs_a_seed(http: httpx.Client, seed: int | None) -> None:
    problem = assert_problem(http.post("/img2img", json={**REQUEST, "seed": seed, "reuse": True}), 422)
    assert problem["errors"][0]["field"] == "seed"
    assert "`reuse` needs it" in problem["detail"]
    assert http.post("/img2img", json={**REQUEST, "seed": seed, "reuse": False}).status_code == 202


def test_owners_do_not_share_results(settings: ApiSettings, redis: Redis, run: Run) -> None:
    def left(response: httpx.Response) -> int:
        return int(response.headers["ratelimit"].partition("r=")[2])

    with clients_of(settings, redis, 2, rate_limit="100/hour") as (ada, bob):
        ModelRegistry(redis).register("test-worker", [KNOWN], ttl_s=60)
        earlier = run(ada, num_images=8)
        assert reuse(bob, num_images=8)["status"] == "queued"
        before = left(ada.post("/img2img", json={**REQUEST, "seed": 77, "num_images": 8}))
        response = ada.post("/img2img", json={**REQUEST, "num_images": 8, "reuse": True})
        assert response.json()["reused_from"] == earlier
        # Copies cost little, and jobs much.
        assert before - left(response) <= 1
        assert 100 - before > 10


def test_idempotency_key_returns_the_same_copy(http: httpx.Client, run: Run, store: ObjectStore, redis: Redis) -> None:
    run()
    headers = {"Idempotency-Key": "once"}
    first, second = (http.post("/img2img", json={**REQUEST, "reuse": True}, headers=headers) for _ in range(2))
    assert first.json() == second.json()
    assert second.headers["idempotency-replayed"] == "true"
    assert redis.zcard(keys.JOBS) == 2


def test_batch_reuses_results(http: httpx.Client, run: Run, queue: JobQueue, store: ObjectStore) -> None:
    earlier = run()
    lines = [REQUEST | {"reuse": True}, REQUEST, REQUEST | {"reuse": True, "seed": 6}]
    response = http.post(
        "/batches", content="\n".join(map(json.dumps, lines)), headers={"content-type": "application/jsonl"}
    )
    assert response.status_code == 202, response.text
    batch = response.json()
    assert (batch["counts"]["queued"], batch["counts"]["succeeded"], batch["status"]) == (2, 1, "running")
    jobs = http.get(f"/batches/{batch['id']}/jobs").json()["jobs"]
    assert [job["reused_from"] for job in jobs] == [earlier, None, None]
    assert jobs[0]["expires_at"] is None, "it is deleted with the batch"
    assert images_of(http, jobs[0]["id"]) == images_of(http, earlier)
    for job in jobs[1:]:
        succeed(job["id"], queue, store)
    assert http.get(f"/batches/{batch['id']}").json()["status"] == "ended"


def test_batch_of_results_has_ended_at_once(http: httpx.Client, run: Run, store: ObjectStore) -> None:
    run()
    body = {"request": REQUEST | {"reuse": True}, "vary": {"priority": ["low", "normal"]}}
    batch = http.post("/batches", json=body).json()
    assert (batch["status"], batch["counts"]["succeeded"]) == ("ended", 2)
    jobs = http.get(f"/batches/{batch['id']}/jobs").json()["jobs"]
    assert http.delete(f"/batches/{batch['id']}").status_code == 204
    assert all(store.get(result_key(job["id"], 0)) is None for job in jobs)


class Memory:
    """What a worker remembers of images."""

    def __init__(self, *images: str) -> None:
        self.images = frozenset(images)

    def forget(self, images: frozenset[str]) -> None:
        self.images -= images


def test_workers_forget_images_with_the_last_job_that_needs_them(
    http: httpx.Client, run: Run, redis: Redis, store: ObjectStore, queue: JobQueue
) -> None:
    jobs = [run(seed=seed) for seed in (1, 2)]
    [digest] = {http.get(f"/jobs/{job}").json()["request"]["image"] for job in jobs}
    memory = Memory(digest, "0" * 64)
    retention = Retention(redis, store, memory)
    for job, remembered in zip(jobs, ({digest}, set()), strict=True):
        http.delete(f"/jobs/{job}")
        retention.sweep()
        assert memory.images == remembered
    assert queue.job_store.page(JobStatus.SUCCEEDED, None, 10)[0] == []
