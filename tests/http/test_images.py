"""Pictures by reference and in other formats, over real HTTP."""

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
from img2img.domain.spec import upload_key
from img2img.redis.keys import INPUT_IMAGES
from img2img.worker.queue.retention import Retention
from tests.support.images import encoded, gradient
from tests.support.problems import assert_problem

Submit = Callable[..., httpx.Response]
Finish = Callable[[str], bytes]
Done = tuple[str, bytes]


def refer(http: httpx.Client, image: str, **fields: Any) -> list[httpx.Response]:
    """A submit with a reference, as a form and as JSON."""
    form = {name: (None, str(value)) for name, value in {"image": image, **fields}.items()}
    return [http.post("/img2img", files=form), http.post("/img2img", json={"image": image, **fields})]


@pytest.fixture
def done(submit: Submit, finish: Finish) -> Done:
    """A job that succeeded, and its picture."""
    job_id = submit(width=128, height=96).json()["id"]
    return job_id, finish(job_id)


def test_a_picture_is_sent_once_and_referred_to(http: httpx.Client, submit: Submit, picture: bytes) -> None:
    kept = http.post("/images", files={"image": picture})
    assert kept.status_code == 201
    assert kept.json() == {"sha256": sha256(picture).hexdigest(), "width": 160, "height": 120}
    as_json = http.post("/images", json={"image": base64.b64encode(picture).decode()})
    assert (as_json.status_code, as_json.json()) == (201, kept.json())
    sent = submit(seed=1).json()["request"]
    for answer in refer(http, kept.json()["sha256"], seed=1):
        assert answer.status_code == 202, answer.text
        assert answer.json()["request"] == sent


def test_a_jobs_own_picture_can_be_used_again(http: httpx.Client, submit: Submit) -> None:
    request = submit(seed=1).json()["request"]
    for answer in refer(http, request["image"], seed=1):
        assert answer.json()["request"] == request


@pytest.mark.parametrize("path", ["images/0", "result"])
def test_a_result_is_the_picture_of_the_next_job(http: httpx.Client, done: Done, path: str) -> None:
    job_id, png = done
    assert Image.open(BytesIO(png)).size == (128, 96)
    for answer in refer(http, f"/jobs/{job_id}/{path}"):
        assert answer.status_code == 202, answer.text
        assert (answer.json()["request"]["width"], answer.json()["request"]["height"]) == (144, 112)


def test_references_to_what_is_not_there(http: httpx.Client, submit: Submit, done: Done) -> None:
    queued, deleted = submit().json()["id"], submit().json()["id"]
    http.delete(f"/jobs/{deleted}")
    for image, message in [
        ("0" * 64, "POST /images"),
        (f"/jobs/{'0' * 32}/result", "no job"),
        (f"/jobs/{queued}/images/0", "is queued"),
        (f"/jobs/{deleted}/images/0", "was deleted"),
        (f"/jobs/{done[0]}/images/1", "has 1 picture"),
    ]:
        for answer in refer(http, image):
            [error] = assert_problem(answer, 422, "invalid_parameter")["errors"]
            assert error["field"] == "image"
            assert message in error["message"]
            assert error["got"].startswith(image[:38])  # a `result` is named by its index


def test_a_reference_to_nothing_leaves_nothing_behind(http: httpx.Client, redis: Redis) -> None:
    refer(http, "0" * 64)
    assert not redis.keys("i2i:inputs*")


@pytest.mark.parametrize("image", ["http://127.0.0.1/jobs/x/result", "/jobs/../etc/passwd", "/etc/passwd", "A" * 64])
def test_nothing_else_is_a_reference(http: httpx.Client, image: str) -> None:
    for answer in refer(http, image):
        assert answer.status_code in (415, 422)
        assert answer.json()["errors"][0]["field"] == "image"


def test_a_picture_is_kept_while_it_is_used(
    http: httpx.Client, picture: bytes, redis: Redis, store: ObjectStore
) -> None:
    digest = http.post("/images", files={"image": picture}).json()["sha256"]
    key, retention = upload_key(digest), Retention(redis, store)
    redis.zadd(INPUT_IMAGES, {key: 1})
    refer(http, digest)
    retention.sweep()
    assert store.get(key) == picture
    redis.zadd(INPUT_IMAGES, {key: 1})
    retention.sweep()
    assert store.get(key) is None
    assert [answer.status_code for answer in refer(http, digest)] == [422, 422]


@pytest.mark.parametrize(
    ("image", "status"),
    [(b"", 415), (b"<svg/>", 415), (encoded(gradient(20, 20))[:-30], 422), (b"\x89PNG\r\n\x1a\n", 422)],
)
def test_pictures_that_are_not_kept(http: httpx.Client, image: bytes, status: int, redis: Redis) -> None:
    [error] = assert_problem(http.post("/images", files={"image": image}), status)["errors"]
    assert error["field"] == "image"
    assert not redis.exists(INPUT_IMAGES)


def test_bodies_of_pictures_are_checked(http: httpx.Client) -> None:
    [error] = assert_problem(http.post("/images", json={"image": "0" * 64, "x": 1}), 422)["errors"]
    assert (error["field"], error["message"]) == ("x", "Unknown field; known are image")
    assert_problem(http.post("/images"), 415)
    assert_problem(http.post("/images", files={"image": b"x" * 5_000_000}), 413, "payload_too_large")


@pytest.mark.parametrize("path", ["images/0", "result"])
@pytest.mark.parametrize("kind", ["webp", "jpeg"])
def test_a_result_in_another_format(http: httpx.Client, done: Done, kind: str, path: str) -> None:
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
def test_formats_that_cannot_be(http: httpx.Client, done: Done, query: str, field: str) -> None:
    [error] = assert_problem(http.get(f"/jobs/{done[0]}/result?{query}"), 422, "invalid_parameter")["errors"]
    assert error["field"] == field
