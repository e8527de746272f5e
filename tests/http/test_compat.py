"""The compatible APIs over real HTTP, with requests as their clients send them and with any others."""

import base64
import json
from collections.abc import Callable
from io import BytesIO
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from redis import Redis

from img2img.app.compat.a1111.request import WebUIRequest
from img2img.app.compat.openai.requests import Edit
from img2img.blobs import ObjectStore
from img2img.domain.blob_keys import input_key
from img2img.domain.parameters import Task
from img2img.domain.spec import EditSpec, InpaintSpec, JobSpec
from img2img.redis.job_queue import JobQueue
from img2img.redis.model_registry import ModelRegistry
from tests.support.images import encoded, gradient
from tests.support.model_cards import CARD
from tests.support.problems import assert_problem

IMAGE = encoded(gradient(160, 120))
TEXT = base64.b64encode(IMAGE).decode()
ABLE = CARD.model_copy(
    update={"tasks": tuple(Task), "loras": ("ink", "line"), "prompt_weighting": True, "aliases": ("gpt-image-1",)}
)


@pytest.fixture
def http(http: httpx.Client, redis: Redis) -> httpx.Client:
    """A client of a service with a model that can do everything."""
    ModelRegistry(redis).register("test-worker", [ABLE], ttl_s=60)
    return http


@pytest.fixture
def openai(http: httpx.Client, queue: JobQueue, fake_worker: None) -> Callable[..., JobSpec]:
    """Edit an image by OpenAI's API and return the spec of its job."""

    def post(**arguments: Any) -> JobSpec:
        response = http.post("/v1/images/edits", **arguments)
        assert response.status_code == 200, response.text
        record = queue.job_store.get(http.get("/jobs?limit=1").json()["jobs"][0]["id"])
        assert record is not None
        return record.spec

    return post


