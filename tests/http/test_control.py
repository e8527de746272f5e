"""Controls and control maps over HTTP: resolved fields, stored images and rejected requests."""

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
from tests.support.images import encoded
from tests.support.model_cards import CARD

WITH_CONTROLNETS = CARD.model_copy(
    update={
        "name": "with-controlnets",
        "tasks": (Task.IMG2IMG, Task.INPAINT, Task.CONTROL),
        "controls": (ControlType.CANNY, ControlType.DEPTH, "qr"),
        "preprocessors": (ControlType.CANNY, ControlType.SCRIBBLE),
    }
)


def image_base64(width: int, height: int, colour: str = "red") -> str:
    buffer = BytesIO()
    image = Image.new("RGB", (width, height), colour)
    image.paste("white", (width // 4, height // 4, width // 2, height // 2))
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


@pytest.fixture
def post(http: httpx.Client, redis: Redis) -> Callable[..., httpx.Response]:
    """Post JSON to the model with ControlNets."""
    ModelRegistry(redis).register("controlnet-worker", [WITH_CONTROLNETS], ttl_s=60)
    return lambda path="/img2img", **fields: http.post(path, json={"model": "with-controlnets", **fields})


@pytest.fixture
def submit_spec(post: Callable[..., httpx.Response], queue: JobQueue) -> Callable[..., JobSpec]:
    """Submit a request and return the spec of its job."""

    def submit(path: str = "/img2img", **fields: Any) -> JobSpec:
        response = post(path, **fields)
        assert response.status_code == 202, response.text
        return queue.job_store.find(response.json()["id"]).spec

    return submit


@pytest.fixture
def size_of(store: ObjectStore) -> Callable[[str | None], tuple[int, int]]:
    """Return width and height of a stored input image."""

    def size(sha256: str | None) -> tuple[int, int]:
        blob = store.get(input_key(sha256 or ""))
        assert blob is not None
        return Image.open(BytesIO(blob)).size

    return size


def test_control_gets_defaults_and_its_image_the_size_of_the_job(
    submit_spec: Callable[..., JobSpec], size_of: Callable[[str | None], tuple[int, int]]
) -> None:
    spec = submit_spec(
        image=image_base64(160, 120),
        width=128,
        height=96,
        controls=[
            {"type": "canny"},
            {"type": "depth", "image": image_base64(300, 300), "preprocess": False, "end": 0.5},
        ],
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


def test_first_control_sets_the_size_without_an_image(
    submit_spec: Callable[..., JobSpec], size_of: Callable[[str | None], tuple[int, int]]
) -> None:
    spec = submit_spec(prompt="a house", controls=[{"type": "canny", "image": image_base64(300, 200)}])
    assert (spec.task, spec.inputs) == (Task.CONTROL, (spec.controls[0].image,))
    assert spec.steps_run == spec.num_inference_steps
    assert spec.width > spec.height
    assert size_of(spec.controls[0].image) == (spec.width, spec.height)


def test_outpainting_fits_control_maps_to_the_canvas(
    submit_spec: Callable[..., JobSpec], size_of: Callable[[str | None], tuple[int, int]]
) -> None:
    spec = submit_spec(
        image=image_base64(160, 120),
        outpaint={"left": 40, "bottom": 30},
        controls=[
            {"type": "depth", "preprocess": False, "image": image_base64(500, 500)},
            # The worker computes the map, from an image of the size of `image`.
            {"type": "canny", "image": image_base64(160, 120, "blue")},
        ],
    )
    assert spec.region.canvas == (200, 150)
    assert spec.region.image_size == (160, 120)
    assert [size_of(control.image) for control in spec.controls] == [(200, 150), (160, 120)]


@pytest.mark.parametrize(
    ("fields", "field", "message"),
    [
        ({"controls": [{"type": "pose"}]}, "controls.0.type", "input should be one of: canny, depth, qr"),
        ({"controls": [{"type": "depth"}]}, "controls.0.preprocess", "send the map, with `preprocess: false`"),
        ({"controls": [{"type": "canny", "start": 0.6, "end": 0.6}]}, "controls.0", "`start` should be less"),
        ({"controls": [{"type": "qr"}]}, "controls.0.preprocess", "cannot make qr maps: send the map, with `preproc"),
        ({"controls": [{"type": "QR code"}]}, "controls.0.type", "1 to 50 small letters"),
        ({"controls": [{"type": "canny", "scale": 3}]}, "controls.0.scale", "less than or equal to 2"),
        ({"controls": [{"type": "canny"}] * 5}, "controls", "at most 4"),
        ({"controls": [{"type": "canny"}], "image": None}, "controls.0.image", "has no `image`"),
        (
            {"controls": [{"type": "canny", "image": image_base64(64, 64)}], "image": None, "strength": 0.5},
            "strength",
            "should be 1 or absent",
        ),
        ({"controls": [{"type": "canny"}], "model": "demo"}, "controls.0.type", "has no ControlNet; leave it out"),
    ],
)
def test_unsupported_controls_are_rejected(
    post: Callable[..., httpx.Response], fields: dict[str, Any], field: str, message: str
) -> None:
    response = post(**{"image": image_base64(64, 64), **fields})
    assert response.status_code == 422
    [error] = response.json()["errors"]
    assert error["field"] == field
    assert message in error["message"]


def test_control_map_has_the_size_of_an_img2img_job(
    submit_spec: Callable[..., JobSpec], size_of: Callable[[str | None], tuple[int, int]]
) -> None:
    spec = submit_spec("/control-maps", image=image_base64(300, 200), type="scribble")
    assert (spec.task, spec.steps_run, spec.num_images) == (Task.CONTROL_MAP, 0, 1)
    assert [(c.type, c.image, c.preprocess) for c in spec.control_maps] == [("scribble", None, True)]
    as_img2img = submit_spec(image=image_base64(300, 200))
    assert (spec.width, spec.height, spec.image) == (as_img2img.width, as_img2img.height, as_img2img.image)
    assert size_of(spec.image) == (spec.width, spec.height)
    assert submit_spec("/control-maps", image=image_base64(300, 200), type="canny", width=64, height=64).width == 64


def test_control_map_accepts_a_form_and_a_reference(http: httpx.Client, post: Callable[..., httpx.Response]) -> None:
    png = base64.b64decode(image_base64(90, 70))
    sha256 = http.post("/images", files={"image": png}).json()["sha256"]
    fields = {"type": "canny", "model": "with-controlnets"}
    by_file = http.post("/control-maps", files={"image": png}, data=fields)
    by_reference = http.post("/control-maps", files={"image": (None, sha256)}, data=fields)
    assert (by_file.status_code, by_reference.status_code) == (202, 202)
    assert by_file.json()["request"] == by_reference.json()["request"]
    assert by_file.headers["location"] == f"/jobs/{by_file.json()['id']}"


@pytest.mark.parametrize(
    ("fields", "field", "message"),
    [
        ({"type": "pose"}, "type", "can make maps of these types: canny, scribble"),
        ({"type": "shape"}, "type", "can make maps of these types: canny, scribble"),
        ({}, "type", "Field required"),
        ({"type": "canny", "strength": 0.5}, "strength", "Unknown field"),
        ({"type": "canny", "width": 7, "height": 64}, "width", "multiple of 8"),
    ],
)
def test_unsupported_control_maps_are_rejected(
    post: Callable[..., httpx.Response], fields: dict[str, Any], field: str, message: str
) -> None:
    response = post("/control-maps", image=image_base64(64, 64), **fields)
    assert response.status_code == 422
    [error] = response.json()["errors"]
    assert error["field"] == field
    assert message in error["message"]


def strokes(colour: str) -> Image.Image:
    """Return lines on transparency."""
    image = Image.new("RGBA", (160, 120), (0, 0, 0, 0))
    image.paste(colour, (40, 20, 44, 100))
    return image


@pytest.mark.parametrize(
    ("image", "preprocess", "message"),
    [
        (Image.new("RGB", (160, 120)), False, "map has one colour"),
        (Image.new("L", (160, 120), 255), False, "map has one colour"),
        (strokes("black"), False, "transparent pixels count as black"),
        (strokes("white"), True, "transparent pixels count as white"),
        (Image.new("RGBA", (160, 120)), True, "transparent pixels count as white"),
    ],
)
def test_control_image_of_one_colour_is_refused(
    post: Callable[..., httpx.Response], image: Image.Image, preprocess: bool, message: str
) -> None:
    control = {"type": "canny", "preprocess": preprocess, "image": base64.b64encode(encoded(image)).decode()}
    for job_image in (image_base64(64, 64), None):
        response = post(image=job_image, controls=[control])
        assert response.status_code == 422
        [error] = response.json()["errors"]
        assert error["field"] == "controls.0.image"
        assert message in error["message"]


def test_control_of_a_type_that_the_model_file_names_takes_any_map(submit_spec: Callable[..., JobSpec]) -> None:
    flat = base64.b64encode(encoded(Image.new("RGB", (160, 120), "grey"))).decode()
    spec = submit_spec(controls=[{"type": "qr", "preprocess": False, "image": flat}], image=image_base64(64, 64))
    assert [(each.type, each.preprocess) for each in spec.controls] == [("qr", False)]


@pytest.mark.parametrize(("colour", "preprocess", "background"), [("white", False, 0), ("black", True, 255)])
def test_transparency_of_maps_is_black_and_of_images_white(
    submit_spec: Callable[..., JobSpec], store: ObjectStore, colour: str, preprocess: bool, background: int
) -> None:
    image = base64.b64encode(encoded(strokes(colour))).decode()
    spec = submit_spec(controls=[{"type": "canny", "preprocess": preprocess, "image": image}])
    blob = store.get(input_key(spec.controls[0].image))
    assert blob is not None
    stored = Image.open(BytesIO(blob)).convert("L")
    assert (stored.getpixel((0, 0)), stored.getextrema()) == (background, (0, 255))
