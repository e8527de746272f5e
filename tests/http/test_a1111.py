"""The API of the web UI over real HTTP, with requests as its clients send them."""

import base64
import json
from collections.abc import Callable
from io import BytesIO
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image, ImageDraw
from redis import Redis

from img2img.app.compat.a1111.request import WebUIRequest
from img2img.blobs import ObjectStore
from img2img.domain.blob_keys import input_key
from img2img.domain.infotext import infotext
from img2img.domain.masks import MaskKind
from img2img.domain.parameters import Sigmas, Task
from img2img.domain.spec import InpaintSpec, JobSpec
from img2img.redis.job_queue import JobQueue
from img2img.redis.model_registry import ModelRegistry
from img2img.worker.images.png import encode_png
from tests.http.test_compat import stored_mask
from tests.support.images import encoded, gradient
from tests.support.model_cards import CARD, DDIM_ONLY
from tests.support.problems import assert_problem
from tests.support.specs import make_spec

IMAGE = encoded(gradient(160, 120))
BIASED = {"args": [True, 2]}
TEXT = base64.b64encode(IMAGE).decode()
ABLE = CARD.model_copy(
    update={
        "tasks": tuple(Task),
        "loras": ("ink", "line"),
        "embeddings": ("style",),
        "prompt_weighting": True,
        "mask_content": True,
        "controls": ("canny", "depth"),
        "preprocessors": ("canny", "softedge"),
        "masks": (MaskKind.TEXT,),
        "image_prompts": True,
        "upscales": (2, 4),
        "parameters": dict.fromkeys(
            (
                "clip_skip",
                "eta",
                "subseed",
                "subseed_strength",
                "freeu",
                "pag_scale",
                "soft_inpainting",
                "seamless_tiling",
            ),
            tuple(Task),
        ),
        "control_parameters": dict.fromkeys(("clip_skip", "eta", "guess_mode"), tuple(Task)),
        "scheduler_parameters": {"eta": ("ddim",)},
        "scheduler_sigmas": {"euler_a": (Sigmas.NORMAL,), "dpmpp_2m": tuple(Sigmas), "dpmpp_sde": tuple(Sigmas)},
    }
)

# The example body of /docs of the web UI 1.10, with nothing in place of its placeholders "string" and true.
WEB_UI_DEFAULTS = json.loads("""{
  "prompt": "", "negative_prompt": "", "styles": [], "seed": -1, "subseed": -1, "subseed_strength": 0,
  "seed_resize_from_h": -1, "seed_resize_from_w": -1, "sampler_name": null, "scheduler": null, "batch_size": 1,
  "n_iter": 1, "steps": 50, "cfg_scale": 7.0, "restore_faces": null, "tiling": null, "do_not_save_samples": false,
  "do_not_save_grid": false, "eta": null, "denoising_strength": 0.75, "s_min_uncond": null, "s_churn": null,
  "s_tmax": null, "s_tmin": null, "s_noise": null, "override_settings": null,
  "override_settings_restore_afterwards": true, "refiner_checkpoint": null, "refiner_switch_at": null,
  "disable_extra_networks": false, "firstpass_image": null, "comments": null, "resize_mode": 0,
  "image_cfg_scale": null, "mask": null, "mask_blur_x": 4, "mask_blur_y": 4, "mask_blur": null, "mask_round": true,
  "inpainting_fill": 0, "inpaint_full_res": true, "inpaint_full_res_padding": 0, "inpainting_mask_invert": 0,
  "initial_noise_multiplier": null, "latent_mask": null, "force_task_id": null, "sampler_index": "Euler",
  "include_init_images": false, "script_name": null, "script_args": [], "send_images": true, "save_images": false,
  "alwayson_scripts": {}, "infotext": null
}""")


@pytest.fixture
def http(http: httpx.Client, redis: Redis) -> httpx.Client:
    """A client of a service with a model that can do everything."""
    ModelRegistry(redis).register("test-worker", [ABLE], ttl_s=60)
    return http


@pytest.fixture
def web_ui(http: httpx.Client, queue: JobQueue, fake_worker: None) -> Callable[..., JobSpec]:
    """Make an image by the web UI's API and return the spec of its job."""

    def post(**fields: Any) -> JobSpec:
        response = http.post("/sdapi/v1/img2img", json={"init_images": [TEXT], **fields})
        assert response.status_code == 200, response.text
        record = queue.job_store.get(json.loads(response.json()["info"])["job_id"])
        assert record is not None
        return record.spec

    return post


