"""Errors in the formats of the compatible APIs, also of requests rejected before routing; ids of requests."""

import json
import re
from base64 import b64encode
from collections.abc import Iterator

import httpx
import openai
import pytest
from redis import Redis

from img2img.app.settings import ApiSettings
from img2img.domain.api_key import Scope
from img2img.redis.api_keys import ApiKeys
from img2img.redis.model_registry import ModelRegistry
from img2img.telemetry.logging import _add_context as add_context
from tests.support.authenticated import authenticated_server, connected, empty_keys, until_closed
from tests.support.images import encoded, gradient
from tests.support.problems import assert_problem

IMAGE = encoded(gradient(160, 120))
EDIT = {"files": {"image": IMAGE}, "data": {"prompt": "x"}}
UUID = "0af76519-16cd-43dd-8448-eb211c80319c"


@pytest.fixture(scope="module")
def guarded_url(settings: ApiSettings) -> Iterator[str]:
    with authenticated_server(settings, rate_limit="1/hour", body_timeout=2) as url:
        yield url


@pytest.fixture
def keys(redis: Redis) -> ApiKeys:
    return empty_keys(redis)


def sdk(url: str, key: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)


def assert_openai(response: httpx.Response, status: int, code: str) -> str:
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (status, code)
    assert set(error) == {"message", "type", "param", "code"}
    return str(error["message"])


class TestOpenAI:
    """The sentence is in the text of the exception."""

    def test_wrong_key(self, guarded_url: str, keys: ApiKeys) -> None:
        with pytest.raises(openai.AuthenticationError, match="The API key is unknown or revoked") as error:
            sdk(guarded_url, "wrong").models.list()
        assert error.value.code == "invalid_api_key"
        assert error.value.request_id

    def test_missing_scope(self, guarded_url: str, keys: ApiKeys) -> None:
        secret, _ = keys.create("reader", [Scope.READ])
        with pytest.raises(openai.PermissionDeniedError, match="needs an API key with the scope `submit`"):
            sdk(guarded_url, secret).images.edit(image=IMAGE, prompt="x")

    def test_unknown_paths_and_methods(self, http: httpx.Client) -> None:
        client = sdk(str(http.base_url), "none")
        with pytest.raises(openai.NotFoundError, match="/v1/images/generations is not supported"):
            client.images.generate(prompt="x")
        assert_openai(http.delete("/v1/models/demo"), 405, "method_not_allowed")

    def test_large_body(self, http: httpx.Client) -> None:
        with pytest.raises(openai.APIStatusError, match=r"larger than [\d,]+ bytes") as error:
            sdk(str(http.base_url), "none").images.edit(image=bytes(9_000_000), prompt="x")
        assert error.value.status_code == 413

    def test_slow_body(self, guarded_url: str, keys: ApiKeys) -> None:
        secret, _ = keys.create("slow", [Scope.READ, Scope.SUBMIT])
        head = f"POST /v1/images/edits HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {secret}\r\n"
        with connected(guarded_url) as connection:
            connection.sendall(f"{head}Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{{".encode())
            status_line, _, rest = until_closed(connection).partition(b"\r\n")
        assert b" 408 " in status_line
        assert "did not arrive" in json.loads(rest.partition(b"\r\n\r\n")[2])["error"]["message"]

    def test_rate_limit_and_cost(self, guarded_url: str, keys: ApiKeys) -> None:
        secret, _ = keys.create("busy", [Scope.READ, Scope.SUBMIT])
        client = sdk(guarded_url, secret)
        with pytest.raises(openai.BadRequestError, match="rate limit"):
            client.images.edit(image=("a.png", IMAGE), prompt="x", n=8)
        headers = {"X-API-Key": secret}
        while httpx.post(f"{guarded_url}/img2img", files={"image": IMAGE}, headers=headers).status_code == 202:
            pass
        with pytest.raises(openai.RateLimitError, match="rate limit") as error:
            client.images.edit(image=("a.png", IMAGE), prompt="x")
        assert error.value.response.headers["retry-after"]

    def test_unavailable(self, http: httpx.Client, redis: Redis) -> None:
        redis.flushall()
        with pytest.raises(openai.InternalServerError, match="No worker has registered the model demo yet") as error:
            sdk(str(http.base_url), "none").images.edit(image=("a.png", IMAGE), prompt="x")
        assert error.value.status_code == 503
        assert error.value.response.headers["retry-after"]

    def test_malformed_request(self, http: httpx.Client) -> None:
        with connected(str(http.base_url)) as connection:
            connection.sendall(b"POST /v1/images/edits HTTP/1.1\r\nConnection: close\r\n\r\n")
            headers, _, body = until_closed(connection).partition(b"\r\n\r\n")
        assert "Host header" in json.loads(body)["error"]["message"]
        assert re.search(rb"(?i)x-request-id: [0-9a-f]{32}", headers)


