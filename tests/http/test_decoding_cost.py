"""Decoding over real HTTP: turns of API keys, and its share of the rate limit."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import pytest
from PIL import Image
from redis import Redis

from img2img.app.settings import ApiSettings
from img2img.imaging import sandbox_pool
from img2img.redis.job_queue import JobQueue
from tests.http.test_limits import clients_of
from tests.support.images import encoded, gradient
from tests.support.problems import assert_problem

PIXELS = 24_000_000
LARGE = {"max_pixels": PIXELS}


@pytest.fixture(scope="module")
def bomb() -> bytes:
    """A PNG of 100 KB that takes a decoder half a second or more."""
    return encoded(Image.new("RGBA", (6000, 4000), (1, 2, 3, 9)), compress_level=9)


@pytest.fixture(scope="module")
def small() -> bytes:
    return encoded(gradient(16, 16))


def dry_run(client: httpx.Client, image: bytes) -> httpx.Response:
    return client.post("/img2img?dry_run=true", files={"image": image}, timeout=120)


@contextmanager
def attack(client: httpx.Client, image: bytes, connections: int) -> Iterator[list[int]]:
    """Send dry runs on many connections at once. Yields the status codes."""
    stopped, codes = threading.Event(), []

    def send() -> None:
        while not stopped.is_set():
            codes.append(dry_run(client, image).status_code)

    with ThreadPoolExecutor(connections) as pool:
        running = [pool.submit(send) for _ in range(connections)]
        try:
            yield codes
        finally:
            stopped.set()
            for future in running:
                future.result()


def test_large_images_of_one_key_do_not_delay_another(
    settings: ApiSettings, redis: Redis, bomb: bytes, small: bytes
) -> None:
    with clients_of(settings, redis, 2, **LARGE) as (greedy, modest):
        started_at = time.monotonic()
        assert dry_run(greedy, bomb).status_code == 200
        alone_s = time.monotonic() - started_at
        with attack(greedy, bomb, 12) as codes:
            time.sleep(alone_s)
            waits = []
            for _ in range(5):
                started_at = time.monotonic()
                assert dry_run(modest, small).status_code == 200
                waits.append(time.monotonic() - started_at)
        assert set(codes) == {200}
    # First come, first served would take twelve images on the machine's cores.
    assert sorted(waits)[2] < 3 * alone_s + 1, (alone_s, waits)


def test_waiting_requests_are_bounded(
    settings: ApiSettings, redis: Redis, bomb: bytes, small: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("img2img.app.main.MAX_WAITING_PER_OWNER", 2)
    with clients_of(settings, redis, 2, **LARGE) as (greedy, modest):
        with ThreadPoolExecutor(12) as pool:
            responses = [pool.submit(dry_run, greedy, bomb) for _ in range(12)]
            time.sleep(0.2)
            assert dry_run(modest, small).status_code == 200
            refused = [r.result() for r in responses if r.result().status_code != 200]
        assert len(refused) > 3
        for response in refused:
            assert_problem(response, 503, "decoders_busy")
            assert int(response.headers["retry-after"]) > 0
        assert dry_run(greedy, small).status_code == 200


@pytest.mark.parametrize(
    ("path", "fields", "status"),
    [
        ("/img2img?dry_run=true", {}, 200),
        ("/img2img?dry_run=false", {"strength": "0.5", "num_inference_steps": "1", "guidance_scale": "1"}, 202),
        ("/img2img", {}, 422),
        ("/images", {}, 201),
    ],
    ids=["dry run", "submit", "refused", "upload"],
)
def test_every_decoding_counts(
    settings: ApiSettings, redis: Redis, path: str, fields: dict[str, str], status: int
) -> None:
    # 4 megapixels cost 0.8 of 2 megapixel-steps.
    image = encoded(Image.new("RGB", (2000, 2000)))
    if status == 422:
        image = image[:-40]
    with clients_of(settings, redis, 2, rate_limit="2/hour") as (ada, bob):
        responses = [ada.post(path, files={"image": image}, data=fields) for _ in range(4)]
        accepted = [response for response in responses if response.status_code == status]
        assert 1 <= len(accepted) <= 2, [response.text for response in responses]
        for response in responses[len(accepted) :]:
            assert_problem(response, 429, "rate_limited")
            assert int(response.headers["retry-after"]) > 600
        assert bob.post(path, files={"image": image}, data=fields).status_code == status


def test_referenced_image_counts_when_it_is_decoded(settings: ApiSettings, redis: Redis, queue: JobQueue) -> None:
    image = encoded(Image.new("RGB", (2000, 2000)))
    with clients_of(settings, redis, rate_limit="1/hour") as (client,):
        sha256 = client.post("/images", files={"image": image}).json()["sha256"]
        response = client.post("/img2img?dry_run=true", json={"image": sha256})
        assert_problem(response, 429, "rate_limited")
        assert "Decoding the image costs 0.8 megapixel-steps" in response.json()["detail"]


def test_image_above_the_limit_of_a_period_is_refused_before_it_is_decoded(
    settings: ApiSettings, redis: Redis, bomb: bytes
) -> None:
    with clients_of(settings, redis, rate_limit="1/hour", **LARGE) as (client,):
        response = dry_run(client, bomb)
        problem = assert_problem(response, 422, "job_too_expensive")
        assert "send a smaller image" in problem["detail"]


def test_pool_fits_into_the_memory_of_a_container(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = sandbox_pool.SandboxLimits(50_000_000, 32_000_000)
    monkeypatch.setattr(sandbox_pool, "cpu_count", lambda: 64)
    for gib, slots, heavy in ((0.25, 1, 1), (2, 4, 1), (256, 64, 63)):
        monkeypatch.setattr(sandbox_pool, "memory_bytes", lambda gib=gib: int(gib * 1024**3))
        pool = sandbox_pool.DecoderPool(limits)
        assert (pool.slots.slots, pool.slots.heavy_slots) == (slots, min(heavy, pool.slots.heavy_slots))
        used = pool.slots.heavy_slots * 50_000_000 + (slots - pool.slots.heavy_slots) * sandbox_pool.LIGHT_PIXELS
        assert gib < 2 or used * sandbox_pool.BYTES_PER_PIXEL < 1.2 * gib * 1024**3
