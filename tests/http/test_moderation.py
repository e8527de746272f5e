"""Requests that a moderation endpoint is asked about, over real HTTP, with a real endpoint."""

import base64
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from PIL import Image
from redis import Redis

from img2img import moderation
from img2img.app.backends import moderation as request_moderation
from img2img.app.settings import ApiSettings
from img2img.app.supervisor.supervisor import free_port
from img2img.domain.conditioning import ControlType
from img2img.domain.job import JobFailure, JobStatus
from img2img.domain.masks import MaskKind
from img2img.domain.parameters import Task
from img2img.redis.job_queue import JobQueue
from img2img.redis.model_registry import ModelRegistry
from tests.support.images import encoded, gradient
from tests.support.model_cards import CARD
from tests.support.moderation_endpoints import Endpoint, moderation_endpoint
from tests.support.problems import assert_problem
from tests.support.processes import wait_for
from tests.support.servers import http_server

IMAGE = encoded(gradient(160, 120))
TEXT = base64.b64encode(IMAGE).decode()
RED = encoded(Image.new("RGB", (128, 128), "red"))
ABLE = CARD.model_copy(update={"tasks": tuple(Task), "preprocessors": (ControlType.CANNY,), "masks": (MaskKind.TEXT,)})


@pytest.fixture(scope="module")
def running() -> Iterator[Endpoint]:
    with moderation_endpoint() as endpoint:
        yield endpoint


@pytest.fixture
def endpoint(running: Endpoint, monkeypatch: pytest.MonkeyPatch) -> Endpoint:
    running.reset()
    monkeypatch.setattr(moderation, "PAUSE_S", 0.01)
    return running


Serve = Callable[..., Any]


@pytest.fixture(scope="module")
def service(settings: ApiSettings, running: Endpoint) -> Iterator[str]:
    """A service that is moderated by an endpoint that works."""
    with http_server(_moderated(settings, running.url("ok"), checks="prompt,input,result")) as url:
        yield url


def _moderated(settings: ApiSettings, url: str, *, checks: str = "prompt,result", **more: Any) -> ApiSettings:
    changes = {"moderation_url": url, "moderation_checks": checks, "port": free_port(), **more}
    return settings.model_copy(update=changes)


@pytest.fixture
def http(service: str, endpoint: Endpoint, redis: Redis) -> Iterator[httpx.Client]:
    with _client(service, redis) as client:
        yield client


@contextmanager
def _client(url: str, redis: Redis) -> Iterator[httpx.Client]:
    redis.flushall()
    ModelRegistry(redis).register("test-worker", [ABLE], ttl_s=60)
    with httpx.Client(base_url=url, timeout=30) as client:
        yield client


@pytest.fixture
def serve(settings: ApiSettings, endpoint: Endpoint, redis: Redis) -> Iterator[Serve]:
    """Run another service, whose endpoint behaves in a certain way."""

    @contextmanager
    def run(behaviour: str, **more: Any) -> Iterator[httpx.Client]:
        with http_server(_moderated(settings, endpoint.url(behaviour), **more)) as url, _client(url, redis) as client:
            yield client

    return run


def submit(http: httpx.Client, path: str = "/img2img", **fields: Any) -> httpx.Response:
    return http.post(path, json={"image": TEXT, **fields})


@pytest.mark.parametrize("field", ["prompt", "negative_prompt", "instruction"])
def test_flagged_text_is_refused_with_its_categories(http: httpx.Client, queue: JobQueue, field: str) -> None:
    problem = assert_problem(submit(http, **{field: "a forbidden house"}), 422, "flagged")
    assert (problem["categories"], problem["detail"]) == (["violence"], "The prompt was flagged (violence).")
    assert not queue.job_store.active_ids()
    accepted = submit(http, **{field: "a house"})
    assert accepted.status_code == 202
    assert queue.job_store.active_ids() == [accepted.json()["id"]]


def test_dry_run_is_refused_like_the_request(http: httpx.Client) -> None:
    assert_problem(http.post("/img2img?dry_run=true", json={"image": TEXT, "prompt": "forbidden"}), 422, "flagged")


REFUSED = {
    "/img2img": {"image": base64.b64encode(RED).decode()},
    "/control-maps": {"image": base64.b64encode(RED).decode(), "type": "canny"},
    "/masks": {"image": base64.b64encode(RED).decode(), "text": "house"},
}


