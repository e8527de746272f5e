"""Idempotency keys over real HTTP: repeated requests create one job."""

import socket
import time
from base64 import b64encode
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from redis import Redis

from img2img.domain.conditioning import ControlType
from img2img.domain.job import JobStatus
from img2img.domain.masks import MaskKind
from img2img.domain.parameters import Task
from img2img.redis.idempotency import KEPT_S
from img2img.redis.job_queue import JobQueue
from img2img.redis.model_registry import ModelRegistry
from tests.support.authenticated import every_route, path_of
from tests.support.images import encoded, gradient
from tests.support.model_cards import CARD
from tests.support.problems import assert_problem, status_at

IMAGE, OTHER = encoded(gradient(160, 120)), encoded(gradient(160, 120, blue=9))
WEB_UI = {"width": 128, "height": 128}
# A model that makes control maps and upscales.
ABLE = CARD.model_copy(
    update={
        "preprocessors": (ControlType.CANNY,),
        "tasks": (Task.IMG2IMG, Task.UPSCALE),
        "upscales": (2,),
        "masks": (MaskKind.TEXT,),
    }
)
# A request of each route that creates something, and another request of the same route.
CREATING: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "/img2img": ({"files": {"image": IMAGE}}, {"files": {"image": OTHER}}),
    "/control-maps": (
        {"files": {"image": IMAGE}, "data": {"type": "canny"}},
        {"files": {"image": OTHER}, "data": {"type": "canny"}},
    ),
    "/masks": (
        {"files": {"image": IMAGE}, "data": {"text": "house"}},
        {"files": {"image": OTHER}, "data": {"text": "house"}},
    ),
    "/batches": (
        {"json": {"request": {"image": b64encode(IMAGE).decode()}}},
        {"json": {"request": {"image": b64encode(OTHER).decode()}}},
    ),
    "/images": ({"files": {"image": IMAGE}}, {"files": {"image": OTHER}}),
    "/v1/images/edits": (
        {"files": {"image": IMAGE}, "data": {"prompt": "x", "n": "2"}},
        {"files": {"image": IMAGE}, "data": {"prompt": "y", "n": "2"}},
    ),
    "/v1/images/variations": ({"files": {"image": IMAGE}}, {"files": {"image": OTHER}}),
    "/hf": ({"content": IMAGE}, {"content": OTHER}),
    "/hf/{model:path}": ({"content": IMAGE}, {"content": OTHER}),
    "/replicate/v1/predictions": (
        {"json": {"version": "demo", "input": {"image": b64encode(IMAGE).decode()}}},
        {"json": {"version": "demo", "input": {"image": b64encode(OTHER).decode()}}},
    ),
    "/replicate/v1/models/{owner}/{name}/predictions": (
        {"json": {"input": {"image": b64encode(IMAGE).decode()}}},
        {"json": {"input": {"image": b64encode(OTHER).decode()}}},
    ),
    "/replicate/v1/files": ({"files": {"content": IMAGE}}, {"files": {"content": OTHER}}),
    "/sdapi/v1/img2img": (
        {"json": {"init_images": [b64encode(IMAGE).decode()], **WEB_UI}},
        {"json": {"init_images": [b64encode(OTHER).decode()], **WEB_UI}},
    ),
    "/sdapi/v1/extra-single-image": (
        {"json": {"image": b64encode(IMAGE).decode(), "upscaler_1": "demo x2", "upscaling_resize": 1}},
        {"json": {"image": b64encode(OTHER).decode(), "upscaler_1": "demo x2", "upscaling_resize": 1}},
    ),
    "/sdapi/v1/extra-batch-images": (
        {"json": {"imageList": [{"data": b64encode(IMAGE).decode()}], "upscaler_1": "demo x2", "upscaling_resize": 1}},
        {"json": {"imageList": [{"data": b64encode(OTHER).decode()}], "upscaler_1": "demo x2", "upscaling_resize": 1}},
    ),
    "/controlnet/img2img": (
        {"json": {"init_images": [b64encode(IMAGE).decode()], **WEB_UI}},
        {"json": {"init_images": [b64encode(OTHER).decode()], **WEB_UI}},
    ),
    "/controlnet/detect": (
        {"json": {"controlnet_input_images": [b64encode(IMAGE).decode()], "controlnet_module": "canny"}},
        {"json": {"controlnet_input_images": [b64encode(OTHER).decode()], "controlnet_module": "canny"}},
    ),
}
BLOCKING = [path for path in CREATING if path.startswith(("/v1/", "/sdapi/", "/controlnet/", "/hf"))]
UPLOADS = ("/images", "/replicate/v1/files")
CREATES_NOTHING = {
    # It creates uploads where images are in a bucket: `tests/e2e/test_s3_service.py`.
    "/uploads",
    "/batches/{batch_id}/cancel",
    "/jobs/{job_id}/cancel",
    "/models/{name:name}/reset",
    "/sdapi/v1/interrupt",
    "/sdapi/v1/options",
    "/sdapi/v1/png-info",
    "/sdapi/v1/txt2img",
    "/sdapi/v1/interrogate",
    "/sdapi/v1/refresh-checkpoints",
    "/sdapi/v1/refresh-embeddings",
    "/sdapi/v1/refresh-loras",
    "/sdapi/v1/refresh-vae",
    "/controlnet/txt2img",
    "/controlnet/{path:path}",
    "/replicate/v1/predictions/{job_id}/cancel",
    "/replicate/v1/{path:path}",
    "/sdapi/v1/{path:path}",
    "/v1/{path:path}",
}

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


