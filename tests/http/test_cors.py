"""CORS: pages of allowed origins can use the service with a key, others cannot."""

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


def test_preflight_needs_no_key(url: str) -> None:
    response = httpx.options(f"{url}/img2img", headers=PREFLIGHT)
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == STUDIO
    assert "POST" in response.headers["access-control-allow-methods"]
    allowed = response.headers["access-control-allow-headers"].lower()
    assert {"authorization", "x-api-key", "idempotency-key", "last-event-id"} <= set(allowed.split(", "))
    assert "access-control-allow-credentials" not in response.headers


def test_allowed_origin_reads_responses_and_errors(url: str, redis: Redis, image_bytes: bytes) -> None:
    redis.flushall()
    ModelRegistry(redis).register("test-worker", [CARD], ttl_s=60)
    with client_with(url, ApiKeys(redis)) as client:
        response = client.post("/img2img", files={"image": image_bytes}, headers={"Origin": STUDIO})
        assert response.status_code == 202
        assert response.headers["access-control-allow-origin"] == STUDIO
        exposed = set(response.headers["access-control-expose-headers"].split(", "))
        assert {"Location", "Retry-After", "ETag", "RateLimit", "Idempotency-Replayed"} <= exposed
    rejected = httpx.get(f"{url}/jobs", headers={"Origin": STUDIO})
    assert_problem(rejected, 401, "missing_api_key")
    assert rejected.headers["access-control-allow-origin"] == STUDIO


def test_other_origins_are_rejected(url: str) -> None:
    stranger = {**PREFLIGHT, "Origin": "https://elsewhere.example"}
    assert "access-control-allow-origin" not in httpx.get(f"{url}/healthz", headers=stranger).headers
    rejected = httpx.options(f"{url}/img2img", headers=stranger)
    assert rejected.status_code == 400
    assert "access-control-allow-origin" not in rejected.headers


def test_cors_is_off_by_default(service_url: str) -> None:
    response = httpx.options(f"{service_url}/img2img", headers=PREFLIGHT)
    assert_problem(response, 403, "forbidden_origin")
    assert not [name for name in response.headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    "origins", ["studio.example", "https://studio.example/path", "https://a.example;https://b.example/", "ftp://x"]
)
def test_invalid_origins_are_rejected(origins: str) -> None:
    with pytest.raises(ValidationError, match=r"https://studio\.example"):
        ApiSettings(_env_file=None, cors_origins=origins)
