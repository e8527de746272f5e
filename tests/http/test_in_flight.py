"""Bytes that all requests together hold: large requests are rejected while too much is in progress."""

import json
import time
from base64 import b64encode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import pytest
from redis import Redis

from img2img.app.http.errors import Overloaded
from img2img.app.http.in_flight import BODY_COPIES, FREE_BYTES, ByteBudget, HeldBytes
from img2img.app.main import byte_budget
from img2img.app.settings import ApiSettings
from img2img.app.supervisor.supervisor import free_port
from img2img.redis.api_keys import ApiKeys
from img2img.redis.model_registry import ModelRegistry
from tests.support.api_process import api_process
from tests.support.authenticated import authenticated_server, client_with, connected
from tests.support.images import encoded, gradient
from tests.support.model_cards import CARD
from tests.support.problems import assert_problem
from tests.support.processes import wait_for
from tests.support.servers import http_server, redis_server

MB = 1_000_000
JSON = {"Content-Type": "application/json"}
POST = "POST {} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n{}\r\n"


def test_budget_limits_the_total_and_each_owner() -> None:
    budget = ByteBudget(100, 50)
    ada, bob, eve = (HeldBytes(budget, owner) for owner in ("ada", "bob", "eve"))
    ada.add(40)
    with pytest.raises(Overloaded, match="Your requests"):
        HeldBytes(budget, "ada").add(11)
    bob.add(50)
    with pytest.raises(Overloaded, match="All requests"):
        eve.add(11)
    eve.add(10)
    ada.release()
    ada.release()
    eve.add(40)
    for one in (bob, eve):
        one.release()
    assert budget.used == 0


def test_one_request_alone_may_hold_more_than_the_limit() -> None:
    budget = ByteBudget(100, 50)
    one, other = HeldBytes(budget, "ada"), HeldBytes(budget, "ada")
    one.add(80)
    one.add(80)
    with pytest.raises(Overloaded):
        other.add(1)
    one.release()
    other.add(1)


