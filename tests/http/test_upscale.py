"""Upscaling and edits by instruction over HTTP: resolved fields, and rejections with a remedy."""

import io
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import pytest
from PIL import Image
from redis import Redis

from img2img.domain.model_card import UpscalerCard
from img2img.domain.parameters import Scheduler, Task
from img2img.redis.model_registry import ModelRegistry
from tests.support.images import encoded, gradient
from tests.support.model_cards import CARD
from tests.support.problems import assert_problem
from tests.support.serving import serving

Submit = Callable[..., httpx.Response]

X4 = UpscalerCard(
    times=4,
    native_size=512,
    size_multiple=32,
    schedulers=(Scheduler.EULER,),
    default_scheduler=Scheduler.EULER,
    default_steps=20,
    default_guidance_scale=9.0,
    work=4.0,
)
ENLARGER = CARD.model_copy(
    update={
        "name": "enlarger",
        "tasks": (Task.IMG2IMG, Task.UPSCALE),
        "upscales": (2, 4),
        "upscalers": (X4,),
        "image_prompts": True,
        "loras": ("ink",),
    }
)
EDITOR = CARD.model_copy(update={"name": "editor", "tasks": (Task.EDIT,)})


@pytest.fixture(autouse=True)
def registered(http: httpx.Client, redis: Redis) -> None:
    ModelRegistry(redis).register("enlarging-worker", [ENLARGER, EDITOR], ttl_s=60)


@pytest.fixture
def resolve(http: httpx.Client, image_bytes: bytes) -> Callable[..., dict[str, Any]]:
    """Return the response to a dry run."""

    def dry_run(image: bytes = image_bytes, **fields: Any) -> dict[str, Any]:
        response = http.post("/img2img?dry_run=true", files={"image": image}, data=fields)
        assert response.status_code == 200, response.text
        body: dict[str, Any] = response.json()
        return body

    return dry_run


def test_upscale_runs_img2img_in_tiles(resolve: Callable[..., dict[str, Any]]) -> None:
    plan = resolve(model="enlarger", upscale=2)
    request = plan["request"]
    assert (request["task"], request["upscale"], request["strength"]) == ("upscale", 2, 0.3)
    assert (request["width"], request["height"]) == (160, 120), "the size of the image"
    assert request["tiling"] == {"upscaler": False, "side": 128, "overlap": 16, "multiple": 8, "work": 1}
    # Tiles of 128 x 128 for 320 x 240 pixels.
    tiles = 3 * 2
    assert plan["cost"] == pytest.approx(128 * 128 * (9 + 1) * 2 * tiles / 1e6)


def test_tiles_exclude_schedulers_that_add_noise(
    resolve: Callable[..., dict[str, Any]], http: httpx.Client, redis: Redis, image_bytes: bytes
) -> None:
    ancestral = ENLARGER.model_copy(update={"name": "ancestral", "default_scheduler": Scheduler.EULER_A})
    ModelRegistry(redis).register("enlarging-worker", [ENLARGER, EDITOR, ancestral], ttl_s=60)
    small = encoded(gradient(50, 40))
    assert resolve(image=small, model="ancestral", upscale=2)["request"]["scheduler"] == "euler_a", "one tile"
    assert resolve(model="ancestral", upscale=2)["request"]["scheduler"] == "euler"
    data = {"model": "enlarger", "upscale": 2, "scheduler": "euler_a"}
    [error] = assert_problem(http.post("/img2img", files={"image": image_bytes}, data=data), 422, "invalid_parameter")[
        "errors"
    ]
    assert error["field"] == "scheduler"
    assert "made in tiles" in error["message"]
    assert "ddim" in error["message"]


def test_upscale_runs_an_upscaler(resolve: Callable[..., dict[str, Any]]) -> None:
    plan = resolve(model="enlarger", upscale=4)
    assert plan["cost"] == pytest.approx(4 * 512 * 480 * 21 * 2 * 2 / 1e6), (
        "its latents are for 4 x 4 pixels, not 8 x 8"
    )
    request = plan["request"]
    assert request["tiling"] == {"upscaler": True, "side": 512, "overlap": 64, "multiple": 32, "work": 4}
    resolved = {name: request[name] for name in ("strength", "scheduler", "num_inference_steps", "guidance_scale")}
    assert resolved == {"strength": 1, "scheduler": "euler", "num_inference_steps": 20, "guidance_scale": 9}
    assert resolve(model="enlarger", upscale=4, guidance_scale=3)["request"]["guidance_scale"] == 3


