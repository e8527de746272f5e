"""Regional prompts over HTTP: how requests send them, and what is refused."""

import io
import json
from base64 import b64encode
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from redis import Redis

from img2img.blobs import ObjectStore
from img2img.domain.blob_keys import input_key
from img2img.domain.conditioning import ControlType
from img2img.domain.parameters import Scheduler, Task
from img2img.redis.model_registry import ModelRegistry
from tests.support.images import encoded, gradient
from tests.support.model_cards import CARD
from tests.support.problems import assert_problem

ABLE = CARD.model_copy(
    update={
        "tasks": tuple(Task),
        "regions": True,
        "refiner": True,
        "default_denoising_end": 0.8,
        "controls": (ControlType.CANNY,),
        "preprocessors": (ControlType.CANNY,),
        "prompt_weighting": True,
        "scheduler_parameters": {"speed": tuple(Scheduler)},
        "upscales": (2,),
    }
)


def left_half() -> bytes:
    mask = Image.new("L", (160, 120))
    mask.paste(255, (0, 0, 80, 120))
    return encoded(mask)


IMAGE, MASK = (b64encode(data).decode() for data in (encoded(gradient(160, 120)), left_half()))
BLACK = b64encode(encoded(Image.new("L", (160, 120)))).decode()
REGION = {"mask": MASK, "prompt": "a house"}


@pytest.fixture
def http(http: httpx.Client, redis: Redis) -> httpx.Client:
    """A client of a service whose model takes regions."""
    ModelRegistry(redis).register("test-worker", [ABLE], ttl_s=60)
    return http


def test_masks_get_the_size_of_the_result(http: httpx.Client, store: ObjectStore) -> None:
    regions = [REGION, {**REGION, "weight": 0.5, "prompt": "a lake"}]
    response = http.post("/img2img", json={"image": IMAGE, "prompt": "a hill", "regions": regions})
    assert response.status_code == 202, response.text
    request = response.json()["request"]
    assert [(one["prompt"], one["weight"]) for one in request["regions"]] == [("a house", 1.0), ("a lake", 0.5)]
    assert request["denoising_end"] is None, "the refiner has one prompt"
    png = store.get(input_key(request["regions"][0]["mask"]))
    assert png is not None
    mask = np.asarray(Image.open(io.BytesIO(png)))
    assert mask.shape == (request["height"], request["width"])
    middle = mask.shape[1] // 2
    assert (mask[:, : middle - 4].min(), mask[:, middle + 4 :].max()) == (255, 0)
    # Regions are further rows of the denoiser.
    dry = {"json": {"image": IMAGE, "regions": regions}, "params": {"dry_run": True}}
    plain = http.post("/img2img", json={"image": IMAGE, "denoising_end": 1}, params={"dry_run": True}).json()["cost"]
    assert http.post("/img2img", **dry).json()["cost"] == pytest.approx(2 * plain)


def test_form_sends_masks_as_files(http: httpx.Client, image_bytes: bytes) -> None:
    files = {"image": image_bytes, "regions.0.mask": left_half()}
    response = http.post("/img2img", files=files, data={"regions": json.dumps([{"prompt": "a house"}])})
    assert response.status_code == 202, response.text
    assert len(response.json()["request"]["regions"]) == 1


def test_batch_varies_regions(http: httpx.Client) -> None:
    body = {"request": {"image": IMAGE}, "vary": {"regions": [[REGION], [{**REGION, "prompt": "a lake"}], []]}}
    batch = http.post("/batches", json=body).json()
    jobs = http.get(f"/batches/{batch['id']}/jobs").json()["jobs"]
    assert [len(job["request"]["regions"]) for job in jobs] == [1, 1, 0]


@pytest.mark.parametrize(
    ("fields", "field", "message"),
    [
        ({"regions": [{**REGION, "mask": BLACK}]}, "regions.0.mask", "black all over"),
        ({"regions": [{**REGION, "weight": 0}]}, "regions.0.weight", "greater than 0"),
        ({"regions": [{"prompt": "a house"}]}, "regions.0.mask", "required"),
        ({"regions": [REGION] * 9}, "regions", "at most 8"),
        ({"controls": [{"type": "canny"}]}, "regions", "cannot be combined with `controls`"),
        ({"speed": "fast"}, "regions", "cannot be combined with `speed`"),
        ({"denoising_end": 0.5}, "regions", "cannot be combined with `denoising_end`"),
        ({"pag_scale": 3}, "pag_scale", "cannot be combined with `regions`"),
        ({"mask": MASK}, "regions", "cannot be combined with `mask` or `outpaint`"),
        ({"instruction": "make it night"}, "regions", "cannot be combined with `instruction`"),
        ({"upscale": 2}, "regions", "cannot be combined with `upscale`"),
        ({"regions": [{**REGION, "prompt": "embedding:x"}]}, "regions.0.prompt", "has no embedding x"),
    ],
)
def test_what_does_not_go_together_is_refused(
    http: httpx.Client, fields: dict[str, Any], field: str, message: str
) -> None:
    problem = assert_problem(http.post("/img2img", json={"image": IMAGE, "regions": [REGION], **fields}), 422)
    [error] = problem["errors"]
    assert error["field"] == field
    assert message in error["message"]


def test_model_with_one_prompt_refuses_regions(http: httpx.Client, redis: Redis) -> None:
    ModelRegistry(redis).register("test-worker", [ABLE.model_copy(update={"regions": False})], ttl_s=60)
    problem = assert_problem(http.post("/img2img", json={"image": IMAGE, "regions": [REGION]}), 422)
    assert "has one prompt for the whole image; leave `regions` out" in problem["detail"]
    assert http.post("/img2img", json={"image": IMAGE, "regions": []}).status_code == 202