class TestOpenAI:
    @pytest.mark.parametrize(
        "fields",
        [
            *[{"quality": quality} for quality in ("auto", "low", "medium", "high", "standard", "hd", "")],
            {"input_fidelity": "high"},
            {"input_fidelity": "low", "moderation": "low", "background": "opaque"},
            {"size": ""},
            {"size": "auto", "n": "", "model": "", "user": "ada", "response_format": "", "output_compression": ""},
            {"seed": "", "strength": "", "loras": "", "controls": ""},
            {"output_format": "png", "partial_images": "0", "stream": "false"},
        ],
    )
    def test_options_that_ask_for_nothing_special_are_accepted(
        self, openai: Callable[..., JobSpec], fields: dict[str, str]
    ) -> None:
        spec = openai(data={"prompt": "x", **fields}, files={"image": ("i.png", IMAGE)})
        assert (spec.width, spec.height, spec.num_images) == (144, 112, 1)

    @pytest.mark.parametrize(
        ("name", "fields"),
        [
            # Open WebUI's edit without a model, and with all of its options.
            ("image", {"model": "", "prompt": "x", "n": "1", "size": "auto", "response_format": "b64_json"}),
            ("image", {"model": "", "prompt": "x", "n": "1", "size": "128x96", "background": "transparent"}),
            ("image[]", {"model": "demo", "prompt": "x", "n": "2", "response_format": "b64_json"}),
            # LibreChat's tool, which names one model.
            ("image[]", {"model": "gpt-image-1", "prompt": "x", "quality": "high", "size": "auto"}),
            ("image[]", {"model": "gpt-image-1", "prompt": "x", "quality": "auto", "size": "128x96", "n": "1"}),
        ],
    )
    def test_requests_of_programs_are_served(
        self, openai: Callable[..., JobSpec], name: str, fields: dict[str, str]
    ) -> None:
        spec = openai(data=fields, files=[(name, ("image.png", IMAGE, "image/png"))])
        assert (spec.model, spec.num_images) == ("demo", int(fields.get("n", 1)))

    def test_second_image_is_refused_with_a_sentence(self, http: httpx.Client) -> None:
        files = [("image[]", ("a.png", IMAGE, "image/png"))] * 2
        response = http.post("/v1/images/edits", data={"prompt": "x"}, files=files)
        error = response.json()["error"]
        assert (response.status_code, error["param"]) == (400, "image[]")
        assert error["message"] == "image[]: The model demo takes one image, not 2"

    def test_editor_takes_several_images(
        self, http: httpx.Client, openai: Callable[..., JobSpec], redis: Redis
    ) -> None:
        """With one size, and in the order in which they were sent."""
        ModelRegistry(redis).register("test-worker", [ABLE.model_copy(update={"max_images": 3})], ttl_s=60)
        transparent = encoded(Image.new("RGBA", (160, 120)))
        images = [transparent, encoded(gradient(64, 96)), encoded(gradient(96, 64))]
        files = [("image[]", (f"{index}.png", image, "image/png")) for index, image in enumerate(images)]
        spec = openai(data={"prompt": "x", "seed": "1"}, files=files)
        assert isinstance(spec, EditSpec)
        assert (spec.instruction, spec.width, spec.height) == ("x", 144, 112)
        assert [(other.width, other.height) for other in spec.references] == [(64, 96), (96, 64)]
        urls = [{"image_url": base64.b64encode(image).decode()} for image in images]
        assert openai(json={"prompt": "x", "seed": 1, "images": urls}) == spec
        for name, message in (("mask", "cannot be combined"), ("image[]", "at most 3 images, not 4")):
            refused = http.post("/v1/images/edits", data={"prompt": "x"}, files=[*files, (name, ("m.png", IMAGE))])
            assert refused.json()["error"]["param"] == name
            assert message in refused.json()["error"]["message"]

    @pytest.mark.parametrize(
        ("fields", "applied", "not_applied"),
        [
            ({}, {}, {}),
            ({"quality": "low"}, {"num_inference_steps": 15}, {}),
            ({"quality": "high"}, {"num_inference_steps": 45}, {}),
            ({"quality": "hd", "num_inference_steps": 7}, {"num_inference_steps": 7}, {"quality"}),
            ({"quality": "medium"}, {"num_inference_steps": 30}, {}),
            ({"input_fidelity": "high"}, {"image_guidance_scale": 2.0}, {}),
            ({"input_fidelity": "high", "strength": 0.9}, {"strength": 0.9}, {"input_fidelity"}),
            ({"input_fidelity": "high", "prompt": "", "seed": 1}, {"strength": 0.6}, {}),
            ({"moderation": "low", "background": "transparent"}, {}, {"moderation", "background"}),
            ({"output_compression": 50}, {}, {"output_compression"}),
            ({"output_compression": 0, "output_format": "webp"}, {}, {}),
        ],
    )
    def test_hints_are_applied_or_reported(
        self,
        http: httpx.Client,
        queue: JobQueue,
        fake_worker: None,
        fields: dict[str, Any],
        applied: dict[str, Any],
        not_applied: set[str],
    ) -> None:
        response = http.post("/v1/images/edits", json={"images": TEXT, "prompt": "x", **fields}).json()
        assert response.get("not_applied", {}).keys() == set(not_applied)
        assert (response["background"], response["size"]) == ("opaque", "144x112")
        assert response["quality"] == ("auto" if "quality" in not_applied else fields.get("quality", "auto"))
        record = queue.job_store.get(http.get("/jobs?limit=1").json()["jobs"][0]["id"])
        assert record is not None
        assert {name: getattr(record.spec, name) for name in applied} == applied

    @pytest.mark.parametrize(
        "images",
        [
            {"images": [{"image_url": f"data:image/png;base64,{TEXT}"}]},
            {"images": [{"image_url": {"url": f"data:image/png;base64,{TEXT}"}}]},
            {"image": f"data:image/png;base64,{TEXT}"},
            {"image": [TEXT], "mask": None},
        ],
    )
    def test_json_is_accepted(self, openai: Callable[..., JobSpec], images: dict[str, Any]) -> None:
        spec = openai(json={"prompt": "x", "strength": 0.5, "seed": 3, "n": 2, "size": None, "mask": None, **images})
        assert (spec.strength if spec.task is Task.IMG2IMG else 0.5, spec.seed, spec.num_images) == (0.5, 3, 2)

    def test_json_mask_is_transparent_where_the_image_is_edited(
        self, openai: Callable[..., JobSpec], store: ObjectStore
    ) -> None:
        holed = gradient(160, 120).convert("RGBA")
        holed.paste((0, 0, 0, 0), (40, 30, 80, 60))
        url = "data:image/png;base64," + base64.b64encode(encoded(holed)).decode()
        spec = openai(json={"prompt": "x", "images": [{"image_url": TEXT}], "mask": {"image_url": url}})
        assert isinstance(spec, InpaintSpec)
        assert stored_mask(spec, store).getbbox() == (40, 30, 80, 60)

    @pytest.mark.parametrize(
        ("body", "param", "message"),
        [
            ({"prompt": "x"}, "image", "Field required"),
            ({"images": [{"image_url": TEXT}] * 2, "prompt": "x"}, "images", "takes one image"),
            ({"images": [{"file_id": "file-1"}], "prompt": "x"}, "images", "image_url"),
            ({"images": [{"image_url": "https://example.com/a.png"}], "prompt": "x"}, "images", "names are not read"),
            ({"images": [7], "prompt": "x"}, "images", "base64"),
            ({"images": TEXT, "prompt": "x", "size": "128x128", "width": 128}, "size", "cannot be combined"),
            ({"images": TEXT, "prompt": "x", "width": 100}, "width", "the nearest is 96"),
            ({"images": TEXT}, "prompt", "Field required"),
            ({"images": TEXT, "prompt": "x", "background": "pink"}, "background", "auto"),
            ({"images": TEXT, "prompt": "x", "size": "100x100"}, "size", "the nearest is 96"),
            ({"images": TEXT, "prompt": "x", "n": 9}, "n", "less than or equal to 8"),
            ({"images": "aGVsbG8=", "prompt": "x"}, "images", "not a PNG, JPEG or WebP"),
            ([], "body", "object"),
        ],
    )
    def test_invalid_json_is_refused(self, http: httpx.Client, body: Any, param: str, message: str) -> None:
        response = http.post("/v1/images/edits", json=body)
        assert response.status_code == 400
        assert response.json()["error"]["param"] == param
        assert message in response.json()["error"]["message"]

    def test_models_are_found_by_name(self, http: httpx.Client) -> None:
        listed = http.get("/v1/models").json()["data"]
        assert http.get("/v1/models/demo").json() == listed[0]
        missing = http.get("/v1/models/stabilityai/nothing")
        assert (missing.status_code, missing.json()["error"]["code"]) == (404, "not_found")
        assert "demo" in missing.json()["error"]["message"]

    def test_endpoints_that_are_not_supported_name_those_that_are(self, http: httpx.Client) -> None:
        for path in ("images/generations", "chat/completions"):
            response = http.post(f"/v1/{path}", json={})
            assert response.status_code == 404
            assert "/v1/images/edits" in response.json()["error"]["message"]


