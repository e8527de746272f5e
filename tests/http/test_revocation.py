"""Requests in progress end when their API key is revoked or expires, over real HTTP."""

import json
import socket
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from PIL import Image
from redis import Redis

from img2img.app.settings import ApiSettings
from img2img.blobs import ObjectStore
from img2img.client import AuthenticationError, Client
from img2img.domain.api_key import Scope
from img2img.domain.job import JobStatus
from img2img.redis.api_keys import ApiKeys
from img2img.redis.job_queue import JobQueue
from img2img.redis.keys import API_KEYS
from img2img.redis.previews import Preview, Previews
from tests.support.authenticated import authenticated_server, empty_keys
from tests.support.finished_jobs import succeed
from tests.support.images import encoded, gradient
from tests.support.problems import assert_problem
from tests.support.redis_servers import full_memory

# The promise is two seconds. A busy machine may need longer, but a response without this feature takes a minute.
SOON_S = 20
IMAGE = encoded(gradient(160, 120))
BODY = {"init_images": [b64encode(IMAGE).decode()], "width": 128, "height": 128}


@dataclass
class Key:
    """A key and a client that uses it."""

    secret: str
    id: str
    http: httpx.Client

    def job(self, **headers: str) -> str:
        response = self.http.post("/img2img", files={"image": IMAGE}, headers=headers)
        assert response.status_code == 202, response.text
        return str(response.json()["id"])


@pytest.fixture(scope="module")
def url(settings: ApiSettings) -> Iterator[str]:
    with authenticated_server(settings) as url:
        yield url


@pytest.fixture
def keys(redis: Redis) -> ApiKeys:
    return empty_keys(redis)


@pytest.fixture
def new_key(url: str, keys: ApiKeys) -> Iterator[Callable[..., Key]]:
    with ExitStack() as stack:

        def create(secret: str | None = None, expires_at: float | None = None) -> Key:
            if secret is None:
                secret, _ = keys.create("test", [Scope.READ, Scope.SUBMIT], expires_at)
            found = keys.find(secret)
            assert found
            http = httpx.Client(base_url=url, timeout=90, headers={"Authorization": f"Bearer {secret}"})
            return Key(secret, found.id, stack.enter_context(http))

        yield create


@contextmanager
def in_background() -> Iterator[Callable[..., Future[Any]]]:
    pool = ThreadPoolExecutor(20)
    try:
        yield pool.submit
    finally:
        pool.shutdown(wait=False)


def events(http: httpx.Client, method: str, path: str, **options: Any) -> list[tuple[str, Any]]:
    """Return the events of a stream. Fails if the response is cut off within its body."""
    found = []
    with http.stream(method, path, **options) as response:
        assert response.status_code == 200
        name = ""
        for line in response.iter_lines():
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: "):
                found.append((name, json.loads(line.removeprefix("data: "))))
    return found


def open_requests(redis: Redis, count: int) -> None:
    """Wait until this many jobs exist."""
    deadline = time.monotonic() + 60
    while redis.zcard("i2i:jobs") < count:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_every_open_request_of_a_revoked_key_ends(
    keys: ApiKeys, new_key: Callable[..., Key], redis: Redis, queue: JobQueue
) -> None:
    ada, bob = new_key(), new_key()
    queued, running = ada.job(), ada.job()
    queue.job_store.start(running, execution="e", worker="w")
    Previews(redis).publish(running, Preview(3, b"a preview"))
    image = {"image": ("a.png", IMAGE)}
    stream = {"prompt": "x", "stream": "true", "partial_images": "1"}
    with in_background() as start:
        of_bob = start(events, bob.http, "GET", f"/jobs/{bob.job()}/events")
        streams = [
            start(events, ada.http, "GET", f"/jobs/{queued}/events"),
            start(events, ada.http, "GET", f"/jobs/{running}/events?preview=true"),
        ]
        openai_stream = start(events, ada.http, "POST", "/v1/images/edits", files=image, data=stream)
        responses = [
            start(ada.http.get, f"/jobs/{queued}?wait=60"),
            start(ada.http.get, f"/jobs/{running}", headers={"Prefer": "wait=60"}),
            start(ada.http.post, "/v1/images/edits", files=image, data={"prompt": "x"}),
            start(ada.http.post, "/v1/images/variations", files=image),
            start(ada.http.post, "/sdapi/v1/img2img", json=BODY),
        ]
        open_requests(redis, 3 + 4)
        time.sleep(1)  # for the requests that create no job
        assert not [one for one in [*streams, openai_stream, *responses] if one.done()]
        assert keys.revoke(ada.id)
        for response in responses:
            assert response.result(SOON_S).status_code == 401
            assert '"invalid_api_key"' in response.result().text
        for one in streams:
            name, problem = one.result(SOON_S)[-1]
            assert (name, problem["status"], problem["code"]) == ("error", 401, "invalid_api_key")
        name, error = openai_stream.result(SOON_S)[-1]
        assert (name, error["error"]["code"]) == ("error", "invalid_api_key")
        assert not of_bob.done()
        assert [queue.job_store.find(job_id).status for job_id in queue.job_store.active_ids()].count(
            JobStatus.QUEUED
        ) == 1 + 4 + 1, "the jobs go on"
        keys.revoke(bob.id)
        assert of_bob.result(SOON_S)[-1][0] == "error"


