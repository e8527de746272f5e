"""Controls and control maps over HTTP: what is resolved, what is stored for the worker, and what is refused."""

import base64
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
from img2img.domain.parameters import Task
from img2img.domain.spec import JobSpec
from img2img.redis.job_queue import JobQueue
from img2img.redis.model_registry import ModelRegistry
from tests.support.model_cards import CARD

STEERED = CARD.model_copy(
    update={
        "name": "steered",
        "tasks": (Task.IMG2IMG, Task.INPAINT, Task.CONTROL),
        "controls": (ControlType.CANNY, ControlType.DEPTH),
        "preprocessors": (ControlType.CANNY, ControlType.SCRIBBLE),
    }
)


def picture(width: int, height: int, colour: str = "red") -> str:
    buffer = BytesIO()
    Image.new("RGB", (width, height), colour).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


@pytest.fixture
def post(http: httpx.Client, redis: Redis) -> Callable[..., httpx.Response]:
    """Posts JSON to the model with ControlNets."""
    ModelRegistry(redis).register("steering-worker", [STEERED], ttl_s=60)
    return lambda path="/img2img", **fields: http.post(path, json={"model": "steered", **fields})


@pytest.fixture
def planned(post: Callable[..., httpx.Response], queue: JobQueue) -> Callable[..., JobSpec]:
    """The spec that a request becomes."""

    def submit(path: str = "/img2img", **fields: Any) -> JobSpec:
        response = post(path, **fields)
        assert response.status_code == 202, response.text
        return queue.job_store.find(response.json()["id"]).spec

    return submit


@pytest.fixture
def size_of(store: ObjectStore) -> Callable[[str | None], tuple[int, int]]:
    """Width and height of a job's input picture."""

    def size(sha256: str | None) -> tuple[int, int]:
        blob = store.get(input_key(sha256 or ""))
        assert blob is not None
        return Image.open(BytesIO(blob)).size

    return size


def test_a_control_is_resolved_and_its_picture_fitted_to_the_job(
    planned: Callable[..., JobSpec], size_of: Callable[[str | None], tuple[int, int]]
) -> None:
    spec = planned(
        image=picture(160, 120),
        width=128,
        height=96,
        controls=[{"type": "canny"}, {"type": "depth", "image": picture(300, 300), "preprocess": False, "end": 0.5}],
    )
    assert spec.task is Task.IMG2IMG
    canny, depth = spec.controls
    assert (canny.type, canny.image, canny.preprocess, canny.scale, canny.start, canny.end) == (
        "canny",
        None,
        True,
        1.0,
        0.0,
        1.0,
    )
    assert (depth.type, depth.preprocess, depth.end) == ("depth", False, 0.5)
    assert size_of(depth.image) == (128, 96)
    assert depth.image in spec.inputs


def test_without_an_image_the_first_control_gives_the_shape(
    planned: Callable[..., JobSpec], size_of: Callable[[str | None], tuple[int, int]]
) -> None:
    spec = planned(prompt="a house", controls=[{"type": "canny", "image": picture(300, 200)}])
    assert (spec.task, spec.inputs) == (Task.CONTROL, (spec.controls[0].image,))
    assert spec.steps_run == spec.num_inference_steps
    assert spec.width > spec.height
    assert size_of(spec.controls[0].image) == (spec.width, spec.height)


def test_where_something_is_painted_anew_maps_lie_on_the_canvas_of_the_result(
    planned: Callable[..., JobSpec], size_of: Callable[[str | None], tuple[int, int]]
) -> None:
    spec = planned(
        image=picture(160, 120),
        outpaint={"left": 40, "bottom": 30},
        controls=[
            {"type": "depth", "preprocess": False, "image": picture(500, 500)},
            {"type": "canny", "image": picture(160, 120, "blue")},  # lies where the picture lies
        ],
    )
    assert spec.region.canvas == (200, 150)
    assert spec.region.image_size == (160, 120)
    assert [size_of(control.image) for control in spec.controls] == [(200, 150), (160, 120)]


