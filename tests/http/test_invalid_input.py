"""Invalid images over real HTTP, at every endpoint that accepts images."""

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis import Redis

from img2img.app.settings import ApiSettings
from img2img.domain.parameters import Task
from img2img.redis.model_registry import ModelRegistry
from tests.support.images import encoded, gradient
from tests.support.invalid_images import BROKEN, OTHER_FILES
from tests.support.model_cards import CARD
from tests.support.problems import assert_problem, status_at

GOOD = encoded(gradient(160, 120))
KINDS = [(name, 415, "") for name in OTHER_FILES] + [(name, 422, message) for name, (_, message) in BROKEN.items()]


def invalid_data(name: str) -> bytes:
    return OTHER_FILES[name]() if name in OTHER_FILES else BROKEN[name][0]()


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


@pytest.fixture
def http(http: httpx.Client, redis: Redis) -> httpx.Client:
    """A client of a service with a model that accepts images in every field."""
    able = {
        "tasks": tuple(Task),
        "controls": ("canny",),
        "preprocessors": ("canny",),
        "image_prompts": True,
        "upscales": (2,),
    }
    ModelRegistry(redis).register("test-worker", [CARD.model_validate(CARD.model_dump() | able)], ttl_s=60)
    return http


@pytest.mark.parametrize(("name", "status", "message"), KINDS, ids=[name for name, _, _ in KINDS])
def test_invalid_image_is_rejected_by_field(
    http: httpx.Client, redis: Redis, name: str, status: int, message: str
) -> None:
    data = invalid_data(name)
    code = "unsupported_media_type" if status == 415 else "invalid_image"
    responses = [
        http.post("/img2img", files={"image": data}, data={"prompt": "x"}),
        http.post("/img2img", json={"image": text(data), "prompt": "x"}),
        http.post("/images", files={"image": data}),
    ]
    for response in responses:
        [error] = assert_problem(response, status, code)["errors"]
        assert error["field"] == "image"
        assert message in error["message"]
    assert not redis.keys("i2i:job*")
    assert not redis.keys("i2i:inputs*")


ENDPOINTS: dict[str, tuple[str, Callable[[bytes], dict[str, Any]], str]] = {
    "form": ("/img2img", lambda data: {"files": {"image": data}}, "image"),
    "dry run": ("/img2img?dry_run=true", lambda data: {"files": {"image": data}}, "image"),
    "json": ("/img2img", lambda data: {"json": {"image": text(data)}}, "image"),
    "data uri": ("/img2img", lambda data: {"json": {"image": "data:image/png;base64," + text(data)}}, "image"),
    "mask in a form": ("/img2img", lambda data: {"files": {"image": GOOD, "mask": data}}, "mask"),
    "mask in json": ("/img2img", lambda data: {"json": {"image": text(GOOD), "mask": text(data)}}, "mask"),
    "image with a mask": ("/img2img", lambda data: {"files": {"image": data, "mask": GOOD}}, "image"),
    "image with mask alpha": (
        "/img2img",
        lambda data: {"files": {"image": data}, "data": {"mask": "alpha"}},
        "image",
    ),
    "outpainting": (
        "/img2img",
        lambda data: {"files": {"image": data}, "data": {"outpaint": json.dumps({"left": 8})}},
        "image",
    ),
    "upscaling": ("/img2img", lambda data: {"files": {"image": data}, "data": {"upscale": "2"}}, "image"),
    "control": (
        "/img2img",
        lambda data: {"json": {"image": text(GOOD), "controls": [{"type": "canny", "image": text(data)}]}},
        "controls.0.image",
    ),
    "control alone": (
        "/img2img",
        lambda data: {"json": {"controls": [{"type": "canny", "image": text(data)}]}},
        "controls.0.image",
    ),
    "image prompt": (
        "/img2img",
        lambda data: {"json": {"image": text(GOOD), "image_prompts": [{"image": text(data)}]}},
        "image_prompts.0.image",
    ),
    "control map": ("/control-maps", lambda data: {"files": {"image": data}, "data": {"type": "canny"}}, "image"),
    "upload": ("/images", lambda data: {"files": {"image": data}}, "image"),
    "upload in json": ("/images", lambda data: {"json": {"image": text(data)}}, "image"),
    "web ui": ("/sdapi/v1/img2img", lambda data: {"json": {"init_images": [text(data)]}}, "image"),
    "image with a mask in the web ui": (
        "/sdapi/v1/img2img",
        lambda data: {"json": {"init_images": [text(data)], "mask": text(GOOD)}},
        "image",
    ),
    "mask in the web ui": (
        "/sdapi/v1/img2img",
        lambda data: {"json": {"init_images": [text(GOOD)], "mask": text(data)}},
        "mask",
    ),
    "openai": ("/v1/images/edits", lambda data: {"files": {"image": data}, "data": {"prompt": "x"}}, "image"),
    "openai's mask": (
        "/v1/images/edits",
        lambda data: {"files": {"image": GOOD, "mask": data}, "data": {"prompt": "x"}},
        "mask",
    ),
    "openai's variation": ("/v1/images/variations", lambda data: {"files": {"image": data}}, "image"),
}