def test_progress_counts_the_steps_of_all_tiles(submit: Submit) -> None:
    job = submit(model="enlarger", upscale=2, num_images=2, num_inference_steps=10).json()
    assert job["progress"]["steps"] == 2 * 6 * 3


def test_instruction_makes_an_edit_job(resolve: Callable[..., dict[str, Any]]) -> None:
    request = resolve(model="editor", instruction="make it night", negative_prompt="fog")["request"]
    assert (request["task"], request["instruction"], request["image_guidance_scale"]) == ("edit", "make it night", 1.5)
    assert "strength" not in request


@pytest.mark.parametrize(
    ("fields", "field", "message"),
    [
        ({"upscale": 2}, "upscale", "does not support upscaling; it supports: image-to-image"),
        ({"upscale": 3, "model": "enlarger"}, "upscale", "2 or 4"),
        ({"upscale": 2, "model": "enlarger", "width": 128}, "width", "cannot be combined with `upscale`"),
        ({"upscale": 4, "model": "enlarger", "strength": 0.3}, "strength", "starts from pure noise"),
        ({"upscale": 4, "model": "enlarger", "scheduler": "ddim"}, "scheduler", "one of: euler"),
        ({"upscale": 4, "model": "enlarger", "loras": '[{"name": "ink"}]'}, "loras", "the model's own denoiser"),
        ({"upscale": 2, "model": "enlarger", "instruction": "x"}, "upscale", "upscale the result in a second job"),
        ({"instruction": "make it night"}, "instruction", "does not support editing by instruction"),
        ({"model": "editor"}, "image", "does not support image-to-image; it supports: editing by instruction"),
        ({"model": "editor", "instruction": "x", "strength": 0.5}, "strength", "cannot be combined"),
        ({"model": "editor", "instruction": "x", "prompt": "y"}, "prompt", "cannot be combined"),
        ({"model": "editor", "instruction": ""}, "image", "it supports: editing by instruction"),
        ({"image_guidance_scale": 2}, "image_guidance_scale", "belongs to"),
        (
            {"model": "editor", "instruction": "x", "image_guidance_scale": 2, "guidance_scale": 1},
            "image_guidance_scale",
            "Without guidance it has no effect",
        ),
    ],
)
def test_unsupported_requests_are_rejected(submit: Submit, fields: dict[str, Any], field: str, message: str) -> None:
    [error] = assert_problem(submit(**fields), 422, "invalid_parameter")["errors"]
    assert error["field"] == field
    assert message in error["message"]


def test_too_large_result_is_rejected(submit: Submit) -> None:
    response = submit(encoded(gradient(1010, 1000)), model="enlarger", upscale=2)
    [error] = assert_problem(response, 422, "invalid_parameter")["errors"]
    assert error["field"] == "upscale"
    assert "2020 x 2000 pixels; at most 4,000,000" in error["message"]


def test_models_lists_upscales_and_upscalers(http: httpx.Client) -> None:
    models = {model["name"]: model for model in http.get("/models").json()["models"]}
    assert models["enlarger"]["upscales"] == [2, 4]
    assert models["enlarger"]["upscalers"] == [X4.model_dump(mode="json")]


def test_demo_model_upscales_an_image() -> None:
    image = gradient(101, 70)
    with TemporaryDirectory(prefix="i2i-") as folder, serving(Path(folder), Path("demo")) as client:
        [card] = client.get("/models").json()["models"]
        assert card["upscales"] == [2, 4]
        fields = {"upscale": 2, "num_inference_steps": 4, "prompt": "a photo", "guidance_scale": 1, "seed": 1}
        job = client.post("/img2img", files={"image": encoded(image)}, data=fields).json()
        while not job["finished_at"]:
            time.sleep(0.1)
            job = client.get(f"/jobs/{job['id']}").json()
        assert job["status"] == "succeeded", job["error"]
        assert job["progress"] == {"step": 4, "steps": 4, "fraction": 1}, "one step for each of 2 x 2 tiles"
        assert (job["images"][0]["width"], job["images"][0]["height"]) == (202, 140)
        with Image.open(io.BytesIO(client.get(f"/jobs/{job['id']}/result").content)) as result:
            assert result.size == (202, 140)
