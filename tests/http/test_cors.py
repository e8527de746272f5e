"""Browsers: pages of the origins that the settings name may use the service, with a key; no others may."""

from collections.abc import Iterator

import httpx
import pytest
from pydantic import ValidationError
from redis import Redis

from img2img.app.settings import ApiSettings
from img2img.redis.api_keys import ApiKeys
from img2img.redis.model_registry import ModelRegistry
from tests.support.authenticated import authenticated_server, client_with
from tests.support.model_cards import CARD
from tests.support.problems import assert_problem

STUDIO = "https://studio.example"
PREFLIGHT = {
    "Origin": STUDIO,
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization, content-type, idempotency-key",
}


@pytest.fixture(scope="module")
def url(settings: ApiSettings) -> Iterator[str]:
    with authenticated_server(settings, cors_origins=f"http://localhost:3000, {STUDIO}") as url:
        yield url


def test_a_preflight_needs_no_key(url: str) -> None:
    answer = httpx.options(f"{url}/img2img", headers=PREFLIGHT)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == STUDIO
    assert "POST" in answer.headers["access-control-allow-methods"]
    allowed = answer.headers["access-control-allow-headers"].lower()
    assert {"authorization", "x-api-key", "idempotency-key", "last-event-id"} <= set(allowed.split(", "))
    assert "access-control-allow-credentials" not in answer.headers


def test_a_page_reads_answers_and_refusals(url: str, redis: Redis, picture: bytes) -> None:
    redis.flushall()
    ModelRegistry(redis).register("test-worker", [CARD], ttl_s=60)
    with client_with(url, ApiKeys(redis)) as client:
        answer = client.post("/img2img", files={"image": picture}, headers={"Origin": STUDIO})
        assert answer.status_code == 202
        assert answer.headers["access-control-allow-origin"] == STUDIO
        exposed = set(answer.headers["access-control-expose-headers"].split(", "))
        assert {"Location", "Retry-After", "ETag", "RateLimit", "Idempotency-Replayed"} <= exposed
    refused = httpx.get(f"{url}/jobs", headers={"Origin": STUDIO})
    assert_problem(refused, 401, "missing_api_key")
    assert refused.headers["access-control-allow-origin"] == STUDIO


def test_pages_of_other_origins_read_nothing(url: str) -> None:
    stranger = {**PREFLIGHT, "Origin": "https://elsewhere.example"}
    assert "access-control-allow-origin" not in httpx.get(f"{url}/healthz", headers=stranger).headers
    refused = httpx.options(f"{url}/img2img", headers=stranger)
    assert refused.status_code == 400
    assert "access-control-allow-origin" not in refused.headers


def test_off_unless_asked_for(service_url: str) -> None:
    answer = httpx.options(f"{service_url}/img2img", headers=PREFLIGHT)
    assert answer.status_code == 405
    assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    "origins", ["studio.example", "https://studio.example/path", "https://a.example;https://b.example/", "ftp://x"]
)
def test_origins_that_no_browser_sends(origins: str) -> None:
    with pytest.raises(ValidationError, match=r"https://studio\.example"):
        ApiSettings(_env_file=None, cors_origins=origins)
