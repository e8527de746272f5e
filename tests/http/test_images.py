"""References to images and conversion of results, over real HTTP."""

import base64
from collections.abc import Callable
from hashlib import sha256
from io import BytesIO
from typing import Any

import httpx
import pytest
from PIL import Image
from redis import Redis

from img2img.blobs import ObjectStore
from img2img.domain.blob_keys import upload_key
from img2img.redis.keys import INPUT_IMAGES
from img2img.worker.queue.retention import Retention
from tests.support.images import encoded, gradient
from tests.support.problems import assert_problem
from tests.support.uploads import expire_upload

Submit = Callable[..., httpx.Response]
Finish = Callable[[str], bytes]
Done = tuple[str, bytes]


def refer(http: httpx.Client, image: str, **fields: Any) -> list[httpx.Response]:
    """Submit a reference as a form and as JSON."""
    form = {name: (None, str(value)) for name, value in {"image": image, **fields}.items()}
    return [http.post("/img2img", files=form), http.post("/img2img", json={"image": image, **fields})]


@pytest.fixture
def done(submit: Submit, finish: Finish) -> Done:
    """A succeeded job and its image."""
    job_id = submit(width=128, height=96).json()["id"]
    return job_id, finish(job_id)


def test_uploaded_image_can_be_referenced(http: httpx.Client, submit: Submit, image_bytes: bytes) -> None:
    uploaded = http.post("/images", files={"image": image_bytes})
    assert uploaded.status_code == 201
    assert uploaded.json() == {"sha256": sha256(image_bytes).hexdigest(), "width": 160, "height": 120}
    as_json = http.post("/images", json={"image": base64.b64encode(image_bytes).decode()})
    assert (as_json.status_code, as_json.json()) == (201, uploaded.json())
    sent = submit(seed=1).json()["request"]
    for response in refer(http, uploaded.json()["sha256"], seed=1):
        assert response.status_code == 202, response.text
        assert response.json()["request"] == sent


def test_input_image_of_a_job_can_be_referenced(http: httpx.Client, submit: Submit) -> None:
    request = submit(seed=1).json()["request"]
    for response in refer(http, request["image"], seed=1):
        assert response.json()["request"] == request


@pytest.mark.parametrize("path", ["images/0", "result"])
def test_result_can_be_the_input_of_another_job(http: httpx.Client, done: Done, path: str) -> None:
    job_id, png = done
    assert Image.open(BytesIO(png)).size == (128, 96)
    for response in refer(http, f"/jobs/{job_id}/{path}"):
        assert response.status_code == 202, response.text
        assert (response.json()["request"]["width"], response.json()["request"]["height"]) == (144, 112)


def test_unknown_references_are_rejected(http: httpx.Client, submit: Submit, done: Done) -> None:
    queued, deleted = submit().json()["id"], submit().json()["id"]
    http.delete(f"/jobs/{deleted}")
    for image, message in [
        ("0" * 64, "POST /images"),
        (f"/jobs/{'0' * 32}/result", "no job"),
        (f"/jobs/{queued}/images/0", "is queued"),
        (f"/jobs/{deleted}/images/0", "was deleted"),
        (f"/jobs/{done[0]}/images/1", "has 1 image"),
    ]:
        for response in refer(http, image):
            [error] = assert_problem(response, 422, "invalid_parameter")["errors"]
            assert error["field"] == "image"
            assert message in error["message"]
            # `/result` is reported with its index.
            assert error["got"].startswith(image[:38])


def test_unknown_reference_leaves_no_keys(http: httpx.Client, redis: Redis) -> None:
    refer(http, "0" * 64)
    assert not redis.keys("i2i:inputs*")


MALFORMED = ["http://127.0.0.1/jobs/x/result", "/jobs/../etc/passwd", "/etc/passwd", "A" * 64, "/uploads/ab1"]


@pytest.mark.parametrize("image", MALFORMED)
def test_malformed_references_are_rejected(http: httpx.Client, image: str) -> None:
    for response in refer(http, image):
        assert response.status_code in (415, 422)
        assert response.json()["errors"][0]["field"] == "image"


def test_uploaded_image_is_kept_while_in_use(
    http: httpx.Client, image_bytes: bytes, redis: Redis, store: ObjectStore
) -> None:
    digest = http.post("/images", files={"image": image_bytes}).json()["sha256"]
    key, retention = upload_key(digest), Retention(redis, store)
    redis.zadd(INPUT_IMAGES, {key: 1})
    refer(http, digest)
    retention.sweep()
    assert store.get(key) == image_bytes
    expire_upload(redis, key)
    retention.sweep()
    assert store.get(key) is None
    assert [response.status_code for response in refer(http, digest)] == [422, 422]


@pytest.mark.parametrize(
    ("image", "status"),
    [(b"", 415), (b"<svg/>", 415), (encoded(gradient(20, 20))[:-30], 422), (b"\x89PNG\r\n\x1a\n", 422)],
)
def test_invalid_uploads_are_rejected(http: httpx.Client, image: bytes, status: int, redis: Redis) -> None:
    [error] = assert_problem(http.post("/images", files={"image": image}), status)["errors"]
    assert error["field"] == "image"
    assert not redis.exists(INPUT_IMAGES)


def test_upload_bodies_are_validated(http: httpx.Client) -> None:
    [error] = assert_problem(http.post("/images", json={"image": "0" * 64, "x": 1}), 422)["errors"]
    assert (error["field"], error["message"]) == ("x", "Unknown field; known are image")
    assert_problem(http.post("/images"), 415)
    assert_problem(http.post("/images", files={"image": b"x" * 5_000_000}), 413, "payload_too_large")


@pytest.mark.parametrize("path", ["images/0", "result"])
@pytest.mark.parametrize("kind", ["webp", "jpeg"])
def test_result_is_converted(http: httpx.Client, done: Done, kind: str, path: str) -> None:
    job_id, png = done
    url = f"/jobs/{job_id}/{path}?format={kind}"
    small, large = http.get(f"{url}&quality=10"), http.get(f"{url}&quality=95")
    for response in (small, large):
        assert response.headers["content-type"] == f"image/{kind}"
        image = Image.open(BytesIO(response.content))
        assert (image.format, image.size) == (kind.upper(), (128, 96))
    assert len(small.content) < len(large.content)
    assert http.get(f"{url}&quality=90").content == http.get(url).content
    as_png = http.get(f"/jobs/{job_id}/{path}?format=png")
    assert as_png.content == png
    tags = {response.headers["etag"] for response in (small, large, as_png)}
    assert len(tags) == 3
    for response in (small, large, as_png):
        again = http.get(response.url, headers={"If-None-Match": response.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        others = {"If-None-Match": ", ".join(tags - {response.headers["etag"]})}
        assert http.get(response.url, headers=others).status_code == 200


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("format=gif", "format"),
        ("format=webp&quality=0", "quality"),
        ("format=jpeg&quality=101", "quality"),
        ("quality=50", "quality"),
        ("format=png&quality=50", "quality"),
    ],
)
def test_invalid_formats_are_rejected(http: httpx.Client, done: Done, query: str, field: str) -> None:
    [error] = assert_problem(http.get(f"/jobs/{done[0]}/result?{query}"), 422, "invalid_parameter")["errors"]
    assert error["field"] == field