@pytest.mark.parametrize(("path", "fields"), REFUSED.items())
def test_flagged_input_image_is_refused(http: httpx.Client, queue: JobQueue, path: str, fields: dict[str, Any]) -> None:
    problem = assert_problem(http.post(path, json=fields), 422, "flagged")
    assert (problem["categories"], problem["detail"]) == (["red"], "An image of the request was flagged (red).")
    assert not queue.job_store.active_ids()


def test_masks_and_empty_texts_are_not_sent(http: httpx.Client, endpoint: Endpoint) -> None:
    mask = base64.b64encode(encoded(Image.new("L", (160, 120), 255))).decode()
    assert submit(http, mask=mask, prompt=" ").status_code == 202
    [request] = endpoint.requests()
    assert [part["type"] for part in request["body"]["input"]] == ["image_url"]


def test_repeated_request_is_not_checked_again(http: httpx.Client, endpoint: Endpoint) -> None:
    headers = {"Idempotency-Key": "a"}
    first, second = (
        http.post("/img2img", json={"image": TEXT, "prompt": "a house"}, headers=headers) for _ in range(2)
    )
    assert first.json()["id"] == second.json()["id"]
    assert len(endpoint.requests()) == 2


def test_compatible_apis_refuse_in_their_own_formats(http: httpx.Client, queue: JobQueue) -> None:
    files = {"image": ("image.png", IMAGE)}
    refused = http.post("/v1/images/edits", files=files, data={"prompt": "forbidden"})
    assert refused.status_code == 400
    error = refused.json()["error"]
    assert (error["type"], error["code"]) == ("image_generation_user_error", "moderation_blocked")
    assert http.post("/v1/images/variations", files={"image": ("image.png", RED)}).status_code == 400
    web_ui = http.post("/sdapi/v1/img2img", json={"init_images": [TEXT], "prompt": "forbidden"})
    assert assert_problem(web_ui, 422, "flagged")["detail"] == "The prompt was flagged (violence)."
    assert not queue.job_store.active_ids()


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/images/edits", {"image": TEXT, "prompt": "a house"}, 400),
        ("/sdapi/v1/img2img", {"init_images": [TEXT]}, 422),
    ],
)
def test_compatible_apis_report_flagged_results(
    http: httpx.Client, queue: JobQueue, path: str, body: dict[str, Any], status: int
) -> None:
    with ThreadPoolExecutor(1) as pool:
        response = pool.submit(http.post, path, json=body)
        wait_for(lambda: queue.job_store.active_ids())
        [job_id] = queue.job_store.active_ids()
        assert queue.job_store.start(job_id, execution="e", worker="w")
        assert queue.job_store.fail(job_id, JobFailure(code="flagged", message="flagged"), execution="e")
        refused = response.result()
    assert refused.status_code == status
    assert "The result is not delivered: it was flagged." in refused.text


@pytest.mark.parametrize("behaviour", ["error", "garbage", "redirect", "huge", "silent"])
def test_request_is_refused_or_passes_without_verdict(serve: Serve, queue: JobQueue, behaviour: str) -> None:
    timeout_s = 0.3 if behaviour == "silent" else 30
    with serve(behaviour, moderation_timeout_s=timeout_s) as http:
        refused = submit(http, prompt="a house")
        assert_problem(refused, 503, "moderation_unavailable")
        assert refused.headers["retry-after"]
        assert not queue.job_store.active_ids()
        # Nothing to ask about.
        assert submit(http).status_code == 202
    with serve(behaviour, moderation_timeout_s=timeout_s, moderation_fail_open=True) as http:
        assert submit(http, prompt="a house").status_code == 202


def test_slow_moderation_delays_no_other_request_and_is_bounded(
    serve: Serve, endpoint: Endpoint, queue: JobQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_moderation, "MAX_OPEN", 3)
    monkeypatch.setattr("img2img.app.main.MAX_OPEN", 3)
    with serve("held") as http, ThreadPoolExecutor(3) as pool:
        held = [pool.submit(submit, http, prompt="a house") for _ in range(3)]
        wait_for(lambda: len(endpoint.requests()) == 3)
        assert http.get("/jobs").status_code == 200
        assert_problem(submit(http, prompt="a house"), 503, "overloaded")
        assert not queue.job_store.active_ids()
        endpoint.release()
        assert [response.result().status_code for response in held] == [202] * 3
    assert len(queue.job_store.active_ids()) == 3
    assert {queue.job_store.find(job_id).status for job_id in queue.job_store.active_ids()} == {JobStatus.QUEUED}