def test_clients_raise_authentication_errors(
    url: str, keys: ApiKeys, new_key: Callable[..., Key], redis: Redis
) -> None:
    """The Python client, and OpenAI's."""
    ada = new_key()
    job_id = ada.job()
    api = openai.OpenAI(base_url=f"{url}/v1", api_key=ada.secret, max_retries=0)
    with Client(url, api_key=ada.secret) as client, api, in_background() as start:
        streamed = start(lambda: list(client.stream_events(job_id)))
        edited = start(lambda: list(api.images.edit(image=("a.png", IMAGE), prompt="x", stream=True, partial_images=1)))
        open_requests(redis, 2)
        time.sleep(1)
        keys.revoke(ada.id)
        with pytest.raises(AuthenticationError, match="unknown or revoked") as raised:
            streamed.result(SOON_S)
        assert (raised.value.status, raised.value.code) == (401, "invalid_api_key")
        with pytest.raises(openai.APIError, match="unknown or revoked"):
            edited.result(SOON_S)


def test_download_of_a_slow_client_is_cut_off(
    url: str, keys: ApiKeys, new_key: Callable[..., Key], queue: JobQueue, store: ObjectStore
) -> None:
    ada = new_key()
    job_id = ada.job()
    noise = np.random.default_rng(1).integers(0, 256, (2000, 3000, 3), np.uint8)
    png = encoded(Image.fromarray(noise))
    assert len(png) > 16_000_000
    succeed(job_id, queue, store, png)
    parsed = httpx.URL(url)
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
        connection.settimeout(30)
        connection.connect((parsed.host, parsed.port))
        connection.sendall(
            f"GET /jobs/{job_id}/result HTTP/1.1\r\nHost: localhost\r\nX-API-Key: {ada.secret}\r\n\r\n".encode()
        )
        received = connection.recv(1000)
        assert received.startswith(b"HTTP/1.1 200 OK\r\n")
        keys.revoke(ada.id)
        time.sleep(6)
        count = len(received)
        while piece := connection.recv(1_000_000):
            count += len(piece)
    assert count < len(png)
    other = new_key(keys.create("admin", [Scope.ADMIN])[0])
    assert other.http.get(f"/jobs/{job_id}/result").content == png, "which is sent whole, in parts"


def test_expired_key_is_rejected_and_its_stream_ends(new_key: Callable[..., Key]) -> None:
    ada = new_key(expires_at=time.time() + 6)
    job_id = ada.job()
    assert events(ada.http, "GET", f"/jobs/{job_id}/events")[-1][1]["code"] == "expired_api_key"
    problem = assert_problem(ada.http.get(f"/jobs/{job_id}"), 401, "expired_api_key")
    assert "expired" in problem["detail"]


