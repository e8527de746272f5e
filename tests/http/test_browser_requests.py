"""A service without API keys refuses web pages, over real HTTP with the headers that browsers send."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from pydantic import ValidationError
from redis import Redis

from img2img.app.settings import ApiSettings
from img2img.app.supervisor.supervisor import free_port
from img2img.redis.api_keys import ApiKeys
from tests.support.authenticated import authenticated_server, client_with, connected, every_route, path_of, until_closed
from tests.support.images import encoded, gradient
from tests.support.problems import assert_error, assert_problem
from tests.support.servers import http_server

STUDIO = "http://localhost:3000"
EVIL = "https://evil.example"
IMAGE = encoded(gradient(16, 16))
LINK = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
EMBEDDED = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}


@pytest.fixture(scope="module")
def studio(settings: ApiSettings) -> Iterator[httpx.Client]:
    """A client of a service that allows the pages of one origin, and one more host name."""
    changes = {"port": free_port(), "cors_origins": STUDIO, "allowed_hosts": "api, studio.local"}
    with http_server(settings.model_copy(update=changes)) as url, httpx.Client(base_url=url) as client:
        yield client


@pytest.mark.parametrize(("method", "path"), every_route())
def test_every_route_refuses_other_hosts_and_origins(http: httpx.Client, redis: Redis, method: str, path: str) -> None:
    path = path_of(path)
    before = set(redis.keys())
    for host in ("rebound.evil.example", "localhost.evil.example:8000", "127.0.0.1.evil.example", "[::2]"):
        refused = http.request(method, path, headers={"Host": host})
        assert refused.status_code == 403, host
        if method != "HEAD":
            assert "IMG2IMG_ALLOWED_HOSTS" in assert_error(refused, 403, "forbidden_host")
    for headers in (
        {"Origin": EVIL},
        {"Origin": "null"},
        {"Origin": "http://localhost:9"},
        {"Origin": "", "Sec-Fetch-Site": "same-origin"},
        EMBEDDED,
        {**EMBEDDED, "Sec-Fetch-Site": "same-site", "Referer": "http://localhost:9/page"},
        {**LINK, "Sec-Fetch-Dest": "iframe"},
    ):
        refused = http.request(method, path, headers=headers)
        assert refused.status_code == 403, headers
        if method != "HEAD":
            assert "IMG2IMG_CORS_ORIGINS" in assert_error(refused, 403, "forbidden_origin")
    assert set(redis.keys()) == before


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1:1", "127.8.8.8", "[::1]:8000"])
def test_loopback_hosts_are_accepted(http: httpx.Client, host: str) -> None:
    assert http.get("/jobs", headers={"Host": host}).status_code == 200


def test_own_pages_users_and_other_clients_are_accepted(http: httpx.Client) -> None:
    own = f"http://{http.base_url.netloc.decode()}"
    for headers in (
        {},
        {"Origin": own, "Sec-Fetch-Site": "same-origin"},  # /docs
        {"Origin": own},
        {"Sec-Fetch-Site": "none", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"},  # an address
        {"Sec-Fetch-Mode": "cors"},  # fetch of Node.js
    ):
        response = http.post("/img2img", files={"image": IMAGE}, headers=headers)
        assert response.status_code == 202, (headers, response.text)
    assert http.get("/docs", headers=LINK).status_code == 200
    assert_problem(http.post("/img2img", files={"image": IMAGE}, headers=LINK), 403, "forbidden_origin")


def test_request_without_a_host_is_accepted(service_url: str) -> None:
    """As the health check of the container sends it."""
    with connected(service_url) as connection:
        connection.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
        assert until_closed(connection).startswith(b"HTTP/1.1 200 OK\r\n")


def test_settings_allow_origins_and_hosts(studio: httpx.Client, redis: Redis) -> None:
    redis.flushall()
    for headers in (
        {"Origin": STUDIO, "Sec-Fetch-Site": "same-site"},
        {**EMBEDDED, "Sec-Fetch-Site": "same-site", "Referer": f"{STUDIO}/gallery"},
        {"Host": "api:8000"},
        {"Host": "Studio.local"},
        {"Host": "studio.local", "Origin": "http://studio.local"},
    ):
        assert studio.get("/jobs", headers=headers).status_code == 200, headers
    assert_problem(studio.get("/jobs", headers={"Origin": EVIL}), 403, "forbidden_origin")
    assert_problem(studio.get("/jobs", headers={"Host": "evil.local"}), 403, "forbidden_host")
    preflight = {"Origin": STUDIO, "Access-Control-Request-Method": "POST"}
    assert studio.options("/img2img", headers=preflight).status_code == 200
    assert studio.options("/img2img", headers={**preflight, "Origin": EVIL}).status_code in (400, 403)


def test_all_origins_can_be_allowed(settings: ApiSettings) -> None:
    with http_server(settings.model_copy(update={"port": free_port(), "cors_origins": "*"})) as url:
        for headers in ({"Origin": EVIL}, {"Origin": "null"}, EMBEDDED):
            assert httpx.get(f"{url}/jobs", headers=headers).status_code == 200
        assert httpx.get(f"{url}/jobs", headers={"Host": "rebound.evil.example"}).status_code == 403


@pytest.mark.parametrize(
    ("changes", "accepts_hosts", "accepts_origins"),
    [
        ({}, False, False),
        ({"host": "0.0.0.0", "published_host": "127.0.0.1"}, False, False),  # docker compose
        ({"host": "0.0.0.0", "insecure": True}, True, False),
        ({"host": "0.0.0.0", "published_host": "192.168.1.4", "insecure": True}, True, False),
    ],
)
def test_protection_follows_the_address(
    settings: ApiSettings, changes: dict[str, Any], accepts_hosts: bool, accepts_origins: bool
) -> None:
    with http_server(settings.model_copy(update={"port": free_port(), **changes})) as url:
        host = httpx.get(f"{url}/jobs", headers={"Host": "gpu-box:8000"})
        origin = httpx.post(f"{url}/jobs/{'0' * 32}/cancel", headers={"Origin": EVIL})
    assert (host.status_code == 200, origin.status_code != 403) == (accepts_hosts, accepts_origins)


def test_api_keys_replace_the_protection(settings: ApiSettings, redis: Redis) -> None:
    """A page has no key, and a browser adds none by itself."""
    redis.flushall()
    with authenticated_server(settings) as url, client_with(url, ApiKeys(redis)) as client:
        assert client.get("/jobs", headers={"Host": "studio.example", "Origin": EVIL}).status_code == 200
        assert httpx.get(f"{url}/jobs", headers={"Origin": EVIL}).status_code == 401


@pytest.mark.parametrize("hosts", ["studio.local:8000", "http://studio.local", "*", "a b", "[::1]"])
def test_invalid_host_names_are_rejected(hosts: str) -> None:
    with pytest.raises(ValidationError, match="host names without ports"):
        ApiSettings(_env_file=None, allowed_hosts=hosts)


def test_empty_names_are_ignored() -> None:
    """Compose leaves a comma behind."""
    accepted = ApiSettings(_env_file=None, allowed_hosts="api,").accepted_hosts
    assert accepted == {"api"}