@pytest.mark.parametrize(
    ("fields", "field", "says"),
    [
        ({"controls": [{"type": "pose"}]}, "controls.0.type", "input should be one of: canny, depth"),
        ({"controls": [{"type": "depth"}]}, "controls.0.preprocess", "send the map, with `preprocess: false`"),
        ({"controls": [{"type": "canny", "start": 0.6, "end": 0.6}]}, "controls.0", "`start` should be less"),
        ({"controls": [{"type": "canny", "scale": 3}]}, "controls.0.scale", "less than or equal to 2"),
        ({"controls": [{"type": "canny"}] * 5}, "controls", "at most 4"),
        ({"controls": [{"type": "canny"}], "image": None}, "controls.0.image", "has no `image`"),
        (
            {"controls": [{"type": "canny", "image": picture(64, 64)}], "image": None, "strength": 0.5},
            "strength",
            "should be 1 or absent",
        ),
        ({"controls": [{"type": "canny"}], "model": "demo"}, "controls.0.type", "has no ControlNet; leave it out"),
    ],
)
def test_what_a_model_cannot_follow_is_refused(
    post: Callable[..., httpx.Response], fields: dict[str, Any], field: str, says: str
) -> None:
    response = post(**{"image": picture(64, 64), **fields})
    assert response.status_code == 422
    [error] = response.json()["errors"]
    assert error["field"] == field
    assert says in error["message"]


def test_a_control_map_is_a_job_of_the_size_that_an_img2img_would_have(
    planned: Callable[..., JobSpec], size_of: Callable[[str | None], tuple[int, int]]
) -> None:
    spec = planned("/control-maps", image=picture(300, 200), type="scribble")
    assert (spec.task, spec.steps_run, spec.num_images) == (Task.CONTROL_MAP, 0, 1)
    assert [(c.type, c.image, c.preprocess) for c in spec.control_maps] == [("scribble", None, True)]
    as_img2img = planned(image=picture(300, 200))
    assert (spec.width, spec.height, spec.image) == (as_img2img.width, as_img2img.height, as_img2img.image)
    assert size_of(spec.image) == (spec.width, spec.height)
    assert planned("/control-maps", image=picture(300, 200), type="canny", width=64, height=64).width == 64


def test_a_control_map_can_be_asked_for_by_form_and_by_reference(
    http: httpx.Client, post: Callable[..., httpx.Response]
) -> None:
    sent = base64.b64decode(picture(90, 70))
    kept = http.post("/images", files={"image": sent}).json()["sha256"]
    fields = {"type": "canny", "model": "steered"}
    by_file = http.post("/control-maps", files={"image": sent}, data=fields)
    by_reference = http.post("/control-maps", files={"image": (None, kept)}, data=fields)
    assert (by_file.status_code, by_reference.status_code) == (202, 202)
    assert by_file.json()["request"] == by_reference.json()["request"]
    assert by_file.headers["location"] == f"/jobs/{by_file.json()['id']}"


@pytest.mark.parametrize(
    ("fields", "field", "says"),
    [
        ({"type": "pose"}, "type", "can make maps of these types: canny, scribble, tile"),
        ({"type": "shape"}, "type", "Input should be"),
        ({}, "type", "Field required"),
        ({"type": "canny", "strength": 0.5}, "strength", "Unknown field"),
        ({"type": "canny", "width": 7, "height": 64}, "width", "multiple of 8"),
    ],
)
def test_a_control_map_that_cannot_be_made_is_refused(
    post: Callable[..., httpx.Response], fields: dict[str, Any], field: str, says: str
) -> None:
    response = post("/control-maps", image=picture(64, 64), **fields)
    assert response.status_code == 422
    [error] = response.json()["errors"]
    assert error["field"] == field
    assert says in error["message"]
