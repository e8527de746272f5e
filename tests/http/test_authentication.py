"""Authentication over real HTTP, for every route."""

import logging
import re
import time
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from redis import Redis

import img2img.redis.api_keys
from img2img.app.http.authentication import CACHE_TTL_S, PUBLIC_PATHS
from img2img.app.main import create_app
from img2img.app.settings import ApiSettings, is_loopback
from img2img.app.supervisor.supervisor import free_port
from img2img.domain.api_key import ApiKey, Scope
from img2img.redis.api_keys import ApiKeys
from img2img.redis.keys import API_KEYS
from img2img.redis.worker_starts import WorkerStart, WorkerStarts
from tests.support.authenticated import (
    authenticated_server,
    client_with,
    connected,
    empty_keys,
    every_route,
    path_of,
    routes,
    until_closed,
)
from tests.support.problems import assert_problem

GUARDED = [(method, path) for method, path in routes() if not PUBLIC_PATHS.fullmatch(path)]
NEW_KEY = "i2i_" + "A" * 43


@pytest.fixture(scope="module")
def url(settings: ApiSettings) -> Iterator[str]:
    with authenticated_server(settings) as url:
        yield url


@pytest.fixture
def keys(redis: Redis) -> ApiKeys:
    return empty_keys(redis)


@pytest.fixture
def anonymous(url: str, keys: ApiKeys) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=10) as client:
        yield client


def at(path: str) -> str:
    return path_of(path)


def assert_unauthorized(response: httpx.Response, method: str, code: str) -> None:
    assert response.status_code == 401
    assert response.headers["www-authenticate"].startswith('Bearer realm="img2img"')
    if method != "HEAD":
        assert_problem(response, 401, code)


def test_every_route_is_covered() -> None:
    documented = create_app(ApiSettings(_env_file=None)).openapi()["paths"]
    assert {re.sub(r":\w+}", "}", path) for _, path in routes()} == set(documented)
    assert len(GUARDED) >= 11


@pytest.mark.parametrize(("method", "path"), GUARDED)
def test_every_route_requires_a_valid_key(anonymous: httpx.Client, keys: ApiKeys, method: str, path: str) -> None:
    revoked, key = keys.create("gone", tuple(Scope))
    assert keys.revoke(key.id)
    assert_unauthorized(anonymous.request(method, at(path)), method, "missing_api_key")
    for bad in (NEW_KEY, revoked, revoked[:-1], "é", "i2i_"):
        for headers in ({"Authorization": f"Bearer {bad}".encode()}, {"X-API-Key": bad.encode()}):
            assert_unauthorized(anonymous.request(method, at(path), headers=headers), method, "invalid_api_key")
    basic = {"Authorization": "Basic aTJpOmkyaQ=="}
    assert_unauthorized(anonymous.request(method, at(path), headers=basic), method, "invalid_api_key")
    digest = {"Authorization": 'Digest username="i2i"'}
    assert_unauthorized(anonymous.request(method, at(path), headers=digest), method, "missing_api_key")


@pytest.mark.parametrize(("method", "path"), GUARDED)
def test_insufficient_scope_names_the_required_scope(url: str, keys: ApiKeys, method: str, path: str) -> None:
    is_read = method in ("GET", "HEAD")
    needed, other = (Scope.READ, Scope.SUBMIT) if is_read else (Scope.SUBMIT, Scope.READ)
    if path.startswith("/models/") and not is_read:
        needed, other = Scope.ADMIN, Scope.SUBMIT
    with client_with(url, keys, other) as client:
        rejected = client.request(method, at(path))
        assert rejected.status_code == 403
        assert f'scope="{needed}"' in rejected.headers["www-authenticate"]
        if method != "HEAD":
            assert f"`{needed}`" in assert_problem(rejected, 403, "insufficient_scope")["detail"]
    for enough in (needed, Scope.ADMIN):
        with client_with(url, keys, enough) as client:
            assert client.request(method, at(path)).status_code not in (401, 403)


@pytest.mark.parametrize(
    ("method", "path"),
    [(method, path) for method, path in every_route() if path.startswith(("/v1/", "/sdapi/", "/hf", "/replicate/"))],
)
def test_submit_alone_receives_no_images(url: str, keys: ApiKeys, method: str, path: str) -> None:
    """The compatibility APIs respond to a submit with its images."""
    without_images = {
        "/sdapi/v1/interrupt",
        "/sdapi/v1/options",
        "/replicate/v1/files",
        "/replicate/v1/files/{sha256}",
        "/replicate/v1/predictions/{job_id}/cancel",
    }
    needed = {Scope.READ} if method in ("GET", "HEAD") else {Scope.SUBMIT}
    needed |= {Scope.READ} - ({Scope.READ} if path in without_images else set())
    for missing in needed:
        with client_with(url, keys, *(set(Scope) - {Scope.ADMIN, missing})) as client:
            rejected = client.request(method, path_of(path))
        assert rejected.status_code == 403
        if method != "HEAD":
            assert f"`{missing}`" in rejected.text
    with client_with(url, keys, *needed) as client:
        assert client.request(method, path_of(path)).status_code not in (401, 403)