def test_hugging_face_errors_are_sentences(guarded_url: str, http: httpx.Client, keys: ApiKeys) -> None:
    assert httpx.post(f"{guarded_url}/hf/demo", content=IMAGE).json()["error"].startswith("An API key is needed")
    body = {"inputs": b64encode(IMAGE).decode(), "parameters": {"strength": 2}}
    refused = http.post("/hf/demo", json=body)
    assert (refused.status_code, refused.json()["error"]) == (422, "strength: Input should be less than or equal to 1")


def test_other_paths_have_problem_documents(http: httpx.Client) -> None:
    for path in ("/v1x", "/nowhere/v1/", "/replicate/v1/nothing"):
        assert_problem(http.get(path), 404, "not_found")


class TestRequestIds:
    @pytest.mark.parametrize("path", ["/healthz", "/nowhere", "/v1/models", "/openapi.json", "/"])
    def test_every_response_has_an_id(self, http: httpx.Client, path: str) -> None:
        first, second = (http.get(path).headers["x-request-id"] for _ in range(2))
        assert re.fullmatch("[0-9a-f]{32}", first)
        assert first != second

    def test_rejected_requests_have_one(self, guarded_url: str, keys: ApiKeys) -> None:
        assert httpx.get(f"{guarded_url}/jobs").headers["x-request-id"]

    @pytest.mark.parametrize("given", [UUID, "0" * 32])
    def test_ids_of_proxies_are_kept(self, http: httpx.Client, given: str) -> None:
        assert http.get("/healthz", headers={"X-Request-ID": given}).headers["x-request-id"] == given

    @pytest.mark.parametrize("given", ["", "a prompt", "0" * 65, "order-17", "g" * 32])
    def test_other_text_is_replaced(self, http: httpx.Client, given: str) -> None:
        assert http.get("/healthz", headers={"X-Request-ID": given}).headers["x-request-id"] != given

    def test_records_of_the_request_have_it(
        self, http: httpx.Client, caplog: pytest.LogCaptureFixture, image_bytes: bytes
    ) -> None:
        caplog.handler.addFilter(add_context)
        with caplog.at_level("INFO", logger="img2img"):
            http.post("/img2img", files={"image": image_bytes}, headers={"X-Request-ID": UUID})
        caplog.handler.removeFilter(add_context)
        ids = {record.message.split(" ")[0]: getattr(record, "request_id", None) for record in caplog.records}
        assert ids["POST"] == ids["queued:"] == UUID


def test_unexpected_error_has_the_id(http: httpx.Client, monkeypatch: pytest.MonkeyPatch, redis: Redis) -> None:
    def fail(_registry: ModelRegistry) -> dict[str, list[str]]:
        raise ZeroDivisionError

    monkeypatch.setattr(ModelRegistry, "live", fail)
    response = http.get("/v1/models", headers={"X-Request-ID": UUID})
    assert assert_openai(response, 500, "internal_error") == "The server encountered an unexpected error."
    assert response.headers["x-request-id"] == UUID
