"""Isolation of API keys over real HTTP: data of another key is not found."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import httpx
import pytest
from redis import Redis

from img2img.app.settings import ApiSettings
from img2img.blobs import ObjectStore
from img2img.domain.api_key import Scope
from img2img.domain.blob_keys import upload_key
from img2img.domain.job import JobOptions
from img2img.redis.api_keys import ApiKeys
from img2img.redis.job_queue import JobQueue
from img2img.redis.keys import INPUT_IMAGES
from img2img.redis.model_registry import ModelRegistry
from img2img.worker.queue.retention import Retention
from tests.http.test_idempotency import ABLE, CREATING, UPLOADS
from tests.support.authenticated import authenticated_server, client_with, path_of, routes
from tests.support.images import encoded, gradient
from tests.support.model_cards import CARD
from tests.support.problems import assert_problem
from tests.support.uploads import expire_upload

Finish = Callable[[str], bytes]
ABSENT = "0123456789abcdef" * 2
AT_A_JOB = [(method, path) for method, path in routes() if "{job_id}" in path]


@dataclass
class Clients:
    ada: httpx.Client
    bob: httpx.Client
    admin: httpx.Client


@pytest.fixture(scope="module")
def url(settings: ApiSettings) -> Iterator[str]:
    with authenticated_server(settings) as url:
        yield url


@pytest.fixture
def clients(url: str, redis: Redis) -> Iterator[Clients]:
    redis.flushall()
    ModelRegistry(redis).register("test-worker", [CARD], ttl_s=60)
    keys = ApiKeys(redis)
    with ExitStack() as stack:
        yield Clients(
            stack.enter_context(client_with(url, keys)),
            stack.enter_context(client_with(url, keys)),
            stack.enter_context(client_with(url, keys, Scope.ADMIN)),
        )


def job_of(client: httpx.Client, image: bytes, **headers: str) -> str:
    response = client.post("/img2img", files={"image": image}, headers=headers)
    assert response.status_code == 202, response.text
    return str(response.json()["id"])


def listed(client: httpx.Client, **params: object) -> list[str]:
    found: list[str] = []
    while True:
        page = client.get("/jobs", params={"limit": 2, **params}).json()
        found += [job["id"] for job in page["jobs"]]
        if page["next_cursor"] is None:
            return found
        params["cursor"] = page["next_cursor"]


def assert_as_if_absent(client: httpx.Client, method: str, path: str, job_id: str) -> None:
    """Assert that the response equals that for a job that never existed."""
    theirs, none = (client.request(method, path.format(job_id=name, index=0)) for name in (job_id, ABSENT))
    assert theirs.status_code == none.status_code == 404
    assert theirs.text.replace(job_id, ABSENT) == none.text
    if method != "HEAD":
        assert_problem(theirs, 404, "not_found")


@pytest.mark.parametrize("state", ["queued", "succeeded", "cancelled", "deleted", "expired"])
@pytest.mark.parametrize(("method", "path"), AT_A_JOB)
def test_jobs_of_other_owners_are_not_found(
    clients: Clients,
    image_bytes: bytes,
    finish: Finish,
    queue: JobQueue,
    redis: Redis,
    store: ObjectStore,
    method: str,
    path: str,
    state: str,
) -> None:
    job_id = job_of(clients.ada, image_bytes)
    match state:
        case "succeeded":
            finish(job_id)
        case "cancelled":
            clients.ada.post(f"/jobs/{job_id}/cancel")
        case "deleted":
            assert clients.ada.delete(f"/jobs/{job_id}").status_code == 204
        case "expired":
            finish(job_id)
            redis.zadd("i2i:expiring", {job_id: 1})
            Retention(redis, store).sweep()
    before = clients.ada.get(f"/jobs/{job_id}")
    assert_as_if_absent(clients.bob, method, path, job_id)
    assert clients.ada.get(f"/jobs/{job_id}").text == before.text  # unchanged
    with clients.admin.stream(method, path.format(job_id=job_id, index=0)) as seen_by_admin:
        assert seen_by_admin.status_code != 404


def test_list_shows_only_own_jobs(clients: Clients, image_bytes: bytes, finish: Finish) -> None:
    adas = [job_of(clients.ada, image_bytes) for _ in range(3)][::-1]
    bobs = [job_of(clients.bob, image_bytes)]
    finish(adas[0])
    assert listed(clients.ada) == adas
    assert listed(clients.bob) == bobs
    assert listed(clients.ada, status="succeeded") == adas[:1]
    assert listed(clients.ada, status="queued") == adas[1:]
    assert listed(clients.bob, status="succeeded") == []
    assert listed(clients.admin) == [*bobs, *adas]
    assert listed(clients.admin, status="queued") == [*bobs, *adas[1:]]


def test_own_list_is_independent_of_other_owners(
    clients: Clients, image_bytes: bytes, redis: Redis, queue: JobQueue
) -> None:
    """Redis reads only the list of the owner."""
    bobs = job_of(clients.bob, image_bytes)
    record = queue.job_store.get(job_of(clients.ada, image_bytes))
    assert record is not None
    for _ in range(50):
        queue.submit(record.spec, JobOptions(owner=record.owner))
    with redis.monitor() as monitor:
        assert listed(clients.bob) == [bobs]
        redis.echo("done")
        commands = []
        for message in monitor.listen():
            if message["command"].startswith("ECHO"):
                break
            commands.append(message["command"])
    reads = [command for command in commands if command.startswith("ZREVRANGEBYSCORE")]
    assert len(reads) == 1
    assert "i2i:jobs:of:" in reads[0]
    assert sum(command.startswith("HGETALL i2i:job:") for command in commands) == 1


def test_deleted_jobs_leave_no_keys(
    clients: Clients, image_bytes: bytes, finish: Finish, redis: Redis, store: ObjectStore
) -> None:
    deleted, expired, queued = (job_of(clients.ada, image_bytes) for _ in range(3))
    clients.ada.delete(f"/jobs/{deleted}")
    finish(expired)
    redis.zadd("i2i:expiring", {expired: 1})
    Retention(redis, store).sweep()
    assert listed(clients.ada) == [queued]
    clients.ada.delete(f"/jobs/{queued}")
    assert redis.keys("i2i:jobs*") == [b"i2i:jobs:ended"]  # counts, for metrics


def test_requeued_job_is_listed_as_queued(clients: Clients, image_bytes: bytes, queue: JobQueue) -> None:
    job_id = job_of(clients.ada, image_bytes)
    queue.job_store.start(job_id, execution="e", worker="w")
    assert (listed(clients.ada, status="queued"), listed(clients.ada, status="running")) == ([], [job_id])
    queue.job_store.release(job_id, execution="e")
    assert (listed(clients.ada, status="queued"), listed(clients.ada, status="running")) == ([job_id], [])


@pytest.mark.parametrize("path", ["/jobs/{}/images/0", "/jobs/{}/result"])
def test_result_of_another_owner_cannot_be_referenced(
    clients: Clients, image_bytes: bytes, finish: Finish, path: str
) -> None:
    job_id = job_of(clients.ada, image_bytes)
    finish(job_id)
    theirs, none = (clients.bob.post("/img2img", json={"image": path.format(name)}) for name in (job_id, ABSENT))
    assert_problem(theirs, 422, "invalid_parameter")
    assert theirs.text.replace(job_id, ABSENT) == none.text
    for client in (clients.ada, clients.admin):
        assert client.post("/img2img", json={"image": path.format(job_id)}).status_code == 202


@pytest.mark.parametrize("path", CREATING)
def test_idempotency_keys_are_separate_per_owner(fake_worker: None, clients: Clients, redis: Redis, path: str) -> None:
    """Also for equal requests, on every route that creates something."""
    ModelRegistry(redis).register("w", [ABLE], ttl_s=60)
    header = {"Idempotency-Key": "order-17"}
    for _ in range(2):
        for client in (clients.ada, clients.bob, clients.admin):
            response = client.post(path_of(path), headers=header, timeout=60, **CREATING[path][0])
            assert response.is_success, response.text
    jobs = [listed(client) for client in (clients.ada, clients.bob)]
    each = 0 if path in UPLOADS else 1
    assert [len(one) for one in jobs] == [each, each]
    assert len(listed(clients.admin)) == len(redis.zrange("i2i:jobs", 0, -1)) == 3 * each
    assert_problem(
        clients.bob.post("/images", headers=header, files={"image": encoded(gradient(8, 8))}),
        422,
        "idempotency_key_reused",
    )


def test_admins_can_cancel_and_delete_all_jobs(clients: Clients, image_bytes: bytes) -> None:
    job_id = job_of(clients.ada, image_bytes)
    assert clients.admin.post(f"/jobs/{job_id}/cancel").json()["status"] == "cancelled"
    assert clients.ada.get(f"/jobs/{job_id}").json()["status"] == "cancelled"
    assert clients.admin.delete(f"/jobs/{job_id}").status_code == 204
    assert_problem(clients.ada.get(f"/jobs/{job_id}"), 410, "deleted")


def refers(client: httpx.Client, sha256: str) -> bool:
    """Whether the client can use the image; if not, the response equals that for an unknown image."""
    response, none = (client.post("/img2img", json={"image": one}) for one in (sha256, ABSENT * 2))
    if response.status_code == 202:
        return True
    assert_problem(response, 422, "invalid_parameter")
    assert response.text.replace(sha256, ABSENT * 2) == none.text
    return False


def test_hash_references_only_own_uploads(
    clients: Clients, image_bytes: bytes, redis: Redis, store: ObjectStore
) -> None:
    kept = clients.ada.post("/images", files={"image": image_bytes}).json()["sha256"]
    used = clients.ada.get(f"/jobs/{job_of(clients.ada, image_bytes)}").json()["request"]["image"]
    for sha256 in (kept, used):
        assert not refers(clients.bob, sha256)
        assert refers(clients.ada, sha256)
        assert refers(clients.admin, sha256)
    assert not refers(clients.bob, kept), "and its use by others changes nothing"
    assert clients.bob.post("/images", files={"image": image_bytes}).json()["sha256"] == kept
    assert refers(clients.bob, kept)
    assert refers(clients.ada, kept)


def test_upload_owner_is_deleted_with_the_image(
    clients: Clients, image_bytes: bytes, redis: Redis, store: ObjectStore
) -> None:
    kept = clients.ada.post("/images", files={"image": image_bytes}).json()["sha256"]
    expire_upload(redis, upload_key(kept))
    Retention(redis, store).sweep()
    assert not redis.keys("i2i:inputs*")
    assert clients.bob.post("/images", files={"image": image_bytes}).json()["sha256"] == kept
    assert not refers(clients.ada, kept)
    assert refers(clients.bob, kept)


def test_input_of_a_queued_job_can_be_referenced(
    clients: Clients, image_bytes: bytes, redis: Redis, store: ObjectStore
) -> None:
    used = clients.ada.get(f"/jobs/{job_of(clients.ada, image_bytes)}").json()["request"]["image"]
    Retention(redis, store).sweep()
    assert not redis.exists(INPUT_IMAGES)
    assert not refers(clients.bob, used)
    assert refers(clients.ada, used)
