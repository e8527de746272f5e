"""LoRAs and image prompts over HTTP: accepted fields, and rejections that follow from the model card."""

import base64
import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from redis import Redis

from img2img.blobs import ObjectStore
from img2img.domain.blob_keys import input_key
from img2img.domain.parameters import Task
from img2img.redis.job_queue import JobQueue
from img2img.redis.model_registry import ModelRegistry
from tests.support.images import encoded, gradient
from tests.support.model_cards import CARD

ABLE = CARD.model_copy(
    update={
        "name": "able",
        "loras": ("ink", "v1.5-clay"),
        "image_prompts": True,
        "max_image_prompts": 2,
        "embeddings": ("EasyNegative", "my-style"),
        "prompt_weighting": True,
        "tasks": (Task.IMG2IMG, Task.INPAINT, Task.UPSCALE),
        "upscales": (2,),
        "adapter_tasks": (Task.IMG2IMG, Task.INPAINT),
    }
)
INK = [{"name": "ink", "scale": 0.8}]


@pytest.fixture
def post(http: httpx.Client, redis: Redis, image_bytes: bytes) -> Callable[..., httpx.Response]:
    """Submit JSON to the model `able`, unless the fields name another one."""
    ModelRegistry(redis).register("able-worker", [ABLE], ttl_s=60)

    def send(**fields: Any) -> httpx.Response:
        return http.post("/img2img", json={"image": base64.b64encode(image_bytes).decode(), "model": "able"} | fields)

    return send


def test_loras_and_image_prompts_reach_the_job(post: Any, queue: JobQueue, store: ObjectStore) -> None:
    image = base64.b64encode(encoded(gradient(2000, 500))).decode()
    response = post(
        loras=[*INK, {"name": "v1.5-clay"}], image_prompts=[{"image": image, "scale": 0.3}, {"image": image}]
    )
    assert response.status_code == 202, response.text
    record = queue.job_store.get(response.json()["id"])
    assert record is not None
    assert [(lora.name, lora.scale) for lora in record.spec.loras] == [("ink", 0.8), ("v1.5-clay", 1.0)]
    first, second = record.spec.image_prompts
    assert (first.scale, second.scale) == (0.3, 0.6)
    assert first.image == second.image
    assert store.get(input_key(first.image)) is not None
    assert set(record.spec.inputs) == {record.spec.image, first.image}


def test_form_takes_adapters_as_json_and_images_as_files(post: Any, http: httpx.Client, image_bytes: bytes) -> None:
    response = http.post(
        "/img2img",
        files={"image": image_bytes, "image_prompts.0.image": encoded(gradient(64, 64))},
        data={"model": "able", "loras": json.dumps(INK), "image_prompts": json.dumps([{"scale": 0.5}])},
    )
    assert response.status_code == 202, response.text
    assert response.json()["request"]["loras"] == INK
    assert response.json()["request"]["image_prompts"][0]["scale"] == 0.5


@pytest.mark.parametrize(
    ("fields", "field", "message"),
    [
        ({"loras": [{"name": "oil"}]}, "loras.0.name", "should be one of: ink, v1.5-clay"),
        ({"loras": INK * 2}, "loras.1.name", "named twice"),
        ({"loras": [{"name": "ink", "scale": 3}]}, "loras.0.scale", "less than or equal to 2"),
        ({"loras": [{"name": "../ink"}]}, "loras.0.name", "1 to 100 letters"),
        ({"loras": INK, "model": "demo"}, "loras.0.name", "demo has no LoRA"),
        ({"image_prompts": [{"image": "IMAGE"}], "model": "demo"}, "image_prompts", "demo has no IP-Adapter"),
        ({"image_prompts": [{"image": "IMAGE"}] * 5}, "image_prompts", "at most 4 items"),
        ({"image_prompts": [{"image": "IMAGE", "scale": -1}]}, "image_prompts.0.scale", "greater than or equal to 0"),
        ({"loras": INK, "upscale": 2}, "loras", "goes with image-to-image, inpainting and outpainting, and not with"),
        ({"image_prompts": [{"image": "IMAGE"}], "upscale": 2}, "image_prompts", "and not with upscaling"),
        ({"image_prompts": [{"image": "IMAGE"}] * 3}, "image_prompts", "able takes at most 2"),
        ({"prompt": "embedding:other"}, "prompt", "able has no embedding other; it has: EasyNegative, my-style"),
        ({"prompt": "a <other> house"}, "prompt", "able has no embedding other; it has: EasyNegative, my-style"),
        ({"negative_prompt": "(embedding:bad:1.2)"}, "negative_prompt", "able has no embedding bad"),
        ({"prompt": "embedding:other", "model": "demo"}, "prompt", "demo has no embedding other; it has none"),
    ],
)
def test_unsupported_adapters_are_rejected(post: Any, fields: dict[str, Any], field: str, message: str) -> None:
    image = base64.b64encode(encoded(gradient(32, 32))).decode()
    body = json.loads(json.dumps(fields).replace("IMAGE", image))
    response = post(**body)
    assert response.status_code == 422, response.text
    [error] = response.json()["errors"]
    assert error["field"] == field
    assert message in error["message"]


@pytest.mark.parametrize(
    "prompt", ["easynegative, <my-style>", "embedding:EASYNEGATIVE", "1 < 2 <3 > <lora:ink:1>", "other embedding: x"]
)
def test_known_embeddings_and_words_are_accepted(post: Any, prompt: str) -> None:
    response = post(prompt=prompt)
    assert response.status_code == 202, response.text
    assert response.json()["request"]["prompt"] == prompt


def test_invalid_prompt_image_is_rejected_by_field(post: Any) -> None:
    response = post(image_prompts=[{"image": base64.b64encode(b"no image").decode()}])
    assert response.status_code in (415, 422)
    assert "image_prompts.0.image" in response.text


def test_models_lists_loras_and_image_prompts(post: Any, http: httpx.Client) -> None:
    models = {model["name"]: model for model in http.get("/models").json()["models"]}
    able, demo = models["able"], models["demo"]
    assert (able["loras"], able["image_prompts"]) == (["ink", "v1.5-clay"], True)
    assert (able["embeddings"], able["max_image_prompts"]) == (["EasyNegative", "my-style"], 2)
    assert able["adapter_tasks"] == ["img2img", "inpaint"]
    assert (demo["loras"], demo["image_prompts"], demo["default"]) == ([], False, True)
    schema = http.get("/openapi.json").json()["components"]["schemas"]["ServedModel"]["properties"]
    assert "Names that `loras` can give." in schema["loras"]["description"]