def test_high_priority_needs_its_scope(url: str, keys: ApiKeys, image_bytes: bytes) -> None:
    image = {"image": ("a.png", image_bytes)}
    high = {"priority": "high", "prompt": "x"}
    submits = [
        ("/img2img", {"files": image, "data": high}),
        ("/img2img?dry_run=true", {"files": image, "data": high}),
        ("/img2img", {"json": {"image": b64encode(image_bytes).decode(), "priority": "high"}}),
        ("/v1/images/edits", {"files": image, "data": high}),
        ("/v1/images/variations", {"files": image, "data": {"priority": "high"}}),
    ]
    with client_with(url, keys) as client:
        for path, options in submits:
            refused = client.post(path, **options)
            assert refused.status_code == 403, path
            assert "insufficient_scope" in refused.text
            assert "with the scope `priority`" in refused.text
            assert "img2img keys create" in refused.text
        for priority in ("normal", "low"):
            assert client.post("/img2img", files=image, data={"priority": priority}).status_code == 202
        web_ui = {"init_images": [b64encode(image_bytes).decode()], "priority": "high"}
        assert client.post("/sdapi/v1/img2img", json=web_ui).status_code == 422, "it has no such field"
    for scopes in ((Scope.SUBMIT, Scope.PRIORITY), (Scope.ADMIN,)):
        with client_with(url, keys, *scopes) as client:
            accepted = client.post("/img2img", files=image, data=high)
            assert (accepted.status_code, accepted.json()["priority"]) == (202, "high")
    with client_with(url, keys, Scope.PRIORITY) as client:
        assert_problem(client.post("/img2img", files=image), 403, "insufficient_scope")


def test_high_priority_needs_no_scope_without_keys(http: httpx.Client, image_bytes: bytes) -> None:
    response = http.post("/img2img", files={"image": image_bytes}, data={"priority": "high"})
    assert (response.status_code, response.json()["priority"]) == (202, "high")


@pytest.mark.parametrize(("method", "path"), GUARDED)
def test_every_route_rejects_an_expired_key(url: str, keys: ApiKeys, method: str, path: str) -> None:
    secret, _ = keys.create("expired", tuple(Scope), time.time() - 1)
    with httpx.Client(base_url=url, headers={"X-API-Key": secret}) as client:
        assert_unauthorized(client.request(method, at(path)), method, "expired_api_key")


@pytest.mark.parametrize(
    "path", ["/", "/healthz", "/readyz", "/docs", "/openapi.json", "/static-offline-docs/swagger-ui.css"]
)
def test_public_paths_need_no_key(anonymous: httpx.Client, path: str) -> None:
    assert anonymous.get(path).status_code == 200


@pytest.mark.parametrize(
    "path", ["/nowhere", "/docs/../jobs", "/healthz/../jobs", "//jobs", "/jobs/", "/healthz/x", "/docs\n"]
)
def test_unknown_paths_require_a_key(url: str, keys: ApiKeys, path: str) -> None:
    with connected(url) as connection:
        connection.sendall(
            f"GET {path.replace(chr(10), '%0A')} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
        )
        status = int(until_closed(connection).split(b" ")[1])
    assert status in (401, 404)
    assert status == 401 or path.startswith("/docs/")


def test_key_is_accepted_in_each_header(anonymous: httpx.Client, keys: ApiKeys) -> None:
    secret, _ = keys.create("test", [Scope.READ])
    for headers in (
        {"Authorization": f"Bearer {secret}"},
        {"authorization": f"bearer  {secret}"},
        {"X-API-Key": secret},
        {"Authorization": f"Basic {b64encode(f'ada:{secret}'.encode()).decode()}"},
    ):
        assert anonymous.get("/jobs", headers=headers).status_code == 200


@pytest.mark.parametrize("basic", ["no base64", b64encode(b"ada").decode(), b64encode(b"ada:\xff").decode()])
def test_invalid_basic_credentials_are_rejected(anonymous: httpx.Client, keys: ApiKeys, basic: str) -> None:
    keys.create("test", [Scope.READ])
    assert anonymous.get("/jobs", headers={"Authorization": f"Basic {basic}"}).status_code == 401


def test_revoked_key_is_rejected_within_seconds(url: str, keys: ApiKeys) -> None:
    with client_with(url, keys) as client:
        assert client.get("/jobs").status_code == 200
        [key] = keys.all()
        keys.revoke(key.id)
        deadline = time.monotonic() + CACHE_TTL_S + 10
        while client.get("/jobs").status_code == 200:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert_problem(client.get("/jobs"), 401, "invalid_api_key")


