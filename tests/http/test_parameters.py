"""Optional parameters over HTTP: accepted values, and rejections with a remedy."""

from collections.abc import Callable

import httpx
import pytest
from redis import Redis

from img2img.domain.conditioning import ControlType
from img2img.domain.parameters import Scheduler, Task
from img2img.redis.model_registry import ModelRegistry
from tests.support.model_cards import CARD
from tests.support.problems import assert_problem

ABLE = CARD.model_copy(
    update={
        "name": "able",
        "tasks": (Task.IMG2IMG, Task.INPAINT, Task.UPSCALE),
        "upscales": (2,),
        "controls": (ControlType.CANNY,),
        "preprocessors": (ControlType.CANNY,),
        "parameters": {
            "clip_skip": (Task.IMG2IMG, Task.INPAINT, Task.UPSCALE),
            "eta": (Task.IMG2IMG,),
            "guidance_rescale": (Task.IMG2IMG, Task.INPAINT),
        },
        "control_parameters": {"eta": (Task.INPAINT,)},
        "guidance_until": True,
        "fast_vae": True,
        "scheduler_parameters": {
            "eta": (Scheduler.DDIM, Scheduler.TCD),
            "speed": (Scheduler.DDIM, Scheduler.EULER),
        },
    }
)
CONTROLS = '[{"type": "canny"}]'
OUTPAINT = '{"left": 8}'


@pytest.fixture
def send(submit: Callable[..., httpx.Response], redis: Redis) -> Callable[..., httpx.Response]:
    ModelRegistry(redis).register("test-worker", [CARD, ABLE], ttl_s=60)
    return lambda **fields: submit(**{"model": "able", **fields})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("clip_skip", 2),
        ("eta", 0.5),
        ("guidance_rescale", 0.7),
        ("guidance_until", 0.5),
        ("fast_vae", True),
        ("deterministic", True),
        ("speed", "fast"),
    ],
)
def test_parameters_reach_the_job(send: Callable[..., httpx.Response], name: str, value: float) -> None:
    response = send(**{name: value})
    assert response.status_code == 202, response.text
    assert response.json()["request"][name] == value


def test_parameters_that_ask_for_nothing_are_accepted(send: Callable[..., httpx.Response]) -> None:
    response = send(model="demo", guidance_until=1, fast_vae="false", deterministic="false", guidance_scale=1)
    assert response.status_code == 202, response.text


def test_default_speed_goes_with_every_scheduler(send: Callable[..., httpx.Response]) -> None:
    assert send(speed="exact", scheduler="euler_a").status_code == 202


@pytest.mark.parametrize(
    ("fields", "field", "message"),
    [
        ({"eta": 0.5, "model": "demo"}, "eta", "The model demo does not support `eta`; leave it out"),
        ({"eta": 0.5, "scheduler": "euler"}, "eta", "has no effect: leave it out, or give one of: ddim, tcd"),
        ({"eta": 0.5, "upscale": 2}, "eta", "cannot be combined with `upscale`"),
        ({"eta": 0.5, "outpaint": OUTPAINT}, "eta", "it goes with image-to-image, and not with inpainting"),
        ({"eta": 0.5, "controls": CONTROLS}, "eta", "and `controls` it goes with inpainting and outpainting"),
        (
            {"speed": "fast", "scheduler": "euler_a"},
            "speed",
            "With the scheduler euler_a denoiser calls cannot be skipped without harm to the image: leave it out, or "
            "give one of: ddim, euler",
        ),
        ({"speed": "turbo", "eta": 0.5}, "speed", "cannot be combined with `eta`"),
        ({"speed": "turbo", "model": "demo"}, "speed", "denoiser calls cannot be skipped"),
        ({"speed": "quick"}, "speed", "'exact', 'fast' or 'turbo'"),
        ({"guidance_rescale": 0.5, "model": "demo"}, "guidance_rescale", "does not support `guidance_rescale`"),
        ({"guidance_rescale": 0.5, "guidance_scale": 1}, "guidance_rescale", "Without guidance it has no effect"),
        ({"guidance_rescale": 0.5, "controls": CONTROLS}, "guidance_rescale", "does not support `guidance_rescale`"),
        ({"guidance_rescale": 1.5}, "guidance_rescale", "less than or equal to 1"),
        ({"guidance_until": 0.5, "model": "demo"}, "guidance_until", "cannot stop guidance at a step; leave it out"),
        ({"guidance_until": 0.5, "guidance_scale": 1}, "guidance_until", "Without guidance it has no effect"),
        ({"guidance_until": 0}, "guidance_until", "greater than 0"),
        ({"fast_vae": True, "model": "demo"}, "fast_vae", "The model demo has no `fast_vae`; leave it out"),
        ({"clip_skip": 1, "model": "demo"}, "clip_skip", "does not support `clip_skip`; leave it out"),
        ({"clip_skip": 11}, "clip_skip", "less than or equal to 10"),
        ({"eta": 1.5}, "eta", "less than or equal to 1"),
    ],
)
def test_parameters_that_do_not_apply_are_rejected(
    send: Callable[..., httpx.Response], fields: dict[str, object], field: str, message: str
) -> None:
    [error] = assert_problem(send(**fields), 422, "invalid_parameter")["errors"]
    assert error["field"] == field
    assert message in error["message"]
