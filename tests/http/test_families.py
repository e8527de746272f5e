"""Fields that a family of models does not support are rejected over HTTP, with a remedy."""

from collections.abc import Callable

import httpx
import pytest
from redis import Redis

from img2img.domain.conditioning import ControlType
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


REFINED = CARD.model_copy(
    update={
        "refiner": True,
        "default_denoising_end": 0.8,
        "parameters": {"denoising_start": (Task.IMG2IMG,)},
        "tasks": tuple(Task),
        "controls": (ControlType.CANNY,),
        "preprocessors": (ControlType.CANNY,),
        "loras": ("ink",),
        "image_prompts": True,
        "upscales": (2,),
    }
)
CANNY = '[{"type": "canny"}]'
INK = '[{"name": "ink"}]'


@pytest.fixture
def refine(submit: Callable[..., httpx.Response], redis: Redis) -> Callable[..., httpx.Response]:
    ModelRegistry(redis).register("test-worker", [REFINED], ttl_s=60)
    return submit


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, 0.8),
        ({"strength": 0.1}, 0.8),
        ({"denoising_end": 0.5}, 0.5),
        ({"denoising_end": 1}, None),
        ({"denoising_start": 0.3}, 0.8),
        ({"outpaint": '{"left": 64}'}, 0.8),
        ({"outpaint": '{"left": 64}', "denoising_end": 0.7}, 0.7),
        ({"controls": CANNY}, None),
        ({"controls": CANNY, "denoising_end": 1}, None),
        ({"loras": INK}, 0.8),
        ({"loras": INK, "strength": 0.1, "denoising_end": 1}, None),
        ({"upscale": 2}, None),
        ({"instruction": "make it night"}, None),
    ],
)
def test_refiner_takes_over_at_the_default_or_given_step(
    refine: Callable[..., httpx.Response], fields: dict[str, object], expected: float | None
) -> None:
    response = refine(**fields)
    assert response.status_code == 202, response.text
    assert response.json()["request"].get("denoising_end") == expected


@pytest.mark.parametrize(
    ("fields", "field", "message"),
    [
        ({"denoising_end": 0}, "denoising_end", "greater than 0"),
        ({"denoising_end": 1.1}, "denoising_end", "less than or equal to 1"),
        ({"denoising_end": 0.5, "controls": CANNY}, "denoising_end", "cannot be combined with `controls`"),
        ({"denoising_end": 0.5, "upscale": 2}, "denoising_end", "cannot be combined with `upscale`"),
        ({"denoising_end": 0.5, "instruction": "night"}, "denoising_end", "cannot be combined with `instruction`"),
        ({"loras": INK, "strength": 0.2}, "loras", "give a higher strength, or `denoising_end` 1 for no refiner"),
        # One step, the last one.
        (
            {"loras": INK, "num_inference_steps": 4, "strength": 0.49, "denoising_end": 0.7},
            "loras",
            "the refiner that runs them takes none",
        ),
        ({"loras": INK, "denoising_start": 0.9}, "loras", "the refiner that runs them takes none"),
    ],
)
def test_refiner_is_refused_where_it_cannot_run(
    refine: Callable[..., httpx.Response], fields: dict[str, object], field: str, message: str
) -> None:
    [error] = assert_problem(refine(**fields), 422, "invalid_parameter")["errors"]
    assert error["field"] == field
    assert message in error["message"]


def test_denoising_end_needs_a_model_with_a_refiner(send: Callable[..., httpx.Response]) -> None:
    [error] = assert_problem(send(denoising_end=0.8), 422, "invalid_parameter")["errors"]
    assert error["message"] == "The model demo has no refiner; leave `denoising_end` out"
    assert send(denoising_end=1).status_code == 202


def test_cost_of_a_refined_job_is_that_of_all_its_steps(refine: Callable[..., httpx.Response]) -> None:
    jobs = [refine(denoising_end=end, num_inference_steps=20).json() for end in (0.5, 0.8, 1)]
    assert [job["progress"]["steps"] for job in jobs] == [16, 16, 16]


def test_prompt_weighting_is_accepted_if_supported(send: Callable[..., httpx.Response]) -> None:
    response = send(prompt="a (red:1.3) house", prompt_weighting=True)
    assert response.status_code == 202, response.text
    assert response.json()["request"]["prompt_weighting"] is True