def stored_mask(spec: InpaintSpec, store: ObjectStore) -> Image.Image:
    assert spec.region.mask
    blob = store.get(input_key(spec.region.mask))
    assert blob is not None
    return Image.open(BytesIO(blob))


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just(TEXT)
VALUES = st.recursive(
    SCALARS, lambda each: st.lists(each, max_size=3) | st.dictionaries(st.text(max_size=5), each, max_size=3)
)
SCRIPTS = st.dictionaries(st.text(max_size=5), VALUES | st.fixed_dictionaries({"args": VALUES}), max_size=2)
FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


def some_of(fields: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Return bodies with any values of a few fields."""
    names = st.lists(st.sampled_from(sorted(fields)), min_size=1, max_size=4, unique=True)
    return names.flatmap(lambda chosen: st.fixed_dictionaries({name: fields[name] for name in chosen}))


@FUZZ
@given(some_of(dict.fromkeys(WebUIRequest.model_fields, VALUES) | {"alwayson_scripts": SCRIPTS}))
def test_any_values_for_the_web_ui_are_refused_or_accepted(http: httpx.Client, body: dict[str, Any]) -> None:
    # The width is refused at last, so that no request waits for a job.
    response = post_json(http, "/sdapi/v1/img2img", {"init_images": [TEXT], **body} | {"width": 100})
    assert_problem(response, response.status_code)
    assert response.status_code in (400, 415, 422), response.text


OPENAI_FIELDS = (*Edit.model_fields, "images", "image", "mask", "seed", "strength", "controls", "webhook")


@FUZZ
@given(some_of(dict.fromkeys(OPENAI_FIELDS, VALUES)))
def test_any_values_for_openai_are_refused_or_accepted(http: httpx.Client, body: dict[str, Any]) -> None:
    sent = {"images": TEXT, "prompt": "x", **body} | {"width": 100}
    response = post_json(http, "/v1/images/edits", sent)
    assert response.status_code in (400, 415, 422), response.text
    assert response.json()["error"]["message"]


@FUZZ
@given(VALUES)
def test_any_options_are_refused_or_accepted(http: httpx.Client, body: Any) -> None:
    for path in ("/sdapi/v1/options", "/sdapi/v1/png-info", "/sdapi/v1/img2img", "/v1/images/edits"):
        assert post_json(http, path, body).status_code in (200, 400, 415, 422)


def post_json(http: httpx.Client, path: str, body: Any) -> httpx.Response:
    """Send JSON with what only JavaScript and Python can write: NaN."""
    content = json.dumps(body).encode()
    return http.post(path, content=content, headers={"content-type": "application/json"})