@pytest.mark.parametrize(("kind", "status"), [("svg", 415), ("truncated png", 422), ("png bomb", 422)])
@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_every_endpoint_rejects_invalid_images_by_field(
    http: httpx.Client, redis: Redis, endpoint: str, kind: str, status: int
) -> None:
    path, body, field = ENDPOINTS[endpoint]
    response = http.post(path, **body(invalid_data(kind)))
    if path.startswith("/v1/"):
        assert response.status_code == status_at(path, status), response.text
        assert response.json()["error"]["param"] == field
    else:
        [error] = assert_problem(response, status)["errors"]
        assert error["field"] == field
    assert not redis.keys("i2i:job:*")


TRAVERSALS = [
    "../../etc/passwd",
    "..%2f..%2fetc%2fpasswd",
    "%2e%2e/%2e%2e/etc/passwd",
    "....//....//etc/passwd",
    "..%5c..%5cwindows",
    "%252e%252e%252fetc",
    "%00",
    "nul%00.png",
    "%c0%ae%c0%ae",
    "/etc/passwd",
    "0" * 31,
    "0" * 33,
    "G" * 32,
    "' OR 1=1 --",
    "*",
    "i2i:jobs",
    "%0d%0aSet-Cookie:%20a=b",
    "\u202e" * 32,
]


@pytest.mark.parametrize("job_id", TRAVERSALS)
@pytest.mark.parametrize("path", ["/jobs/{}", "/jobs/{}/result", "/jobs/{}/images/0", "/jobs/{}/events"])
def test_malformed_job_ids_are_not_found(http: httpx.Client, job_id: str, path: str) -> None:
    response = http.get(path.format(job_id))
    assert_problem(response, 404, "not_found")
    assert "root:" not in response.text
    assert "set-cookie" not in response.headers


@pytest.mark.parametrize(
    "image",
    [
        "../../etc/passwd",
        "/etc/passwd",
        "file:///etc/passwd",
        "/jobs/../../etc/passwd/result",
        "/jobs/%2e%2e/result",
        f"/jobs/{'0' * 32}/images/../../../x",
        "http://169.254.169.254/latest/meta-data/",
        "gopher://127.0.0.1:6379/_FLUSHALL",
        "uploads/../inputs",
        "~root",
    ],
)
def test_malformed_reference_reads_no_file(http: httpx.Client, image: str) -> None:
    response = http.post("/img2img", json={"image": image, "prompt": "x"})
    [error] = assert_problem(response, 422, "invalid_parameter")["errors"]
    assert error["field"] == "image"
    assert "root:" not in response.text


def test_file_name_is_ignored(http: httpx.Client, settings: ApiSettings, redis: Redis) -> None:
    before = set(settings.data_dir.rglob("*"))
    for name in ("../../../../tmp/evil.png", "/etc/cron.d/evil", "a\x00b.png", "a" * 5000, "\r\nX: y", ""):
        response = http.post("/img2img", files={"image": (name, GOOD, "text/html")}, data={"prompt": "x"})
        assert response.status_code in (202, 400, 422), response.text
        assert "evil" not in response.text
    made = set(settings.data_dir.rglob("*")) - before
    assert all("evil" not in path.name for path in made)
    assert not Path("/tmp/evil.png").exists()