def test_default_budget_depends_on_the_memory(settings: ApiSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("img2img.app.main.memory_bytes", lambda: 400 * MB)
    held = HeldBytes(byte_budget(settings), "")
    HeldBytes(byte_budget(settings), "")
    held.add(100 * MB)
    held.check(1)  # alone
    monkeypatch.setattr("img2img.app.main.memory_bytes", lambda: 400_000 * MB)
    budget = byte_budget(settings)
    HeldBytes(budget, "").add(512 * 1024 * 1024)
    with pytest.raises(Overloaded):
        HeldBytes(budget, "").add(1)


@contextmanager
def half_sent(url: str, path: str, size: int, headers: str = "") -> Iterator[None]:
    """A request whose body of `size` bytes lacks its last byte."""
    with connected(url) as connection:
        connection.sendall(POST.format(path, size, headers).encode())
        connection.sendall(b'{"image":"' + b"A" * (size - 11))
        # Until it has been read. A request that only declares its size does not take the place of this one.
        wait_for(lambda: _is_rejected(url, path, size, headers))
        yield


def _is_rejected(url: str, path: str, size: int, headers: str) -> bool:
    with connected(url) as connection:
        connection.settimeout(0.5)
        connection.sendall(POST.format(path, size, headers).encode())
        try:
            return connection.recv(12) == b"HTTP/1.1 503"
        except TimeoutError:
            return False


@pytest.mark.parametrize("path", ["/img2img", "/images", "/sdapi/v1/img2img", "/sdapi/v1/options"])
def test_large_bodies_are_rejected_while_too_much_is_in_progress(
    settings: ApiSettings, http: httpx.Client, image_bytes: bytes, path: str
) -> None:
    limited = settings.model_copy(update={"port": free_port(), "max_inflight_bytes": 6 * MB})
    large = json.dumps({"image": "A" * 2 * MB})
    with http_server(limited) as url, httpx.Client(base_url=url, timeout=20) as client:
        with half_sent(url, path, 2 * MB):
            # By its Content-Length, and while it is read.
            for content in (large.encode(), (piece.encode() for piece in (large[:100], large[100:]))):
                response = client.post(path, content=content, headers=JSON)
                assert_problem(response, 503, "overloaded")
                assert int(response.headers["retry-after"]) > 0
            # Small requests pass.
            assert client.post("/img2img", files={"image": image_bytes}).status_code == 202
            assert client.get("/jobs").status_code == 200
        wait_for(lambda: client.post(path, content=large, headers=JSON).status_code != 503)


def test_slow_bodies_hold_only_what_has_arrived(settings: ApiSettings, http: httpx.Client) -> None:
    limited = settings.model_copy(update={"port": free_port(), "max_inflight_bytes": 6 * MB})
    with http_server(limited) as url, ExitStack() as stack:
        for _ in range(50):
            connection = stack.enter_context(connected(url))
            connection.sendall(POST.format("/img2img", 2 * MB, "").encode() + b'{"image":"' + b"A" * 50_000)
        time.sleep(0.3)
        response = httpx.post(f"{url}/img2img", json={"image": "A" * 2 * MB})
        assert_problem(response, 415, "unsupported_media_type")


def test_one_api_key_cannot_use_the_whole_budget(settings: ApiSettings, redis: Redis) -> None:
    redis.flushall()
    ModelRegistry(redis).register("test-worker", [CARD], ttl_s=60)
    large = {"image": "A" * 2 * MB}
    with (
        authenticated_server(settings, max_inflight_bytes=12 * MB) as url,
        client_with(url, ApiKeys(redis)) as ada,
        client_with(url, ApiKeys(redis)) as bob,
        half_sent(url, "/img2img", 2 * MB, f"Authorization: {ada.headers['authorization']}\r\n"),
    ):
        assert_problem(ada.post("/img2img", json=large), 503, "overloaded")
        assert_problem(bob.post("/img2img", json=large), 415, "unsupported_media_type")


def test_compatible_apis_release_the_body_while_the_job_runs(
    settings: ApiSettings, http: httpx.Client, redis: Redis
) -> None:
    noise = encoded(gradient(160, 120)) + b"\0" * 2 * MB
    body = {"init_images": [b64encode(noise).decode()], "width": 128, "height": 128}
    limited = settings.model_copy(update={"port": free_port(), "max_inflight_bytes": 8 * MB})
    with http_server(limited) as url, httpx.Client(base_url=url, timeout=30) as client, ThreadPoolExecutor(4) as pool:
        waiting = []
        for count in range(1, 4):
            waiting.append(pool.submit(client.post, "/sdapi/v1/img2img", json=body))
            wait_for(lambda count=count: redis.zcard("i2i:jobs") == count)
            time.sleep(0.2)
        assert not any(one.done() for one in waiting)
        client.post("/sdapi/v1/interrupt")
        assert [one.result().status_code for one in waiting] == [200] * 3


def test_parallel_uploads_have_bounded_memory(tmp_path: Path) -> None:
    """60 bodies of 10 MB against a budget of 100 MB."""
    size = 10 * MB
    assert (size - FREE_BYTES) * BODY_COPIES < 100 * MB / 4
    content = b'{"image":"' + b"A" * size + b'"}'
    with TemporaryDirectory(prefix="i2i-") as name, redis_server(Path(name)):
        budget = {"IMG2IMG_MAX_INFLIGHT_BYTES": str(100 * MB)}
        with api_process(Path(name), tmp_path / "log", **budget) as api, ThreadPoolExecutor(60) as pool:
            before = api.peak_bytes()

            def post(_: int) -> int:
                return httpx.post(f"{api.url}/img2img", content=content, headers=JSON, timeout=60).status_code

            statuses = list(pool.map(post, range(60)))
            # 600 MB of bodies, which take more than 1,000 MB with all copies.
            assert api.peak_bytes() - before < 400 * MB
            assert statuses.count(503) > 0
