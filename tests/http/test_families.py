"""Fields that a family of models does not support are rejected over HTTP, with a remedy."""

from collections.abc import Callable

import httpx
import pytest
from redis import Redis

from img2img.domain.parameters import Task
from img2img.redis.model_registry import ModelRegistry
from tests.support.model_cards import CARD, PLAIN
from tests.support.problems import assert_problem

WEIGHTED = CARD.model_copy(update={"prompt_weighting": True})


@pytest.fixture
def send(submit: Callable[..., httpx.Response], redis: Redis) -> Callable[..., httpx.Response]:
    ModelRegistry(redis).register("test-worker", [WEIGHTED, PLAIN], ttl_s=60)
    return submit


@pytest.mark.parametrize(
    ("fields", "field", "message"),
    [
        ({"negative_prompt": "blurry"}, "negative_prompt", "takes no negative prompt"),
        ({"guidance_scale": 5}, "guidance_scale", "should be 1 or absent"),
        ({"prompt_weighting": True}, "prompt_weighting", "does not support weights"),
        ({"denoising_start": 0.8}, "denoising_start", "for SDXL and its refiner"),
        ({"denoising_start": 0.8, "strength": 0.5}, "denoising_start", "cannot be combined with `strength`"),
        (
            {"denoising_start": 0.8, "outpaint": '{"left": 8}'},
            "denoising_start",
            "cannot be combined with `mask` or `outpaint`",
        ),
        ({"scheduler": "ddim"}, "scheduler", "flow_euler, flow_euler_beta, flow_heun"),
        ({"instruction": "make it night", "image_guidance_scale": 2}, "image_guidance_scale", "leave it out"),
    ],
)
def test_unsupported_fields_are_rejected(
    send: Callable[..., httpx.Response], fields: dict[str, object], field: str, message: str
) -> None:
    [error] = assert_problem(send(model="plain", **fields), 422, "invalid_parameter")["errors"]
    assert error["field"] == field
    assert message in error["message"]


def test_absent_fields_get_defaults_of_the_family(send: Callable[..., httpx.Response]) -> None:
    request = send(model="plain", instruction="make it night").json()["request"]
    assert (request["guidance_scale"], request["scheduler"]) == (1.0, "flow_euler")
    assert request.get("image_guidance_scale") is None


def test_denoising_start_replaces_strength(http: httpx.Client, redis: Redis, image_bytes: bytes) -> None:
    xl = CARD.model_copy(update={"name": "xl", "parameters": {"denoising_start": (Task.IMG2IMG,)}, "guidance_rows": 1})
    ModelRegistry(redis).register("test-worker", [xl], ttl_s=60)
    data = {"model": "xl", "denoising_start": 0.8, "num_inference_steps": 20}
    response = http.post("/img2img?dry_run=true", files={"image": image_bytes}, data=data)
    assert response.status_code == 200, response.text
    plan = response.json()
    request = plan["request"]
    assert request["denoising_start"] == 0.8
    row = request["width"] * request["height"] * (4 + 1) / 1e6
    assert plan["cost"] == pytest.approx(row), "4 steps; guidance is an input of this model, not a row"


def test_prompt_weighting_is_accepted_if_supported(send: Callable[..., httpx.Response]) -> None:
    response = send(prompt="a (red:1.3) house", prompt_weighting=True)
    assert response.status_code == 202, response.text
    assert response.json()["request"]["prompt_weighting"] is True