@pytest.fixture
def able(http: httpx.Client, redis: Redis) -> httpx.Client:
    """A client of a service with a model that all requests of `CREATING` are for."""
    ModelRegistry(redis).register("w", [ABLE], ttl_s=60)
    return http


def test_every_route_that_creates_something_is_covered() -> None:
    assert {path for method, path in every_route() if method == "POST"} == set(CREATING) | CREATES_NOTHING


@pytest.mark.parametrize("path", CREATING)
def test_every_route_honours_the_key(able: httpx.Client, fake_worker: None, redis: Redis, path: str) -> None:
    key = {"Idempotency-Key": "order-17"}
    request, other = CREATING[path]
    path, is_upload, is_blocking = path_of(path), path in UPLOADS, path in BLOCKING
    first, again = (able.post(path, headers=key, timeout=60, **request) for _ in range(2))
    assert first.status_code == again.status_code < 300, first.text
    assert redis.zcard("i2i:jobs") == (not is_upload)
    if is_blocking:
        assert first.content == again.content
    else:
        assert first.json().get("id") == again.json().get("id")
        assert first.json().get("sha256") == again.json().get("sha256")
        assert "idempotency-replayed" not in first.headers
        assert again.headers["idempotency-replayed"] == "true"
    reused = able.post(path, headers=key, **other)
    invalid = status_at(path, 422)
    assert reused.status_code == invalid
    assert "It came with another request before" in reused.text
    malformed = able.post(path, headers={"Idempotency-Key": "two words"}, **request)
    assert malformed.status_code == invalid
    assert "Idempotency-Key" in malformed.text


def test_rejected_upload_stores_no_key(able: httpx.Client, redis: Redis) -> None:
    key = {"Idempotency-Key": "order-17"}
    assert able.post("/images", headers=key, files={"image": b"no image"}).status_code == 415
    assert able.post("/images", headers=key, files={"image": IMAGE}).status_code == 201


def test_key_of_an_upload_is_not_that_of_a_job(able: httpx.Client) -> None:
    key = {"Idempotency-Key": "order-17"}
    assert able.post("/images", headers=key, files={"image": IMAGE}).status_code == 201
    assert_problem(able.post("/img2img", headers=key, files={"image": IMAGE}), 422, "idempotency_key_reused")


def abandon(http: httpx.Client, redis: Redis, path: str, **options: Any) -> str:
    """Send a request, disconnect when it has created its job, and return the id of the job."""
    request = http.build_request("POST", path, **options)
    with socket.create_connection((http.base_url.host, http.base_url.port or 80)) as connection:
        head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
        connection.sendall(f"POST {path} HTTP/1.1\r\n{head}\r\n".encode() + request.read())
        deadline = time.monotonic() + 60
        while not (found := redis.zrange("i2i:jobs", 0, -1)):
            assert time.monotonic() < deadline
            time.sleep(0.02)
    return bytes(found[0]).decode()


STREAM = {"files": {"image": IMAGE}, "data": {"prompt": "x", "stream": "true", "partial_images": "1"}}
ABANDONED = [*((path_of(path), CREATING[path][0]) for path in BLOCKING), ("/v1/images/edits", STREAM)]


@pytest.mark.parametrize(("path", "request_"), ABANDONED)
def test_job_of_a_disconnected_client_is_cancelled(
    able: httpx.Client, redis: Redis, queue: JobQueue, path: str, request_: dict[str, Any]
) -> None:
    job_id = abandon(able, redis, path, **request_)
    deadline = time.monotonic() + 60
    while queue.job_store.find(job_id).status is not JobStatus.CANCELLED:
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize(("path", "request_"), ABANDONED)
def test_repeated_request_gets_the_images_of_the_one_that_was_interrupted(
    able: httpx.Client,
    redis: Redis,
    queue: JobQueue,
    finish: Callable[[str], bytes],
    path: str,
    request_: dict[str, Any],
) -> None:
    key = {"Idempotency-Key": "order-17"}
    job_id = abandon(able, redis, path, headers=key, **request_)
    time.sleep(3)  # longer than the service takes to notice
    assert queue.job_store.find(job_id).status is JobStatus.QUEUED
    png = finish(job_id)
    again = able.post(path, headers=key, timeout=60, **request_)
    assert again.status_code == 200, again.text
    assert again.content == png or b64encode(png).decode() in again.text
    assert redis.zcard("i2i:jobs") == 1
