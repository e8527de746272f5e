"""Deleted and expired jobs and images: the blobs, and all that Redis knows about them."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import httpx
import pytest
from redis import Redis

from img2img.app.settings import ApiSettings
from img2img.blobs import ObjectStore
from img2img.domain.api_key import Scope
from img2img.domain.blob_keys import input_key, result_key, upload_key
from img2img.domain.job import JobOptions
from img2img.domain.spec import parse_spec
from img2img.domain.webhook import Webhook
from img2img.errors import Unavailable
from img2img.redis.api_keys import ApiKeys
from img2img.redis.input_images import UNUSED_S
from img2img.redis.job_queue import InputsDeleted, JobQueue
from img2img.redis.keys import ERASURES, EXPIRING_JOBS, INPUT_IMAGE_SIZES, INPUT_IMAGES, OUTBOX
from img2img.redis.previews import Preview, Previews
from img2img.worker.queue.retention import Retention
from tests.support.authenticated import authenticated_server, client_with
from tests.support.images import encoded, gradient
from tests.support.problems import assert_problem
from tests.support.specs import make_spec

MARKER = "a very private marker"
IMAGE = encoded(gradient(160, 120, blue=77))

Submit = Callable[..., httpx.Response]
Finish = Callable[[str], bytes]


def inputs_of(job: dict[str, Any]) -> list[str]:
    return list(map(input_key, parse_spec(json.dumps(job["request"]))[0].inputs))


def everything_in(redis: Redis) -> str:
    """Return all keys of Redis with their values."""
    # Otherwise text could be there without being found.
    redis.config_set("rdbcompression", "no")
    return " ".join(f"{key!r} {redis.dump(key)!r}" for key in redis.scan_iter())


@pytest.fixture
def retention(redis: Redis, store: ObjectStore) -> Retention:
    return Retention(redis, store)


@dataclass(frozen=True)
class Clients:
    """Clients of the service, each with its API key."""

    ada: httpx.Client
    bob: httpx.Client
    admin: httpx.Client


@pytest.fixture
def clients(http: httpx.Client, settings: ApiSettings, redis: Redis) -> Iterator[Clients]:
    """Clients of an API server that requires keys."""
    keys = ApiKeys(redis)
    with authenticated_server(settings) as url, ExitStack() as stack:
        ada, bob = (stack.enter_context(client_with(url, keys)) for _ in range(2))
        yield Clients(ada, bob, stack.enter_context(client_with(url, keys, Scope.ADMIN)))


def job_of(client: httpx.Client, image: bytes | str = IMAGE, **fields: Any) -> dict[str, Any]:
    files = {"image": image if isinstance(image, bytes) else (None, image)}
    response = client.post("/img2img", files=files, data=fields)
    assert response.status_code == 202, response.text
    job: dict[str, Any] = response.json()
    return job


def upload(client: httpx.Client, image: bytes = IMAGE) -> str:
    response = client.post("/images", files={"image": image})
    assert response.status_code == 201, response.text
    return str(response.json()["sha256"])


@pytest.mark.parametrize("end", ["deleted", "expired"])
def test_inputs_and_results_are_gone_with_their_last_job(
    end: str, http: httpx.Client, finish: Finish, store: ObjectStore, redis: Redis, retention: Retention
) -> None:
    first, second = (job_of(http, prompt=MARKER, negative_prompt=MARKER, seed=seed) for seed in (1, 2))
    assert inputs_of(first) == inputs_of(second)
    [key] = inputs_of(first)

    def finish_and_remove(job: dict[str, Any]) -> None:
        finish(job["id"])
        assert store.get(result_key(job["id"], 0))
        if end == "deleted":
            assert http.delete(f"/jobs/{job['id']}").status_code == 204
        else:
            redis.zadd(EXPIRING_JOBS, {job["id"]: 1})
            retention.sweep()
        assert store.get(result_key(job["id"], 0)) is None

    finish_and_remove(first)
    assert store.get(key), "the other job needs it"
    assert MARKER in everything_in(redis)
    finish_and_remove(second)
    assert store.get(key) is None
    assert MARKER not in everything_in(redis)
    assert not redis.keys("i2i:inputs*")
    assert int(redis.get(ERASURES)) == 2  # type: ignore[arg-type]


@pytest.mark.parametrize("running", [False, True])
def test_deleting_an_unfinished_job_removes_all_of_it(
    running: bool, http: httpx.Client, queue: JobQueue, store: ObjectStore, redis: Redis
) -> None:
    job = job_of(http, prompt=MARKER)
    if running:
        queue.job_store.start(job["id"], execution="e", worker="w")
        Previews(redis).request(job["id"])
        Previews(redis).publish(job["id"], Preview(1, MARKER.encode()))
    assert http.delete(f"/jobs/{job['id']}").status_code == 204
    assert store.get(inputs_of(job)[0]) is None
    assert MARKER not in everything_in(redis)
    assert not redis.keys("i2i:preview*")


def test_deletion_discards_the_webhook_also_of_an_expired_job(
    http: httpx.Client, queue: JobQueue, redis: Redis
) -> None:
    """Without a worker nothing expires in time, and the event outlives the job: a deletion ends both."""
    hook = Webhook.model_validate({"url": f"https://example.com/{MARKER.replace(' ', '-')}"})
    swept, unswept, kept = (
        queue.submit(make_spec(prompt=MARKER), JobOptions(webhook=hook, result_ttl_s=0.01)).id for _ in range(3)
    )
    for job_id in (swept, unswept, kept):
        queue.cancel(job_id)
    time.sleep(0.02)
    store = ObjectStore("memory:///")
    redis.zrem(EXPIRING_JOBS, unswept)
    Retention(redis, store).sweep()
    assert set(redis.zrange(OUTBOX, 0, -1)) == {one.encode() for one in (swept, unswept, kept)}
    for job_id in (swept, unswept):
        assert_problem(http.get(f"/jobs/{job_id}"), 410, "expired")
        assert http.delete(f"/jobs/{job_id}").status_code == 204
    assert redis.zrange(OUTBOX, 0, -1) == [kept.encode()]
    assert redis.exists(f"i2i:outbox:{kept}")
    assert not redis.exists(f"i2i:outbox:{swept}", f"i2i:outbox:{unswept}", f"i2i:job:{unswept}")


def test_upload_is_kept_when_a_job_that_used_it_is_deleted(
    http: httpx.Client, store: ObjectStore, redis: Redis, retention: Retention
) -> None:
    digest = upload(http)
    job = job_of(http, digest)
    assert http.delete(f"/jobs/{job['id']}").status_code == 204
    assert store.get(inputs_of(job)[0]) is None
    assert store.get(upload_key(digest)) == IMAGE
    assert redis.zscore(INPUT_IMAGES, upload_key(digest)) == pytest.approx(time.time() + 24 * 3600, abs=60)


def test_deleted_upload_is_gone_and_its_jobs_go_on(http: httpx.Client, store: ObjectStore, redis: Redis) -> None:
    digest = upload(http)
    job = job_of(http, digest)
    assert http.delete(f"/images/{digest}").status_code == 204
    assert store.get(upload_key(digest)) is None
    assert store.get(inputs_of(job)[0]), "the job has its own copy"
    assert_problem(http.delete(f"/images/{digest}"), 404, "not_found")
    assert http.post("/img2img", json={"image": digest}).status_code == 422
    assert upload(http) == digest
    assert store.get(upload_key(digest)) == IMAGE


def test_upload_belongs_to_each_owner_who_sent_it(clients: Clients, store: ObjectStore, retention: Retention) -> None:
    digest = upload(clients.ada)
    absent = clients.bob.delete(f"/images/{'0' * 64}")
    foreign = clients.bob.delete(f"/images/{digest}")
    assert_problem(foreign, 404, "not_found")
    assert (foreign.text, dict(foreign.headers) | {"date": "", "x-request-id": ""}) == (
        absent.text,
        dict(absent.headers) | {"date": "", "x-request-id": ""},
    )
    upload(clients.bob)
    assert clients.ada.delete(f"/images/{digest}").status_code == 204
    assert store.get(upload_key(digest)) == IMAGE, "Bob has uploaded it too"
    assert clients.ada.post("/img2img", json={"image": digest}).status_code == 422
    assert clients.bob.post("/img2img", json={"image": digest}).status_code == 202
    assert clients.bob.delete(f"/images/{digest}").status_code == 204
    assert store.get(upload_key(digest)) is None


def test_admin_deletes_an_image_of_all_owners(clients: Clients, store: ObjectStore) -> None:
    digest = upload(clients.ada)
    upload(clients.bob)
    assert clients.admin.delete(f"/images/{digest}").status_code == 204
    assert store.get(upload_key(digest)) is None
    for client in (clients.ada, clients.bob, clients.admin):
        assert_problem(client.delete(f"/images/{digest}"), 404, "not_found")


def test_retention_of_an_upload_is_that_of_its_owner(
    clients: Clients, store: ObjectStore, redis: Redis, retention: Retention
) -> None:
    digest = upload(clients.ada)
    [owner] = redis.zrange(f"i2i:inputs:uploads:{upload_key(digest)}", 0, -1)
    redis.zadd(f"i2i:inputs:uploads:{upload_key(digest)}", {owner: time.time() - 1})
    upload(clients.bob)
    assert clients.ada.post("/img2img", json={"image": digest}).status_code == 422
    assert clients.bob.post("/img2img", json={"image": digest}).status_code == 202


@pytest.mark.parametrize("digest", ["0" * 63, "0" * 65, "G" * 64, "A" * 64])
def test_malformed_hash_is_rejected(http: httpx.Client, digest: str) -> None:
    assert_problem(http.delete(f"/images/{digest}"), 422, "invalid_parameter")


def test_reference_to_an_input_ends_with_the_last_job_of_the_owner(clients: Clients, store: ObjectStore) -> None:
    jobs = {client: job_of(client) for client in (clients.ada, clients.bob)}
    digest = jobs[clients.ada]["request"]["image"]
    dry_run = {"url": "/img2img?dry_run=true", "json": {"image": digest}}
    assert clients.ada.post(**dry_run).status_code == clients.bob.post(**dry_run).status_code == 200
    assert clients.ada.delete(f"/jobs/{jobs[clients.ada]['id']}").status_code == 204
    assert store.get(input_key(digest)), "Bob's job needs it"
    assert clients.ada.post(**dry_run).status_code == 422
    assert clients.bob.post(**dry_run).status_code == 200


def test_refused_submit_leaves_no_image(
    http: httpx.Client, settings: ApiSettings, store: ObjectStore, redis: Redis
) -> None:
    with authenticated_server(settings, keys="auto", max_queued=1) as url, httpx.Client(base_url=url) as limited:
        kept = job_of(limited)
        # The queue is full only after the first check.
        JobQueue.check_limits, check = (lambda *_: None), JobQueue.check_limits  # type: ignore[method-assign]
        try:
            response = limited.post("/img2img", files={"image": encoded(gradient(64, 64, blue=3))}, data={"seed": 1})
        finally:
            JobQueue.check_limits = check  # type: ignore[method-assign]
        assert_problem(response, 503, "queue_full")
    [key] = inputs_of(kept)
    assert redis.keys("i2i:inputs:[jud]*") == [f"i2i:inputs:jobs:{key}".encode()]
    assert redis.hkeys(INPUT_IMAGE_SIZES) == [key.encode()]


def test_input_of_a_submit_that_died_is_deleted_later(
    queue: JobQueue, store: ObjectStore, redis: Redis, retention: Retention, http: httpx.Client
) -> None:
    key = input_key("a" * 64)
    queue.input_images.retain({key: 9}, "ada")
    store.put(key, b"png")
    retention.sweep()
    assert store.get(key)
    assert redis.zscore(INPUT_IMAGES, key) == pytest.approx(time.time() + UNUSED_S, abs=5)
    redis.zadd(INPUT_IMAGES, {key: 1})
    retention.sweep()
    assert store.get(key) is None
    assert not redis.keys("i2i:inputs*")


def test_image_is_stored_after_its_deletion_has_ended(queue: JobQueue, redis: Redis, http: httpx.Client) -> None:
    images, key = queue.input_images, input_key("a" * 64)
    images.retain({key: 9}, "ada")
    redis.zadd(INPUT_IMAGES, {key: 1})
    assert images.claim_unused() == [key]
    with pytest.raises(Unavailable):
        images.retain({key: 9}, "ada")
    images.confirm_deleted(key)
    images.retain({key: 9}, "ada")
    assert images.claim_unused() == []
    assert not redis.keys("i2i:inputs:deleted*")
    upload_of = upload_key("b" * 64)
    images.retain_upload(upload_of, 9, -1, "ada")
    assert images.claim_unused() == [upload_of]
    with pytest.raises(Unavailable):
        images.retain_upload(upload_of, 9, 60, "ada")
    images.confirm_deleted(upload_of)
    images.retain_upload(upload_of, 9, 60, "ada")
    assert images.claim_unused() == []


def test_interrupted_deletion_is_repeated(queue: JobQueue, redis: Redis, http: httpx.Client) -> None:
    images, key = queue.input_images, upload_key("a" * 64)
    images.retain_upload(key, 9, -1, "ada")
    assert images.claim_unused() == [key]
    assert images.claim_unused() == [], "not at the same time"
    assert redis.zscore(INPUT_IMAGES, key) > time.time()  # type: ignore[operator]
    redis.zadd(INPUT_IMAGES, {key: 1})  # the process that deletes it has died
    assert images.claim_unused() == [key]


def test_job_is_refused_if_its_input_was_deleted_before_it_is_queued(
    queue: JobQueue, redis: Redis, http: httpx.Client
) -> None:
    spec = make_spec()
    [key] = map(input_key, spec.inputs)
    generations = queue.input_images.retain({key: 9}, "ada")
    assert queue.input_images.drop_unused([key]) == [key]
    queue.input_images.confirm_deleted(key)
    queue.input_images.retain({key: 9}, "ada")
    with pytest.raises(InputsDeleted):
        queue.submit(spec, generations=generations)
    assert queue.depth(spec.model) == 0


def test_deletions_and_submits_of_one_image_at_the_same_time_lose_no_input(
    http: httpx.Client, store: ObjectStore, redis: Redis
) -> None:
    stop = threading.Event()

    def submit_and_delete() -> None:
        while not stop.is_set():
            job = job_of(http)
            # From here on, no deletion of another job may take the input away.
            assert store.get(inputs_of(job)[0]) is not None
            assert http.delete(f"/jobs/{job['id']}").status_code == 204

    with ThreadPoolExecutor(6) as pool:
        running = [pool.submit(submit_and_delete) for _ in range(6)]
        time.sleep(4)
        stop.set()
    for one in running:
        one.result()
    assert not redis.keys("i2i:inputs*")


def test_uploads_and_deletions_of_one_image_at_the_same_time_leave_no_stray_blob(
    http: httpx.Client, store: ObjectStore, redis: Redis
) -> None:
    stop, digest = threading.Event(), sha256(IMAGE).hexdigest()
    key = upload_key(digest)

    def upload_and_delete() -> None:
        while not stop.is_set():
            # An upload that is deleted again and again while it is stored is refused.
            assert http.post("/images", files={"image": IMAGE}).status_code in (201, 503)
            # Another thread may have deleted it already.
            assert http.delete(f"/images/{digest}").status_code in (204, 404)

    with ThreadPoolExecutor(6) as pool:
        running = [pool.submit(upload_and_delete) for _ in range(6)]
        time.sleep(3)
        stop.set()
    for one in running:
        one.result()
    assert (store.get(key) is None) == (not redis.exists(INPUT_IMAGES))
    if store.get(key) is not None:
        assert redis.zscore(INPUT_IMAGES, key)
        assert http.delete(f"/images/{digest}").status_code == 204
    assert store.get(key) is None
    assert not redis.keys("i2i:inputs*")