def test_defaults_ask_for_nothing(web_ui: Callable[..., JobSpec]) -> None:
    spec = web_ui(**WEB_UI_DEFAULTS)
    assert (spec.task, spec.scheduler, spec.num_inference_steps, spec.strength) == ("img2img", "euler", 50, 0.75)
    assert (spec.width, spec.height) == (144, 112)


def test_null_is_a_default(web_ui: Callable[..., JobSpec]) -> None:
    spec = web_ui(**{name: None for name in WebUIRequest.model_fields if name != "init_images"})
    assert (spec.guidance_scale, spec.num_inference_steps) == (7.0, 50)


@pytest.mark.parametrize(
    "fields",
    [
        {"alwayson_scripts": {"x": None}},
        {"alwayson_scripts": {"x": {}}},
        {"alwayson_scripts": {"x": {"args": None}}},
        {"alwayson_scripts": {"x": {"args": [False, None, "", "None", {}, {"enabled": False}]}}},
        {"script_name": "None", "script_args": [1]},
        {"override_settings": {"sd_model_checkpoint": None}},
        {"s_noise": 0, "s_tmax": 1, "sampler_name": "Euler"},
        {"refiner_switch_at": 0.8, "refiner_checkpoint": ""},
        {"init_images": ["data:image/png;base64," + TEXT]},
        {"mask": ""},
        {"unknown": 0, "other": [], "another": {}, "one_more": False, "last": ""},
        {"enable_hr": False, "hr_scale": 2.0, "hr_upscaler": "Latent"},
        {"image_cfg_scale": 1.5, "distilled_cfg_scale": 3.5, "initial_noise_multiplier": 1.0},
        {"subseed": 7, "subseed_strength": 0, "comments": {"a": 1}, "styles": None},
        {"override_settings": {"sd_vae": "Automatic", "CLIP_stop_at_last_layers": 1, "samples_save": True}},
        {"alwayson_scripts": {"controlnet": {"args": [{"enabled": False, "module": "reference_only"}]}}},
    ],
)
def test_fields_that_ask_for_nothing_are_accepted(web_ui: Callable[..., JobSpec], fields: dict[str, Any]) -> None:
    assert web_ui(**fields).task is Task.IMG2IMG


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"alwayson_scripts": {"x": {"args": 3}}}, "alwayson_scripts.x.args"),
        ({"alwayson_scripts": {"x": 3}}, "alwayson_scripts.x"),
        ({"alwayson_scripts": {"x": {"args": [True]}}}, "alwayson_scripts.x"),
        ({"alwayson_scripts": {"x": {"args": [{"ad_model": "face.pt"}]}}}, "alwayson_scripts.x"),
        ({"refiner_checkpoint": "xl"}, "refiner_checkpoint"),
        ({"unknown": 1}, "unknown"),
        ({"enable_hr": True}, "enable_hr"),
        ({"styles": ["cinematic"]}, "styles"),
        ({"alwayson_scripts": {"Soft Inpainting": BIASED}, "mask": TEXT}, "alwayson_scripts.Soft Inpainting"),
        ({"subseed_strength": 2}, "subseed_strength"),
        ({"seed_resize_from_h": 512}, "seed_resize_from_h"),
        ({"image_cfg_scale": 2}, "image_cfg_scale"),
        ({"eta": 0.5, "sampler_name": "Euler a"}, "eta"),
        ({"sampler_name": "Euler a", "scheduler": "Karras"}, "scheduler"),
        ({"override_settings": {"sd_vae": "other"}}, "override_settings.sd_vae"),
        ({"override_settings": {"token_merging_ratio": 0.5}}, "override_settings.token_merging_ratio"),
        (
            {"clip_skip": 3, "override_settings": {"CLIP_stop_at_last_layers": 2}},
            "override_settings.CLIP_stop_at_last_layers",
        ),
        ({"script_name": "outpainting mk2"}, "script_name"),
        ({"script_name": "sd upscale", "script_args": ["", 64, "Lanczos", 3]}, "script_args.3"),
        ({"script_name": "sd upscale", "script_args": ["", 64, "ESRGAN_4x", 2]}, "script_args.2"),
        ({"resize_mode": 3, "width": 64, "height": 64}, "resize_mode"),
        ({"firstpass_image": "x"}, "firstpass_image"),
        ({"infotext": "Steps: 1"}, "infotext"),
        ({"mask_round": False}, "mask_round"),
        ({"s_churn": 1}, "s_churn"),
        ({"s_noise": 0, "sampler_name": "Euler a"}, "s_noise"),
        ({"mask": TEXT, "mask_blur_x": 3}, "mask_blur_y"),
        ({"prompt": "a [b:c:0.5]"}, "prompt"),
        ({"prompt": "<lora:nothing:1>"}, "prompt"),
        ({"negative_prompt": "<lora:ink:1>"}, "negative_prompt"),
        ({"prompt": "<lora:ink:3>"}, "loras.0.scale"),
        ({"prompt": "<lora:ink:1>" * 9}, "prompt"),
        ({"prompt": "a\0b"}, "prompt"),
        ({"width": 100}, "width"),
        ({"override_settings": {"sd_model_checkpoint": "nothing"}}, "override_settings.sd_model_checkpoint"),
        ({"init_images": ["photo.png"]}, "init_images.0"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(http: httpx.Client, fields: dict[str, Any], field: str) -> None:
    response = http.post("/sdapi/v1/img2img", json={"init_images": [TEXT], **fields})
    assert {error["field"] for error in assert_problem(response, 422)["errors"]} == {field}


def test_prompt_language_is_understood(web_ui: Callable[..., JobSpec]) -> None:
    spec = web_ui(prompt="a (red:1.5) house <lora:ink:0.8>", negative_prompt="[rain]")
    assert (spec.prompt, spec.negative_prompt, spec.prompt_weighting) == (
        "a (red:1.5) house",
        "(rain:0.9091)",
        True,
    )
    assert [(lora.name, lora.scale) for lora in spec.loras] == [("ink", 0.8)]
    spec = web_ui(prompt=r"a house \(red\) <lora:ink:0.8>", disable_extra_networks=True)
    assert (spec.prompt, spec.prompt_weighting, spec.loras) == ("a house (red)", False, ())


def test_model_without_weights_refuses_them(http: httpx.Client, redis: Redis) -> None:
    ModelRegistry(redis).register("test-worker", [CARD], ttl_s=60)
    response = http.post("/sdapi/v1/img2img", json={"init_images": [TEXT], "prompt": "a (red:1.5) house"})
    [error] = assert_problem(response, 422)["errors"]
    assert (error["field"], "weights" in error["message"]) == ("prompt", True)


@pytest.mark.parametrize("full_res", [True, False])
@pytest.mark.parametrize("mode", ["L", "RGBA"])
def test_thin_mask_and_mask_by_opacity_are_kept(
    web_ui: Callable[..., JobSpec], store: ObjectStore, full_res: bool, mode: str
) -> None:
    mask = Image.new("L", (800, 600))
    ImageDraw.Draw(mask).line((100, 101, 700, 101), fill=255)
    large, sent = gradient(800, 600), mask
    if mode == "RGBA":
        sent = large.convert("RGBA")
        sent.putalpha(mask)
    spec = web_ui(
        init_images=[base64.b64encode(encoded(large)).decode()],
        mask=base64.b64encode(encoded(sent)).decode(),
        inpaint_full_res=full_res,
        width=128,
        height=96,
        mask_blur_x=3,
        mask_blur_y=3,
    )
    assert isinstance(spec, InpaintSpec)
    assert spec.region.blur == 3
    stored = stored_mask(spec, store)
    assert stored.getbbox() == ((100, 101, 701, 102) if full_res else (16, 16, 113, 17))


def test_parameters_of_a_result_are_read(http: httpx.Client) -> None:
    spec = make_spec(prompt="a (red) h\xe4uschen", negative_prompt="rain")
    result = encode_png(np.zeros((2, 2, 3), np.uint8), {"a": 1}, infotext(spec, 7))
    body = http.post("/sdapi/v1/png-info", json={"image": base64.b64encode(result).decode()}).json()
    assert body["info"] == infotext(spec, 7)
    assert body["items"] == {"img2img": '{"a": 1}', "parameters": body["info"]}
    assert body["parameters"]["Negative prompt"] == "rain"
    assert body["parameters"]["Seed"] == "7"
    assert http.post("/sdapi/v1/png-info", json={"image": TEXT}).json()["info"] == ""
    assert_problem(http.post("/sdapi/v1/png-info", json={"image": "aGVsbG8="}), 415)


def test_loras_are_listed(http: httpx.Client) -> None:
    assert [lora["name"] for lora in http.get("/sdapi/v1/loras").json()] == ["ink", "line"]


def test_endpoints_that_are_not_supported_name_those_that_are(http: httpx.Client) -> None:
    assert "/sdapi/v1/img2img" in assert_problem(http.post("/sdapi/v1/txt2img", json={}), 404)["detail"]
    assert "described in words" in assert_problem(http.post("/sdapi/v1/interrogate", json={}), 404)["detail"]
    assert "/sdapi/v1/png-info" in assert_problem(http.post("/sdapi/v1/a/b", json={}), 404)["detail"]
    assert "/sdapi/v1/samplers" in assert_problem(http.get("/sdapi/v1/skip"), 404)["detail"]
    assert "/controlnet/detect" in assert_problem(http.post("/controlnet/x", json={}), 404)["detail"]


# Payloads of the tests of the API in the repository of the web UI, apart from those of text-to-image.
SMALL = base64.b64encode(encoded(gradient(64, 64))).decode()
SIMPLE = {
    **{"batch_size": 1, "cfg_scale": 7, "denoising_strength": 0.75, "eta": 0, "height": 64, "width": 64, "mask": None},
    **{"include_init_images": False, "init_images": [SMALL], "inpaint_full_res": False, "inpaint_full_res_padding": 0},
    **{"inpainting_fill": 0, "inpainting_mask_invert": False, "mask_blur": 4, "n_iter": 1, "negative_prompt": ""},
    **{"override_settings": {}, "prompt": "example prompt", "resize_mode": 0, "restore_faces": False, "s_churn": 0},
    **{"s_noise": 1, "s_tmax": 0, "s_tmin": 0, "sampler_index": "Euler a", "seed": -1, "seed_resize_from_h": -1},
    **{"seed_resize_from_w": -1, "steps": 3, "styles": [], "subseed": -1, "subseed_strength": 0, "tiling": False},
}
HALF_MASK = Image.new("L", (64, 64))
HALF_MASK.paste(255, (0, 0, 32, 64))
MASK = base64.b64encode(encoded(HALF_MASK)).decode()
EXTRAS = {
    **{"resize_mode": 0, "show_extras_results": True, "gfpgan_visibility": 0, "codeformer_visibility": 0},
    **{"codeformer_weight": 0, "upscaling_resize": 2, "upscaling_resize_w": 128, "upscaling_resize_h": 128},
    **{"upscaling_crop": True, "upscaler_1": "Lanczos", "upscaler_2": "None", "extras_upscaler_2_visibility": 0},
}


@pytest.mark.parametrize(
    ("fields", "task"),
    [
        ({}, Task.IMG2IMG),
        ({"mask": MASK}, Task.INPAINT),
        ({"mask": MASK, "inpainting_mask_invert": True}, Task.INPAINT),
        ({"script_name": "sd upscale", "script_args": ["", 8, "Lanczos", 2.0]}, Task.UPSCALE),
    ],
    ids=["simple", "masked", "inverted", "upscale"],
)
def test_requests_of_the_web_uis_own_tests_are_served(
    web_ui: Callable[..., JobSpec], fields: dict[str, Any], task: Task
) -> None:
    assert web_ui(**SIMPLE | fields).task is task


@pytest.mark.parametrize("fields", [EXTRAS, {}, {"model": "clip"}], ids=["upscale", "png_info", "interrogate"])
def test_extras_of_the_web_uis_own_tests_are_served(http: httpx.Client, fields: dict[str, Any]) -> None:
    response = http.post("/sdapi/v1/extra-single-image", json={**fields, "image": SMALL})
    side = 128 if fields is EXTRAS else 64
    assert opened(response.json()["image"]).size == (side, side)


def test_options_are_written_and_read_back(http: httpx.Client) -> None:
    before = http.get("/sdapi/v1/options").json()["send_seed"]
    assert http.post("/sdapi/v1/options", json={"send_seed": not before}).status_code == 200
    assert http.get("/sdapi/v1/options").json()["send_seed"] == (not before)
    assert http.post("/sdapi/v1/options", json={"send_seed": before}).status_code == 200
    for options in ({"sd_model_checkpoint": "none"}, {"send_seed": 1}, {"sd_vae": "x"}, {"unknown": True}):
        assert_problem(http.post("/sdapi/v1/options", json=options), 422)


def test_model_of_the_options_is_that_of_requests(
    web_ui: Callable[..., JobSpec], http: httpx.Client, redis: Redis
) -> None:
    ModelRegistry(redis).register("test-worker", [ABLE, DDIM_ONLY], ttl_s=60)
    assert web_ui().model == "demo"
    assert http.post("/sdapi/v1/options", json={"sd_model_checkpoint": "ddim-only"}).status_code == 200
    assert http.get("/sdapi/v1/options").json()["sd_model_checkpoint"] == "ddim-only"
    assert web_ui(sampler_name="DDIM").model == "ddim-only"
    assert http.get("/sdapi/v1/loras").json() == []
    assert web_ui(override_settings={"sd_model_checkpoint": "demo"}).model == "demo"
    http.post("/sdapi/v1/options", json={"sd_model_checkpoint": "demo"})


@pytest.mark.parametrize(
    "name",
    [
        "cmd-flags",
        "samplers",
        "upscalers",
        "sd-models",
        "hypernetworks",
        "face-restorers",
        "realesrgan-models",
        "prompt-styles",
        "embeddings",
        "schedulers",
        "sd-vae",
        "memory",
        "latent-upscale-modes",
        "script-info",
        "extensions",
        "scripts",
        "loras",
        "progress",
    ],
)
def test_lists_are_served(http: httpx.Client, name: str) -> None:
    assert http.get(f"/sdapi/v1/{name}").status_code == 200


def test_lists_have_what_the_model_has(http: httpx.Client) -> None:
    assert [upscaler["name"] for upscaler in http.get("/sdapi/v1/upscalers").json()] == [
        *("None", "Lanczos", "Nearest"),
        *("demo x2", "demo x4"),
    ]
    assert http.get("/sdapi/v1/embeddings").json()["loaded"].keys() == {"style"}
    assert http.get("/sdapi/v1/scripts").json()["img2img"] == ["sd upscale", "controlnet"]
    assert {"Karras", "SGM Uniform"} <= {schedule["label"] for schedule in http.get("/sdapi/v1/schedulers").json()}
    assert http.get("/controlnet/model_list").json() == {"model_list": ["canny", "depth"]}
    assert http.get("/controlnet/module_list").json()["module_list"] == ["none", "canny", "softedge"]
    assert http.get("/controlnet/version").json()["version"] >= 2
    types = http.get("/controlnet/control_types").json()["control_types"]
    assert (types["canny"]["default_option"], types["depth"]["default_model"]) == ("canny", "depth")


# Payloads of clients, rebuilt from their sources: openOutpaint, the plugin Stable Gimpfusion, npm stable-diffusion-api.
OPEN_OUTPAINT = {
    **{"prompt": "a house", "negative_prompt": "people", "seed": "-1", "cfg_scale": 7, "sampler_index": "DDIM"},
    **{"steps": 30, "denoising_strength": 0.8, "mask_blur": 0, "batch_size": 2, "width": 64, "height": 64, "n_iter": 1},
    **{
        "mask": MASK,
        "init_images": [f"data:image/png;base64,{SMALL}"],
        "inpaint_full_res": False,
        "inpainting_fill": 2,
    },
    **{"outpainting_fill": 2, "enable_hr": False, "restore_faces": False, "hr_scale": 2.0, "hr_upscaler": "None"},
    **{"hr_second_pass_steps": 0, "hr_resize_x": 0, "hr_resize_y": 0, "hr_square_aspect": False, "styles": []},
}
GIMP = {
    **{"resize_mode": 2, "init_images": [SMALL], "prompt": "a house", "negative_prompt": "", "denoising_strength": 0.8},
    **{"steps": 50, "cfg_scale": 7.5, "width": 64, "height": 64, "sampler_index": "DPM++ SDE Karras", "batch_size": 1},
    **{"seed": -1, "mask": MASK, "inpaint_full_res": True, "inpaint_full_res_padding": 10, "inpainting_mask_invert": 0},
}
GIMP_UNIT = {
    **{"input_image": SMALL, "mask": "", "module": "canny", "model": "canny", "weight": 1.0, "processor_res": 64},
    **{"resize_mode": "Scale to Fit (Inner Fit)", "lowvram": False, "threshold_a": 64, "threshold_b": 64},
    **{"guidance": 1.0, "guidance_start": 0.0, "guidance_end": 1.0, "guessmode": True},
}
NPM = {
    **{"init_images": [SMALL], "resize_mode": 0, "denoising_strength": 0.75, "image_cfg_scale": 1.5, "mask": None},
    **{"mask_blur": 4, "inpainting_fill": 0, "inpaint_full_res": True, "inpaint_full_res_padding": 0, "prompt": "x"},
    **{"inpainting_mask_invert": 0, "initial_noise_multiplier": 1, "styles": [], "seed": -1, "subseed": -1},
    **{"subseed_strength": 0, "seed_resize_from_h": 0, "seed_resize_from_w": 0, "batch_size": 1, "n_iter": 1},
    **{"steps": 20, "cfg_scale": 7.0, "width": 64, "height": 64, "restore_faces": False, "tiling": False, "eta": 1.0},
    **{"do_not_save_samples": False, "do_not_save_grid": False, "negative_prompt": "", "s_churn": 0, "s_tmax": 0},
    **{"s_tmin": 0, "s_noise": 1, "override_settings": {}, "override_settings_restore_afterwards": True},
    **{"script_args": [], "include_init_images": False, "script_name": None, "send_images": True, "save_images": False},
    **{"alwayson_scripts": {"ControlNet": {"args": []}}, "sampler_name": "Euler a", "use_deprecated_controlnet": False},
}


@pytest.mark.parametrize(
    ("body", "task", "scheduler"),
    [
        (OPEN_OUTPAINT, Task.INPAINT, ("ddim", None)),
        (GIMP, Task.INPAINT, ("dpmpp_sde", "karras")),
        (NPM, Task.IMG2IMG, ("euler_a", None)),
    ],
    ids=["openOutpaint", "gimp", "npm"],
)
def test_requests_of_clients_are_served(
    web_ui: Callable[..., JobSpec], body: dict[str, Any], task: Task, scheduler: tuple[str, str | None]
) -> None:
    spec = web_ui(**body)
    assert (spec.task, spec.scheduler, spec.sigmas) == (task, *scheduler)
    if isinstance(spec, InpaintSpec):
        assert spec.region.content == ("noise" if body is OPEN_OUTPAINT else "original")


def test_units_of_clients_are_served(web_ui: Callable[..., JobSpec], http: httpx.Client) -> None:
    body = {name: value for name, value in GIMP.items() if name != "mask"} | {"controlnet_units": [GIMP_UNIT]}
    response = http.post("/controlnet/img2img", json=body)
    assert response.status_code == 200
    unit = {"module": "none", "model": "control_v11f1p_sd15_depth [cfd03158]", "image": {"image": SMALL, "mask": None}}
    more = {"weight": 0.5, "guidance_start": 0.1, "guidance_end": 0.7, "pixel_perfect": True, "control_mode": 0}
    spec = web_ui(alwayson_scripts={"controlnet": {"args": [{**unit, **more}, {"model": "canny", "module": "canny"}]}})
    [depth, canny] = spec.control_maps
    assert (depth.type, depth.preprocess, depth.scale, depth.start, depth.end) == ("depth", False, 0.5, 0.1, 0.7)
    assert (canny.type, canny.preprocess, canny.image) == ("canny", True, None)
    assert not spec.guess_mode
    stronger = {"model": "canny", "module": "canny", "control_mode": "ControlNet is more important"}
    assert web_ui(alwayson_scripts={"controlnet": {"args": [stronger]}}).guess_mode
    prompt = {"module": "ip-adapter_clip_sd15", "model": "ip-adapter_sd15 [6a3f6166]", "image": SMALL, "weight": 0.4}
    assert web_ui(alwayson_scripts={"ControlNet": {"args": [prompt]}}).image_prompts[0].scale == 0.4


def test_adetailer_is_the_detail_pass(web_ui: Callable[..., JobSpec]) -> None:
    hand = {"ad_model": "hand_yolov8n.pt", "ad_prompt": "(a hand:1.2)", "ad_use_steps": True, "ad_steps": 12}
    world = {"ad_model": "yolov8x-worldv2.pt", "ad_model_classes": "cat,dog", "ad_denoising_strength": 0.6}
    kept = {"ad_mask_k": 2, "ad_mask_filter_method": "Confidence", "ad_controlnet_model": "None", "is_api": True}
    off = [{"ad_model": "None"}, {"ad_model": "face_yolov8n.pt", "ad_tab_enable": False}, {}]
    args = [True, False, {"ad_model": "face_yolov8n.pt", **kept}, hand, world, *off]
    spec = web_ui(prompt="people", alwayson_scripts={"ADetailer": {"args": args}})
    assert [entry.detect for entry in spec.refine] == ["face", "hand", "cat,dog"]
    face, hand_entry, cats = spec.refine
    assert (face.strength, face.padding, face.blur, face.grow, face.threshold, face.max) == (0.4, 32, 4, 4, 0.3, 2)
    assert (face.prompt, hand_entry.prompt, hand_entry.num_inference_steps) == (None, "(a hand:1.2)", 12)
    assert spec.prompt_weighting
    assert (cats.strength, cats.max) == (0.6, 16)
    assert web_ui(alwayson_scripts={"ADetailer": {"args": [False, False, hand]}}).refine == ()


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ([True, True, {"ad_model": "face.pt"}], "args.1"),
        ([{"ad_model": "my_detector.pt"}], "args.0.ad_model"),
        ([{"ad_model": "face.pt", "ad_use_sampler": True}], "args.0.ad_use_sampler"),
        ([{"ad_model": "face.pt", "ad_mask_k": 1}], "args.0.ad_mask_filter_method"),
        ([{"ad_model": "face.pt", "ad_prompt": "a[SEP]b"}], "args.0.ad_prompt"),
        ([{"ad_model": "face.pt", "ad_confidence": 2}], "args.0.ad_confidence"),
        ([3], "args.0"),
        ([{"ad_model": "face.pt", "ad_mask_blur": 4000}], ""),
    ],
)
def test_adetailer_arguments_that_cannot_be_honoured_are_refused(
    http: httpx.Client, arguments: list[Any], field: str
) -> None:
    body = {"init_images": [TEXT], "alwayson_scripts": {"ADetailer": {"args": arguments}}}
    problem = assert_problem(http.post("/sdapi/v1/img2img", json=body), 422, "invalid_parameter")
    assert problem["errors"][0]["field"].startswith(f"alwayson_scripts.ADetailer.{field}".rstrip(".")) or not field


