"""Results without their background, or with a new one, over real HTTP: requests, refusals and formats."""

import io
import json
import zipfile
from base64 import b64decode, b64encode
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from redis import Redis

from img2img.blobs import ObjectStore
from img2img.domain.parameters import Task
from img2img.redis.job_queue import JobQueue
from img2img.redis.model_registry import ModelRegistry
from tests.support.finished_jobs import succeed
from tests.support.images import encoded, gradient
from tests.support.model_cards import CARD
from tests.support.problems import assert_problem

ABLE = CARD.model_copy(update={"tasks": tuple(Task), "matting": True, "upscales": (2,)})
IMAGE = b64encode(encoded(gradient(160, 120))).decode()
MASK = b64encode(encoded(Image.new("L", (160, 120), 255))).decode()
NEW = {"prompt": "a beach"}


def cut_out() -> bytes:
    """Return a transparent result: its left half is opaque."""
    image = gradient(128, 96).convert("RGBA")
    alpha = Image.new("L", image.size)
    alpha.paste(255, (0, 0, 64, 96))
    image.putalpha(alpha)
    return encoded(image)


@pytest.fixture
def http(http: httpx.Client, redis: Redis) -> httpx.Client:
    """A client of a service whose model finds backgrounds."""
    ModelRegistry(redis).register("test-worker", [ABLE], ttl_s=60)
    return http


def submitted(http: httpx.Client, **fields: Any) -> dict[str, Any]:
    response = http.post("/img2img", json={"image": IMAGE, **fields})
    assert response.status_code == 202, response.text
    return dict(response.json())


@pytest.mark.parametrize("more", [{}, {"instruction": "make it night"}, {"mask": MASK}, {"upscale": 2}])
def test_every_task_can_be_transparent(http: httpx.Client, more: dict[str, Any]) -> None:
    assert submitted(http, background="transparent", **more)["request"]["background"] == "transparent"


def test_new_background_is_an_inpainting_job(http: httpx.Client) -> None:
    request = submitted(http, background=NEW, mask_blur=2)["request"]
    assert (request["task"], request["prompt"], request["background"]) == ("inpaint", "a beach", "keep")
    assert (request["strength"], request["width"], request["height"]) == (1.0, 144, 112)
    region = request["region"]
    assert (region["background"], region["mask"], region["canvas"], region["box"]) == (
        True,
        None,
        [160, 120],
        [0, 0, 160, 120],
    )
    assert region["blur"] == 2


@pytest.mark.parametrize("background", ["keep", "transparent", json.dumps(NEW), ""])
def test_form_sends_background_as_text(http: httpx.Client, background: str, image_bytes: bytes) -> None:
    response = http.post("/img2img", files={"image": image_bytes}, data={"background": background})
    assert response.status_code == 202, response.text
    assert (response.json()["request"]["task"] == "inpaint") == background.startswith("{")


@pytest.mark.parametrize("background", ["opaque", "{", {}, {"prompt": "a beach", "strength": 1}, 1, ["transparent"]])
def test_other_values_are_refused(http: httpx.Client, background: Any) -> None:
    problem = assert_problem(http.post("/img2img", json={"image": IMAGE, "background": background}), 422)
    [error] = problem["errors"]
    known = {"{}": "background.prompt"} | {json.dumps({"prompt": "a beach", "strength": 1}): "background.strength"}
    assert error["field"] == known.get(json.dumps(background), "background")


@pytest.mark.parametrize(
    "more", [{"mask": MASK}, {"outpaint": {"left": 8}}, {"upscale": 2}, {"instruction": "x"}, {"prompt": "a house"}]
)
def test_new_background_excludes_other_areas_and_prompts(http: httpx.Client, more: dict[str, Any]) -> None:
    problem = assert_problem(http.post("/img2img", json={"image": IMAGE, "background": NEW, **more}), 422)
    assert problem["errors"][0]["field"] == next(iter(more))
    assert "`background`" in problem["detail"]