@pytest.mark.parametrize("expect", ["", "Expect: 100-continue\r\n"])
@pytest.mark.parametrize("size", ["Content-Length: 4000000\r\n", "Transfer-Encoding: chunked\r\n"])
def test_authentication_precedes_the_body(
    url: str, keys: ApiKeys, monkeypatch: pytest.MonkeyPatch, expect: str, size: str
) -> None:
    monkeypatch.setattr("img2img.app.http.body_limits.LINGER_S", 0.5)
    with connected(url) as connection:
        kind = "Content-Type: application/json\r\n"
        connection.sendall(f"POST /img2img HTTP/1.1\r\nHost: localhost\r\n{kind}{size}{expect}\r\n".encode())
        received = until_closed(connection)
    assert received.startswith(b"HTTP/1.1 401 Unauthorized\r\n")
    assert b"connection: close\r\n" in received.lower()
    assert received.endswith(b"}")
    assert b"missing_api_key" in received


def test_client_reads_the_rejection_after_sending_a_large_body(anonymous: httpx.Client) -> None:
    assert_unauthorized(anonymous.post("/images", content=bytes(3_900_000)), "POST", "missing_api_key")
    too_large = anonymous.post("/images", content=bytes(9_000_000))
    assert_unauthorized(too_large, "POST", "missing_api_key")  # authentication precedes the size limit


def test_authenticated_body_is_limited_in_size(url: str, keys: ApiKeys) -> None:
    with client_with(url, keys) as client:
        assert_problem(client.post("/images", content=bytes(9_000_000)), 413, "payload_too_large")
        chunks = (bytes(1_000_000) for _ in range(9))
        headers = {"Content-Type": "application/json"}
        assert_problem(client.post("/images", content=chunks, headers=headers), 413, "payload_too_large")


def test_authentication_fails_without_redis(settings: ApiSettings, tmp_path: Path) -> None:
    away = {"redis_url": f"unix://{tmp_path}/none.sock"}
    with (
        authenticated_server(settings, **away) as url,
        httpx.Client(base_url=url, headers={"X-API-Key": NEW_KEY}) as client,
    ):
        rejected = client.get("/jobs")
        assert_problem(rejected, 503, "unavailable")
        assert int(rejected.headers["retry-after"]) > 0
        assert client.get("/healthz").status_code == 200
        assert_problem(client.get("/jobs", headers={"X-API-Key": ""}), 401, "invalid_api_key")


def test_keys_are_never_logged(url: str, keys: ApiKeys, caplog: pytest.LogCaptureFixture, redis: Redis) -> None:
    with caplog.at_level(logging.DEBUG), client_with(url, keys) as client:
        secret = client.headers["authorization"].removeprefix("Bearer ")
        client.get("/jobs")
        client.get("/jobs/x", headers={"X-API-Key": secret})
        client.post("/img2img", json={"image": "x"})
        client.get("/jobs", headers={"Authorization": "", "X-API-Key": NEW_KEY})
    ours = [record for record in caplog.records if not record.name.startswith(("httpx", "httpcore"))]
    logged = " ".join(record.getMessage() for record in ours)
    assert secret not in logged
    assert NEW_KEY not in logged


def test_redis_stores_only_hashes_of_keys(redis: Redis, keys: ApiKeys) -> None:
    secret, key = keys.create("Ada", [Scope.READ])
    assert len(secret) == len("i2i_") + 43
    assert secret.encode() not in b"".join(redis.hvals(API_KEYS) + redis.hkeys(API_KEYS))
    assert keys.find(secret) == key
    assert keys.all() == [key]
    assert keys.create("Ada", [Scope.READ])[0] != secret


def test_hashes_are_compared_in_constant_time(redis: Redis, keys: ApiKeys, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[str, str]] = []
    original = img2img.redis.api_keys.compare_digest

    def compare(one: str, other: str) -> bool:
        compared.append((one, other))
        return original(one, other)

    monkeypatch.setattr("img2img.redis.api_keys.compare_digest", compare)
    secret, key = keys.create("Ada", [Scope.READ])
    assert keys.find(secret) == key
    assert compared == [(key.sha256, key.sha256)]
    similar = ApiKey(**{**key.model_dump(), "sha256": key.sha256[:-1] + ("0" if key.sha256[-1] != "0" else "1")})
    redis.hset(API_KEYS, key.id, similar.model_dump_json())
    assert keys.find(secret) is None
    assert len(compared) == 2


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("localhost", True),
        ("0.0.0.0", False), ("::", False), ("192.168.1.4", False), ("", False), ("studio.example", False),
    ],
)  # fmt: skip
def test_keys_are_required_beyond_loopback(host: str, loopback: bool) -> None:
    def required(**given: object) -> bool:
        return ApiSettings(_env_file=None, host=host, port=free_port(), **given).keys_required

    assert is_loopback(host) is loopback
    assert required() is not loopback
    assert required(keys="required") is True
    assert required(insecure=True) is False


def test_readiness_names_no_paths_without_a_key(anonymous: httpx.Client, redis: Redis) -> None:
    error = "/srv/models/secret has no model_index.json"
    WorkerStarts(redis).report("gpu-1:7", WorkerStart(stage="loading photo", error=error))
    WorkerStarts(redis).report("gpu-2:7", WorkerStart(stage="loading photo on cuda", seconds=12))
    detail = anonymous.get("/readyz").json()["workers"]["detail"]
    WorkerStarts(redis).finish("gpu-2:7")
    assert detail.endswith("; cannot start: the reason is in its log; loading photo on cuda, 12 s")