@pytest.mark.parametrize(
    ("unit", "field"),
    [
        ({"control_mode": "My prompt is more important"}, "control_mode"),
        ({"control_mode": 1}, "control_mode"),
        ({"mask": SMALL}, "mask"),
        ({"module": "reference_only"}, "module"),
        ({"module": "depth_midas"}, "module"),
        ({"model": "control_v11p_sd15_mlsd [aca30ff0]"}, "module"),
        ({"threshold_a": 50}, "threshold_a"),
        ({"resize_mode": "Bigger"}, "resize_mode"),
        ({"guidance_start": 0.8, "guidance_end": 0.2}, "guidance_end"),
        ({"module": "ip-adapter", "guidance_end": 0.5}, "guidance_start"),
    ],
)
def test_units_that_cannot_be_served_name_the_field(http: httpx.Client, unit: dict[str, Any], field: str) -> None:
    args = [{"module": "canny", "model": "canny", "image": SMALL, **unit}]
    body = {"init_images": [TEXT], "alwayson_scripts": {"controlnet": {"args": args}}}
    [error] = assert_problem(http.post("/sdapi/v1/img2img", json=body), 422)["errors"]
    assert error["field"] == f"controlnet.0.{field}"


def test_maps_are_detected(http: httpx.Client, fake_worker: None) -> None:
    body = {"controlnet_module": "canny", "controlnet_input_images": [SMALL, TEXT], "controlnet_processor_res": 512}
    assert len(http.post("/controlnet/detect", json=body).json()["images"]) == 2
    refused = http.post("/controlnet/detect", json={**body, "controlnet_module": "depth"})
    [error] = assert_problem(refused, 422)["errors"]
    assert "softedge" in error["message"]


