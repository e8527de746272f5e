"""Optional parameters over HTTP: accepted values, and rejections with a remedy."""

import base64
import json
from collections.abc import Callable
from io import BytesIO
from typing import Any

import httpx
import pytest
from PIL import Image
from redis import Redis

from img2img.blobs import ObjectStore
from img2img.domain.blob_keys import input_key
from img2img.domain.conditioning import ControlType
from img2img.domain.parameters import Scheduler, Task
from img2img.redis.job_queue import JobQueue
from img2img.redis.model_registry import ModelRegistry
from tests.support.images import encoded, gradient
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
            "subseed": (Task.IMG2IMG,),
            "subseed_strength": (Task.IMG2IMG,),
            "freeu": (Task.IMG2IMG,),
            "pag_scale": (Task.IMG2IMG,),
            "pag_adaptive_scale": (Task.IMG2IMG,),
            "soft_inpainting": (Task.INPAINT,),
            "seamless_tiling": (Task.IMG2IMG,),
        },
        "image_prompts": True,
        "image_prompt_blocks": {"down.block_1": 2, "up.block_0": 3, "mid": 1},
        "control_parameters": {"eta": (Task.INPAINT,)},
        "max_clip_skip": 2,
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
FREEU = '{"b1": 1.3, "b2": 1.4, "s1": 0.9, "s2": 0.2}'
IMAGE = encoded(gradient(40, 30))
BLOCKS = "image_prompts.0.blocks."


def blocks(given: dict[str, Any]) -> str:
    return json.dumps([{"image": base64.b64encode(IMAGE).decode(), "blocks": given}])


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
        ("exact_steps", True),
        ("pag_scale", 2.5),
        ("seamless_tiling", True),
    ],
)
def test_parameters_reach_the_job(send: Callable[..., httpx.Response], name: str, value: float) -> None:
    response = send(**{name: value})
    assert response.status_code == 202, response.text
    assert response.json()["request"][name] == value


def test_parameters_with_parts_reach_the_job(send: Callable[..., httpx.Response]) -> None:
    request = send(subseed=7, subseed_strength=0.2, freeu=FREEU, seed=3).json()["request"]
    assert (request["seed"], request["subseed"], request["subseed_strength"]) == (3, 7, 0.2)
    assert request["freeu"] == json.loads(FREEU)
    assert 0 <= send(subseed=-1, subseed_strength=0.2).json()["request"]["subseed"] < 2**32
    request = send(outpaint=OUTPAINT, soft_inpainting=True).json()["request"]
    assert request["region"]["is_soft"]
    blocks = {"up": {"block_0": [0.0, 1.0, 0.0]}, "mid": 0.5}
    prompts = json.dumps([{"image": base64.b64encode(IMAGE).decode(), "blocks": blocks}])
    response = send(image_prompts=prompts)
    assert response.status_code == 202, response.text
    assert response.json()["request"]["image_prompts"][0]["blocks"] == blocks


def test_soft_mask_keeps_its_grey(
    send: Callable[..., httpx.Response], http: httpx.Client, image_bytes: bytes, queue: JobQueue, store: ObjectStore
) -> None:
    files = {"image": image_bytes, "mask": encoded(Image.new("L", (160, 120), 90))}
    job = http.post("/img2img", files=files, data={"model": "able", "soft_inpainting": "true"}).json()
    record = queue.job_store.get(job["id"])
    assert record is not None
    sent = Image.open(BytesIO(store.get(input_key(record.spec.region.mask)) or b""))
    assert sent.getextrema() == (90, 90)
    response = http.post("/img2img", files=files, data={"model": "able"})
    [error] = assert_problem(response, 422, "invalid_parameter")["errors"]
    assert "black all over" in error["message"]


def test_parameters_that_ask_for_nothing_are_accepted(send: Callable[..., httpx.Response]) -> None:
    nothing = {"subseed_strength": 0, "subseed": -1, "pag_scale": 0, "pag_adaptive_scale": 0, "exact_steps": "false"}
    nothing |= {"freeu": "", "soft_inpainting": "false", "weighting_method": "compel"}
    response = send(model="demo", **nothing)
    assert response.status_code == 202, response.text
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
        ({"subseed": 7}, "subseed", "It has no effect without `subseed_strength`; leave it out, or give both"),
        ({"subseed_strength": 0.1, "model": "demo"}, "subseed_strength", "does not support variation seeds"),
        ({"subseed_strength": 0.1, "upscale": 2}, "subseed_strength", "cannot be combined with `upscale`"),
        ({"subseed_strength": 0.1, "controls": CONTROLS}, "subseed_strength", "does not support variation seeds"),
        ({"subseed_strength": 0.1, "subseed": 2**63 - 1, "num_images": 2}, "subseed", "at most 9223372036854775806"),
        (
            {"exact_steps": True, "strength": 0.1, "num_inference_steps": 150},
            "exact_steps",
            "more than the 1000 steps that ddim can have",
        ),
        ({"freeu": FREEU, "model": "demo"}, "freeu", "which is for the UNets of Stable Diffusion and SDXL"),
        ({"freeu": FREEU.replace("1.3", "9")}, "freeu.b1", "less than or equal to 4"),
        ({"pag_scale": 2, "model": "demo"}, "pag_scale", "does not support perturbed-attention guidance"),
        ({"pag_scale": 2, "speed": "fast"}, "pag_scale", "cannot be combined with `speed`"),
        ({"pag_scale": 2, "guidance_until": 0.5}, "pag_scale", "cannot be combined with `guidance_until`"),
        ({"pag_scale": 2, "outpaint": OUTPAINT}, "pag_scale", "it goes with image-to-image, and not with inpainting"),
        ({"pag_adaptive_scale": 0.1}, "pag_adaptive_scale", "no effect without `pag_scale`"),
        ({"seamless_tiling": True, "model": "demo"}, "seamless_tiling", "The model demo cannot make seamless tiles"),
        (
            {"seamless_tiling": True, "outpaint": OUTPAINT},
            "seamless_tiling",
            "cannot be combined with `mask` or `outpaint`",
        ),
        ({"soft_inpainting": True}, "soft_inpainting", "belongs to `mask` or `outpaint`, which is not given"),
        ({"soft_inpainting": True, "outpaint": OUTPAINT, "controls": CONTROLS}, "soft_inpainting", "with `controls`"),
        ({"weighting_method": "a1111", "model": "demo"}, "weighting_method", "does not support weights in prompts"),
        ({"image_prompts": blocks({"up": {"block_1": 1}})}, BLOCKS + "up.block_1", "it has: down.block_1, up.block_0"),
        ({"image_prompts": blocks({"up": {"block_0": [1, 0]}})}, BLOCKS + "up.block_0", "each of the 3 attentions"),
        ({"image_prompts": blocks({"left": 1})}, BLOCKS + "left", "has no such block"),
        (
            {"image_prompts": blocks({"mid": 1}).replace('"blocks"', '"scale": 0.6, "blocks"')},
            "image_prompts.0",
            "leave one of the two out",
        ),
        ({"image_prompts": blocks({"up": {"block_0": "x"}})}, BLOCKS + "up", "an object of these by block"),
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
