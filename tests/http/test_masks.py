"""Masks that the model finds, and the detail pass, over HTTP: resolved fields and rejected requests."""

import base64
import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from redis import Redis

from img2img.domain.masks import MaskKind, MaskQuery
from img2img.domain.parameters import Task
from img2img.domain.spec import JobSpec
from img2img.redis.job_queue import JobQueue
from img2img.redis.model_registry import ModelRegistry
from tests.http.test_control import image_base64
from tests.support.model_cards import CARD

FINDS = CARD.model_copy(
    update={
        "name": "finds",
        "tasks": (Task.IMG2IMG, Task.INPAINT),
        "masks": tuple(MaskKind),
        "mask_words": ("house", "tree"),
        "adapter_tasks": (Task.IMG2IMG,),
        "loras": ("ink",),
        "parameters": {"pag_scale": (Task.IMG2IMG,)},
    }
)
WORDS_ONLY = CARD.model_copy(update={"name": "words", "tasks": FINDS.tasks, "masks": (MaskKind.TEXT,)})
BLIND = CARD.model_copy(update={"name": "blind", "tasks": FINDS.tasks})
IMAGE = image_base64(160, 120)


@pytest.fixture
def post(http: httpx.Client, redis: Redis) -> Callable[..., httpx.Response]:
    ModelRegistry(redis).register("finder", [FINDS, WORDS_ONLY, BLIND], ttl_s=60)
    return lambda path="/img2img", **fields: http.post(path, json={"image": IMAGE, "model": "finds", **fields})


def spec_of(response: httpx.Response, queue: JobQueue) -> JobSpec:
    assert response.status_code == 202, response.text
    return queue.job_store.find(response.json()["id"]).spec


def test_mask_object_makes_an_inpainting_job(post: Callable[..., httpx.Response], queue: JobQueue) -> None:
    response = post(mask={"text": "the houses, Tree", "grow": 8, "blur": 6}, mask_padding=10)
    spec = spec_of(response, queue)
    assert (spec.task, spec.region.mask, spec.region.blur) == (Task.INPAINT, None, 6)
    assert spec.region.find == MaskQuery(text="the houses, Tree", grow=8)
    assert (spec.region.box, spec.region.canvas, spec.region.padding) == ((0, 0, 160, 120), (160, 120), 10)
    assert spec.inputs == (spec.image,)
    assert response.json()["request"]["region"]["find"]["text"] == "the houses, Tree"
    assert spec_of(post(mask={"box": [0, 0, 160, 120]}), queue).region.find == MaskQuery(box=(0, 0, 160, 120))
    labels = {"points": [[1, 2], [3.5, 4]], "labels": [1, 0], "invert": True}
    assert spec_of(post(mask=labels), queue).region.find.labels == (1, 0)


def test_mask_object_in_a_form(http: httpx.Client, post: Callable[..., httpx.Response], queue: JobQueue) -> None:
    png = base64.b64decode(IMAGE)
    fields = {"model": "finds", "mask": json.dumps({"points": [[5, 6]]})}
    spec = spec_of(http.post("/img2img", files={"image": png}, data=fields), queue)
    assert spec.region.find == MaskQuery(points=((5, 6),))
    fields = {"model": "finds", "box": "[1, 2, 30, 40]", "grow": "-3"}
    spec = spec_of(http.post("/masks", files={"image": png}, data=fields), queue)
    assert spec.find == MaskQuery(box=(1, 2, 30, 40), grow=-3)


def test_mask_alone_has_the_size_of_the_image(post: Callable[..., httpx.Response], queue: JobQueue) -> None:
    spec = spec_of(post("/masks", text="tree", threshold=0.5), queue)
    assert (spec.task, spec.width, spec.height, spec.steps_run) == (Task.MASK, 160, 120, 0)
    assert spec.find == MaskQuery(text="tree", threshold=0.5)


ADD = "its operator can add a segmenter, as `segmenters."