def test_prompt_of_an_editing_model_is_the_instruction(web_ui: Callable[..., JobSpec], redis: Redis) -> None:
    editing = ABLE.model_copy(update={"tasks": (Task.EDIT,), "image_guidance": True, "parameters": {}})
    ModelRegistry(redis).register("test-worker", [editing], ttl_s=60)
    spec = web_ui(prompt="make it night", image_cfg_scale=2, denoising_strength=0.9)
    assert (spec.task, spec.prompt, spec.image_guidance_scale) == (Task.EDIT, "make it night", 2)


def test_clip_skip_and_eta_act(web_ui: Callable[..., JobSpec]) -> None:
    spec = web_ui(clip_skip=2, eta=0.5, sampler_name="DDIM")
    assert (spec.clip_skip, spec.eta) == (1, 0.5)
    assert web_ui(override_settings={"CLIP_stop_at_last_layers": 3}).clip_skip == 2
    assert web_ui(prompt="a BREAK b").prompt_weighting


def test_variation_and_exact_steps(web_ui: Callable[..., JobSpec]) -> None:
    spec = web_ui(seed=5, subseed=8, subseed_strength=0.2, override_settings={"img2img_fix_steps": True})
    assert (spec.seed, spec.subseed, spec.subseed_strength) == (5, 8, 0.2)
    assert (spec.steps_run, spec.schedule_steps) == (50, 67)
    assert web_ui(tiling=True).seamless_tiling
    # Without a strength the seed asks for nothing.
    assert web_ui(subseed=8).subseed is None
    assert web_ui(override_settings={"img2img_fix_steps": True}, denoising_strength=0).steps_run == 0