@pytest.mark.parametrize("background", ["transparent", NEW])
def test_model_that_finds_no_backgrounds_says_what_it_lacks(http: httpx.Client, redis: Redis, background: Any) -> None:
    ModelRegistry(redis).register("test-worker", [ABLE.model_copy(update={"matting": False})], ttl_s=60)
    problem = assert_problem(http.post("/img2img", json={"image": IMAGE, "background": background}), 422)
    assert problem["errors"][0]["field"] == "background"
    assert "its operator has to add `matting`" in problem["detail"]
    assert submitted(http, background="keep")


def test_new_background_needs_a_model_that_inpaints(http: httpx.Client, redis: Redis) -> None:
    ModelRegistry(redis).register("test-worker", [ABLE.model_copy(update={"tasks": (Task.IMG2IMG,)})], ttl_s=60)
    problem = assert_problem(http.post("/img2img", json={"image": IMAGE, "background": NEW}), 422)
    assert problem["errors"][0]["field"] == "background"
    assert "does not support inpainting" in problem["detail"]


def test_formats_keep_transparency_or_are_refused(http: httpx.Client, queue: JobQueue, store: ObjectStore) -> None:
    job_id = submitted(http, background="transparent")["id"]
    succeed(job_id, queue, store, cut_out())
    for image_format in ("png", "webp"):
        response = http.get(f"/jobs/{job_id}/images/0", params={"format": image_format})
        opacity = np.asarray(Image.open(io.BytesIO(response.content)).convert("RGBA"))[..., 3]
        assert (opacity[:, :64].min(), opacity[:, 64:].max()) == (255, 0)
    problem = assert_problem(http.get(f"/jobs/{job_id}/images/0", params={"format": "jpeg"}), 422)
    assert "A JPEG cannot be transparent; input should be png or webp" in problem["detail"]
    # As an input, it is composited on white.
    assert submitted(http, image=f"/jobs/{job_id}/images/0", mask="alpha")["request"]["task"] == "inpaint"


def test_archive_of_jpegs_has_transparent_images_as_png(
    http: httpx.Client, queue: JobQueue, store: ObjectStore
) -> None:
    body = {"request": {"image": IMAGE}, "vary": {"background": ["transparent", "keep"]}}
    batch = http.post("/batches", json=body).json()
    jobs = http.get(f"/batches/{batch['id']}/jobs").json()["jobs"]
    for job, png in zip(jobs, (cut_out(), None), strict=True):
        succeed(job["id"], queue, store, png)
    response = http.get(f"/batches/{batch['id']}/results", params={"format": "jpeg"})
    with zipfile.ZipFile(io.BytesIO(response.content)) as archive:
        assert archive.namelist() == ["00000.png", "00001.jpg", "jobs.jsonl"]
        assert Image.open(archive.open("00000.png")).mode == "RGBA"


class TestOpenAI:
    def test_transparent_background_is_applied(self, http: httpx.Client, fake_worker: None, image_bytes: bytes) -> None:
        data = {"prompt": "x", "background": "transparent"}
        response = http.post("/v1/images/edits", files={"image": image_bytes}, data=data)
        assert response.status_code == 200, response.text
        answer = response.json()
        assert (answer["background"], answer.get("not_applied")) == ("transparent", None)
        assert b64decode(answer["data"][0]["b64_json"])
        assert http.get("/jobs").json()["jobs"][0]["request"]["background"] == "transparent"

    def test_jpeg_is_refused(self, http: httpx.Client, image_bytes: bytes) -> None:
        data = {"prompt": "x", "background": "transparent", "output_format": "jpeg"}
        response = http.post("/v1/images/edits", files={"image": image_bytes}, data=data)
        assert response.status_code == 400
        error = response.json()["error"]
        assert (error["param"], "A JPEG cannot be transparent" in error["message"]) == ("output_format", True)

    def test_model_that_cannot_is_reported(
        self, http: httpx.Client, redis: Redis, fake_worker: None, image_bytes: bytes
    ) -> None:
        ModelRegistry(redis).register("test-worker", [ABLE.model_copy(update={"matting": False})], ttl_s=60)
        data = {"prompt": "x", "background": "transparent"}
        answer = http.post("/v1/images/edits", files={"image": image_bytes}, data=data).json()
        assert answer["background"] == "opaque"
        assert "has to add `matting`" in answer["not_applied"]["background"]