@pytest.mark.parametrize(
    ("fields", "field", "message"),
    [
        ({"mask": {"text": "a car"}}, "mask.text", "This model finds only: house, tree"),
        ({"mask": {}}, "mask", "Give one of `text`, `points` and `box`; it has none of them"),
        ({"mask": {"text": "a", "box": [0, 0, 1, 1]}}, "mask", "it has both `text` and `box`"),
        ({"mask": {"text": " ,. "}}, "mask.text", "Input should name something"),
        ({"mask": {"text": "tree", "shape": 1}}, "mask.shape", "Unknown field"),
        ({"mask": {"points": [[1, "2"]]}}, "mask.points.0.1", "valid number"),
        ({"mask": {"points": [[1, 2]], "labels": [0]}}, "mask", "at least one point should be in the thing"),
        ({"mask": {"points": [[1, 2]], "labels": [1, 0]}}, "mask", "`labels` has 2 numbers for 1 points"),
        ({"mask": {"points": [[161, 2]]}}, "mask.points", "not within the image of 160 x 120 pixels"),
        ({"mask": {"points": [[1, 2], [160, 2]]}}, "mask.points", "not within the image"),
        ({"mask": {"box": [10, 0, 5, 5]}}, "mask", "left < right"),
        ({"mask": {"box": [10, 0, 50, 121]}}, "mask.box", "not within the image"),
        ({"mask": {"box": [10, 0, 50, 12], "threshold": 0.4}}, "mask", "`threshold` goes with `text`"),
        ({"mask": {"text": "tree", "blur": 3}, "mask_blur": 4}, "mask.blur", "`mask_blur` is 4; leave one"),
        ({"mask": {"text": "tree"}, "model": "blind"}, "mask.text", f"send the mask as an image; {ADD}text`"),
        ({"mask": {"points": [[1, 1]]}, "model": "blind"}, "mask.points", f"{ADD}points`"),
        ({"mask": {"box": [0, 0, 9, 9]}, "model": "words"}, "mask.box", "give one by text, or send the mask"),
        ({"mask": {"text": "tree"}, "model": "demo"}, "mask", "does not support inpainting"),
        ({"mask": {"text": "tree"}, "upscale": 2}, "mask", "cannot be combined with `upscale`"),
        ({"refine": [{"detect": "face"}]}, "refine.0.detect", "finds only"),
        ({"refine": [{"detect": "face"}], "model": "blind"}, "refine", "a segmenter for words; leave it out"),
        ({"refine": [{"detect": "tree"}], "loras": [{"name": "ink"}]}, "loras", "inpaints without loras"),
        ({"refine": [{"detect": "tree"}], "pag_scale": 2}, "pag_scale", "inpaints without pag_scale, and `refine`"),
        ({"refine": [{"detect": "tree", "strength": 1e-3}], "exact_steps": True}, "refine.0.strength",
         "more than the 1000 steps"),
        ({"refine": [{"detect": "tree", "strength": 0}]}, "refine.0.strength", "greater than 0"),
        ({"refine": [{}]}, "refine.0.detect", "Field required"),
        ({"refine": [{"detect": "tree", "num_inference_steps": 80}], "scheduler": "lcm"},
         "refine.0.num_inference_steps", "at most 50"),
        ({"refine": [{"detect": "tree"}], "upscale": 2}, "refine", "cannot be combined with `upscale`"),
    ],
)  # fmt: skip
def test_unsupported_masks_are_rejected(
    post: Callable[..., httpx.Response], fields: dict[str, Any], field: str, message: str
) -> None:
    response = post(**fields)
    assert response.status_code == 422, response.text
    [error] = response.json()["errors"]
    assert error["field"] == field
    assert message in error["message"]


@pytest.mark.parametrize(
    ("fields", "field", "message"),
    [
        ({}, "body", "Give one of `text`, `points` and `box`"),
        ({"text": "a car"}, "text", "finds only"),
        ({"text": "tree", "model": "blind"}, "text", f"{ADD}text`"),
        ({"points": [[0, 121]]}, "points", "not within the image"),
        ({"text": "tree", "blur": 3}, "blur", "Unknown field"),
    ],
)
def test_unsupported_masks_alone_are_rejected(
    post: Callable[..., httpx.Response], fields: dict[str, Any], field: str, message: str
) -> None:
    response = post("/masks", **fields)
    assert response.status_code == 422, response.text
    [error] = response.json()["errors"]
    assert (error["field"], message in error["message"]) == (field, True), error
    # The value of a body is its image, too.
    assert field != "body" or "got" not in error


def test_detail_pass_is_part_of_the_job_and_its_cost(post: Callable[..., httpx.Response], queue: JobQueue) -> None:
    fields = {"num_inference_steps": 20, "strength": 0.5}
    plain = spec_of(post(**fields), queue)
    refined = spec_of(post(**fields, refine=[{"detect": "tree"}, {"detect": "house", "strength": 1, "max": 2}]), queue)
    assert [entry.detect for entry in refined.refine] == ["tree", "house"]
    assert (plain.total_steps, refined.total_steps) == (10, 10 + 8 + 20)
    assert refined.cost > 3 * plain.cost
    assert spec_of(post(**fields, refine=[]), queue).refine == ()