def test_always_on_scripts_are_applied(web_ui: Callable[..., JobSpec]) -> None:
    mask = base64.b64encode(encoded(Image.new("L", (160, 120), 128))).decode()
    titles = {"freeu": "FreeU Integrated (SD 1.x, SD 2.x, SDXL)", "pag": "PerturbedAttentionGuidance Integrated"}
    spec = web_ui(
        mask=mask,
        alwayson_scripts={
            "Soft Inpainting": {"args": [True, 1, 0.5, 4, 0, 0.5, 2]},
            titles["freeu"]: {"args": [True, 1.3, 1.4, 0.9, 0.2]},
            titles["pag"]: {"args": [{"enabled": True, "scale": 2.5}]},
        },
    )
    assert (spec.region.is_soft, spec.pag_scale) == (True, 2.5)
    assert (spec.freeu.b1, spec.freeu.b2, spec.freeu.s1, spec.freeu.s2) == (1.3, 1.4, 0.9, 0.2)
    off = {"soft inpainting": {"args": [False]}, titles["freeu"]: {"args": [False, 1.3]}, titles["pag"]: {"args": []}}
    spec = web_ui(mask=mask, alwayson_scripts=off)
    assert (spec.region.is_soft, spec.freeu, spec.pag_scale) == (False, None, 0)
    # Without a mask soft inpainting does nothing, as in the web UI.
    assert web_ui(alwayson_scripts={"soft inpainting": {"args": [{"Soft inpainting": True}]}}).task == "img2img"