def test_rotated_key_keeps_jobs_images_and_idempotency_keys(
    keys: ApiKeys, new_key: Callable[..., Key], queue: JobQueue, store: ObjectStore
) -> None:
    old = new_key()
    job_id = old.job(**{"Idempotency-Key": "order-17"})
    uploaded = old.http.post("/images", files={"image": IMAGE}).json()["sha256"]
    rotated = keys.rotate(old.id, overlap_s=60)
    assert rotated
    new = new_key(rotated[0])
    assert old.http.get(f"/jobs/{job_id}").status_code == new.http.get(f"/jobs/{job_id}").status_code == 200
    assert [job["id"] for job in new.http.get("/jobs").json()["jobs"]] == [job_id]
    assert new.job(**{"Idempotency-Key": "order-17"}) == job_id
    assert new.http.post("/img2img", json={"image": uploaded}).status_code == 202
    by_new = new.job()
    assert old.http.post(f"/jobs/{by_new}/cancel").json()["status"] == "cancelled"

    again = keys.rotate(new.id, overlap_s=0)
    assert again
    newest = new_key(again[0])
    assert newest.http.get(f"/jobs/{job_id}").status_code == 200
    deadline = time.monotonic() + SOON_S
    while new.http.get(f"/jobs/{job_id}").status_code == 200:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert_problem(new.http.get(f"/jobs/{job_id}"), 401, "expired_api_key")
    assert old.http.get(f"/jobs/{job_id}").status_code == 200, "its own overlap goes on"


def test_limits_belong_to_the_owner(settings: ApiSettings, keys: ApiKeys) -> None:
    secret, key = keys.create("ada", [Scope.READ, Scope.SUBMIT])
    rotated = keys.rotate(key.id, overlap_s=60)
    assert rotated
    with authenticated_server(settings, max_queued_per_key=2) as url:
        found = [
            httpx.post(f"{url}/img2img", files={"image": IMAGE}, headers={"X-API-Key": one}).status_code
            for one in (secret, rotated[0], secret, rotated[0])
        ]
    assert found == [202, 202, 429, 429]


def test_key_revoked_during_a_submit_queues_no_job(
    new_key: Callable[..., Key], keys: ApiKeys, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The key was valid when the request arrived, and is revoked while its image is decoded."""
    ada = new_key()
    decoding, revoked = threading.Event(), threading.Event()
    original = ObjectStore.put

    def put(self: ObjectStore, key: str, data: bytes) -> None:
        decoding.set()
        assert revoked.wait(30)
        original(self, key, data)

    monkeypatch.setattr(ObjectStore, "put", put)
    with in_background() as start:
        response = start(ada.http.post, "/img2img", files={"image": IMAGE})
        assert decoding.wait(30)
        keys.revoke(ada.id)
        revoked.set()
        assert_problem(response.result(SOON_S), 401, "invalid_api_key")
    assert redis.zcard("i2i:jobs") == 0


def test_open_requests_are_checked_with_one_command(new_key: Callable[..., Key], redis: Redis) -> None:
    clients = [new_key() for _ in range(4)]
    with in_background() as start:
        for client in clients:
            job_id = client.job()
            for _ in range(4):
                start(events, client.http, "GET", f"/jobs/{job_id}/events")
        time.sleep(1)
        with redis.monitor() as monitor:
            ends_at = time.monotonic() + 5
            commands = []
            for message in monitor.listen():
                commands.append(message["command"])
                if time.monotonic() > ends_at:
                    break
        for key in ApiKeys(redis).all():
            ApiKeys(redis).revoke(key.id)
    reads = [command for command in commands if f" {API_KEYS} " in command or command.endswith(f" {API_KEYS}")]
    assert 2 <= len(reads) <= 8
    assert [one for one in reads if one.startswith("HMGET")]


def test_use_of_a_key_is_recorded_once_a_minute(new_key: Callable[..., Key], keys: ApiKeys, redis: Redis) -> None:
    ada, bob = new_key(), new_key()
    before = time.time()
    for _ in range(3):
        ada.http.get("/jobs")
        time.sleep(1.1)  # longer than the key is cached
    [(used, at)] = keys.last_uses().items()
    assert used == ada.id
    assert before - 1 <= at <= before + 1.2
    keys.revoke(ada.id)
    assert keys.last_uses() == {}
    assert bob.id in {key.id for key in keys.all()}


def test_key_works_while_redis_takes_no_writes(settings: ApiSettings, redis: Redis) -> None:
    """A full Redis can still be read; the use is then not recorded."""
    secret, _ = ApiKeys(redis).create("reader", [Scope.READ])
    with full_memory(redis), authenticated_server(settings) as url:
        assert httpx.get(f"{url}/jobs", headers={"X-API-Key": secret}).status_code == 200