def test_weights_have_the_arithmetic_of_the_web_ui(web_ui: Callable[..., JobSpec]) -> None:
    spec = web_ui(prompt="a (red:1.2) house")
    assert (spec.prompt_weighting, spec.weighting_method) == (True, "a1111")


def test_resize_and_fill_repeats_the_edges(web_ui: Callable[..., JobSpec], store: ObjectStore) -> None:
    spec = web_ui(init_images=[SMALL], width=128, height=64, resize_mode=2)
    sent = np.asarray(Image.open(BytesIO(store.get(input_key(spec.image)) or b"")))
    assert sent.shape == (64, 128, 3)
    original = np.asarray(gradient(64, 64))
    assert (sent[:, 32:96] == original).all()
    assert (sent[:, :32] == original[:, :1]).all()
    assert (sent[:, 96:] == original[:, -1:]).all()


def test_extras_enlarge_to_a_size(http: httpx.Client, fake_worker: None) -> None:
    def enlarge(**fields: Any) -> tuple[int, int]:
        body = {"image": SMALL, **fields}
        return opened(http.post("/sdapi/v1/extra-single-image", json=body).json()["image"]).size

    assert enlarge(upscaler_1="Nearest", upscaling_resize=1.5) == (96, 96)
    size = {"upscaling_resize_w": 100, "upscaling_resize_h": 50}
    assert enlarge(upscaler_1="Lanczos", resize_mode=1, **size) == (100, 50)
    assert enlarge(upscaler_1="Lanczos", resize_mode=1, upscaling_crop=False, **size) == (100, 100)
    assert enlarge(upscaler_1="demo x2", upscaling_resize=1.5) == (96, 96)
    batch = {"imageList": [{"data": SMALL, "name": "a.png"}] * 2, "upscaler_1": "Lanczos", "upscaling_resize": 1}
    images = http.post("/sdapi/v1/extra-batch-images", json=batch).json()["images"]
    assert [opened(image).size for image in images] == [(64, 64)] * 2


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"upscaler_1": "R-ESRGAN 4x+"}, "upscaler_1"),
        ({"upscaler_1": "demo x2", "upscaling_resize": 3}, "upscaling_resize"),
        ({"gfpgan_visibility": 1}, "gfpgan_visibility"),
        ({"extras_upscaler_2_visibility": 0.5, "upscaler_2": "Nearest"}, "extras_upscaler_2_visibility"),
        (
            {"upscaler_1": "Lanczos", "resize_mode": 1, "upscaling_resize_w": 60000, "upscaling_crop": False},
            "upscaling_resize",
        ),
    ],
)
def test_extras_that_cannot_be_served_name_the_field(http: httpx.Client, fields: dict[str, Any], field: str) -> None:
    response = http.post("/sdapi/v1/extra-single-image", json={"image": SMALL, **fields})
    [error] = assert_problem(response, 422)["errors"]
    assert error["field"] == field


def opened(image: str) -> Image.Image:
    """Return an image in base64."""
    return Image.open(BytesIO(base64.b64decode(image)))
