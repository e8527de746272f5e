"""The task of a request follows from its fields; unsupported and conflicting fields are rejected."""

import base64
import io
import json
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from redis import Redis

from img2img.blobs import ObjectStore
from img2img.domain.blob_keys import input_key
from img2img.domain.conditioning import ControlType
from img2img.domain.parameters import Task
from img2img.domain.spec import parse_spec
from img2img.redis.job_queue import JobQueue
from img2img.redis.model_registry import ModelRegistry
from tests.support.images import encoded, gradient
from tests.support.model_cards import CARD
from tests.support.problems import assert_problem

ABLE = CARD.model_copy(
    update={
        "name": "able",
        "tasks": tuple(Task),
        "controls": (ControlType.CANNY, ControlType.POSE),
        "preprocessors": (ControlType.CANNY,),
        "image_prompts": True,
        "max_images": 3,
        "loras": ("ink", "gold"),
        "upscales": (2, 4),
    }
)
DISTILLED = CARD.model_copy(
    update={
        "name": "distilled",
        "tasks": (Task.IMG2IMG, Task.INPAINT),
        "full_strength": (Task.INPAINT,),
        "negative_prompt": False,
        "guidance": False,
    }
)
EDITOR = CARD.model_copy(update={"name": "editor", "tasks": (Task.EDIT,)})
WIDTH, HEIGHT = 200, 160

Post = Callable[..., httpx.Response]


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def mask_with(box: tuple[int, int, int, int], size: tuple[int, int] = (WIDTH, HEIGHT)) -> bytes:
    mask = Image.new("L", size)
    mask.paste(255, box)
    return encoded(mask)


IMAGE = b64(encoded(gradient(WIDTH, HEIGHT)))
MASK = b64(mask_with((40, 40, 60, 56)))
GREY_MASK = b64(encoded(Image.new("L", (WIDTH, HEIGHT), 127)))


def photo_with_hole() -> bytes:
    """Return a mask as OpenAI's API takes it."""
    photo = gradient(WIDTH, HEIGHT).convert("RGBA")
    photo.paste((0, 0, 0, 0), (40, 40, 60, 56))
    return encoded(photo)


PHOTO_WITH_HOLE = b64(photo_with_hole())


# Of the size at which the model works, and of another aspect ratio.
REFERENCES = [b64(encoded(gradient(*size))) for size in ((64, 96), (400, 200))]
LONG = b64(encoded(gradient(200, 20)))
SQUARE = b64(encoded(gradient(128, 128)))
IMAGES_OF_AN_EDIT = ([SQUARE], [SQUARE, SQUARE])


@pytest.fixture
def post(http: httpx.Client, redis: Redis) -> Post:
    ModelRegistry(redis).register("able-worker", [CARD, ABLE, DISTILLED, EDITOR], ttl_s=60)

    def send(**fields: Any) -> httpx.Response:
        return http.post("/img2img", json={"model": "able", **fields})

    return send


def spec_of(response: httpx.Response) -> dict[str, Any]:
    assert response.status_code == 202, response.text
    spec: dict[str, Any] = response.json()["request"]
    return spec


@pytest.fixture
def stored_image(store: ObjectStore) -> Callable[[str], Image.Image]:
    def open_image(sha256: str) -> Image.Image:
        png = store.get(input_key(sha256))
        assert png is not None
        return Image.open(io.BytesIO(png))

    return open_image


@pytest.mark.parametrize(
    ("fields", "task", "strength"),
    [
        ({"image": IMAGE}, "img2img", 0.8),
        ({"image": IMAGE, "controls": [{"type": "canny"}]}, "img2img", 0.8),
        ({"image": IMAGE, "mask": MASK}, "inpaint", 1.0),
        ({"image": IMAGE, "outpaint": {"left": 8}}, "inpaint", 1.0),
        ({"image": IMAGE, "outpaint": {}}, "img2img", 0.8),
        ({"controls": [{"type": "canny", "image": IMAGE}]}, "control", None),
        ({"image": IMAGE, "instruction": "make it night"}, "edit", None),
        ({"image": IMAGE, "upscale": 2}, "upscale", 0.3),
    ],
)
def test_task_follows_from_the_fields(post: Post, fields: dict[str, Any], task: str, strength: float) -> None:
    spec = spec_of(post(**fields))
    assert (spec["task"], spec.get("strength")) == (task, strength)


def test_image_with_a_mask_is_stored_unchanged(post: Post, stored_image: Callable[[str], Image.Image]) -> None:
    spec = spec_of(post(image=IMAGE, mask=MASK, strength=0.5, mask_blur=0))
    assert spec["region"]["canvas"] == [WIDTH, HEIGHT]
    assert spec["region"]["box"] == [0, 0, WIDTH, HEIGHT]
    assert (np.asarray(stored_image(spec["image"])) == np.asarray(gradient(WIDTH, HEIGHT).convert("RGB"))).all()
    assert stored_image(spec["region"]["mask"]).getbbox() == (40, 40, 60, 56)
    assert spec["width"] % 8 == spec["height"] % 8 == 0


def test_grey_of_a_mask_counts_as_white_from_the_middle_on(
    post: Post, stored_image: Callable[[str], Image.Image]
) -> None:
    ramp = Image.linear_gradient("L").resize((WIDTH, HEIGHT), Image.Resampling.NEAREST)
    for blur in (0, 4):
        spec = spec_of(post(image=IMAGE, mask=b64(encoded(ramp)), mask_blur=blur))
        stored = stored_image(spec["region"]["mask"])
        assert sorted(stored.histogram()[value] for value in (0, 255)) == [WIDTH * HEIGHT // 2] * 2
        assert stored.getbbox() == (0, HEIGHT // 2, WIDTH, HEIGHT)


def test_box_of_a_mask_ignores_noise_of_jpeg(post: Post) -> None:
    noisy = Image.open(io.BytesIO(mask_with((40, 40, 60, 56)))).convert("L")
    noisy.putpixel((190, 150), 9)
    of_noisy, of_clean = (
        spec_of(post(image=IMAGE, mask=mask, mask_padding=10)) for mask in (b64(encoded(noisy)), MASK)
    )
    assert of_noisy["region"]["box"] == of_clean["region"]["box"]


def test_long_image_keeps_its_shape(post: Post) -> None:
    spec = spec_of(post(image=b64(encoded(gradient(1050, 450)))))
    assert (spec["width"], spec["height"]) == (192, 80)


def test_mask_padding_sets_the_box_around_the_mask(post: Post) -> None:
    spec = spec_of(post(image=IMAGE, mask=MASK, mask_padding=10))
    left, top, right, bottom = spec["region"]["box"]
    assert left <= 30
    assert top <= 30
    assert right >= 70
    assert bottom >= 66
    assert right - left < WIDTH


def test_mask_alpha_is_the_transparency_of_the_image(post: Post, stored_image: Callable[[str], Image.Image]) -> None:
    image = gradient(WIDTH, HEIGHT).convert("RGBA")
    image.paste((0, 0, 0, 0), (10, 10, 50, 30))
    spec = spec_of(post(image=b64(encoded(image)), mask="alpha"))
    assert stored_image(spec["region"]["mask"]).getbbox() == (10, 10, 50, 30)


def test_outpainting_enlarges_the_canvas(post: Post) -> None:
    response = post(image=IMAGE, outpaint={"left": 24, "bottom": 8})
    assert spec_of(response)["region"]["canvas"] == [WIDTH + 24, HEIGHT + 8]
    assert spec_of(response)["region"]["mask"] is None


def test_inpainting_size_does_not_change_the_canvas(post: Post) -> None:
    spec = spec_of(post(image=IMAGE, mask=MASK, width=128, height=96))
    assert (spec["width"], spec["height"], spec["region"]["canvas"]) == (128, 96, [WIDTH, HEIGHT])


def test_form_takes_structure_as_json_and_images_as_files(http: httpx.Client, post: Post, image_bytes: bytes) -> None:
    edges, style = encoded(gradient(40, 30)), encoded(gradient(30, 40))
    files = {
        "image": image_bytes,
        "mask": encoded(Image.new("L", (160, 120), 255)),
        "controls.1.image": edges,
        "image_prompts.0.image": style,
    }
    controls = [{"type": "canny", "scale": 0.5}, {"type": "pose", "preprocess": False}]
    form = {
        "model": "able",
        "seed": "1",
        "outpaint": json.dumps({"top": 8}),
        "controls": json.dumps(controls),
        "image_prompts": json.dumps([{"scale": 0.4}]),
        "loras": json.dumps([{"name": "ink", "scale": 0.7}]),
    }
    sent = {
        "model": "able",
        "seed": 1,
        "outpaint": {"top": 8},
        "image": b64(image_bytes),
        "mask": b64(files["mask"]),
        "controls": [controls[0], controls[1] | {"image": b64(edges)}],
        "image_prompts": [{"scale": 0.4, "image": b64(style)}],
        "loras": [{"name": "ink", "scale": 0.7}],
    }
    spec = spec_of(http.post("/img2img", files=files, data=form))
    assert spec == spec_of(post(**sent))
    assert [control["type"] for control in spec["controls"]] == ["canny", "pose"]
    assert spec["controls"][0]["image"] is None


def test_edit_takes_several_images(post: Post, http: httpx.Client, store: ObjectStore) -> None:
    """The result has the size of the first image; the others keep their aspect ratio."""
    response = post(image=IMAGE, images=REFERENCES, instruction="put both into the first image", seed=1)
    spec = spec_of(response)
    assert [(other["width"], other["height"]) for other in spec["references"]] == [(64, 96), (181, 91)]
    plain = spec_of(post(image=IMAGE, instruction="x"))
    assert (spec["width"], spec["height"]) == (plain["width"], plain["height"])
    digests = inputs_of(response.json())
    assert len(digests) == 3
    for digest, size in zip(digests[1:], [(64, 96), (181, 91)], strict=True):
        assert Image.open(io.BytesIO(store.get(input_key(digest)) or b"")).size == size
    listed = post(images=[IMAGE, *REFERENCES], instruction="put both into the first image", seed=1)
    assert spec == spec_of(listed)
    http.post(f"/jobs/{response.json()['id']}/cancel")
    assert http.delete(f"/jobs/{response.json()['id']}").status_code == 204


def test_further_images_cost_as_much_as_their_pixels(post: Post) -> None:
    costs = [
        parse_spec(json.dumps(spec_of(post(instruction="x", images=images))))[0].cost for images in IMAGES_OF_AN_EDIT
    ]
    assert costs[1] / costs[0] == pytest.approx(2)


def test_form_repeats_images_as_files_and_references(http: httpx.Client, post: Post, image_bytes: bytes) -> None:
    [first, second] = [base64.b64decode(reference) for reference in REFERENCES]
    stored = http.post("/images", files={"image": second}).json()["sha256"]
    fields = [("model", (None, "able")), ("instruction", (None, "x")), ("seed", (None, "1")), ("image", image_bytes)]
    sent = http.post("/img2img", files=[*fields, ("images", first), ("images", (None, stored))])
    assert spec_of(sent) == spec_of(post(image=b64(image_bytes), images=REFERENCES, instruction="x", seed=1))


def test_inputs_of_a_job_are_kept_until_it_is_deleted(
    post: Post, redis: Redis, http: httpx.Client, store: ObjectStore
) -> None:
    job = post(image=IMAGE, mask=MASK, image_prompts=[{"image": MASK}]).json()
    inputs = [input_key(sha256) for sha256 in inputs_of(job)]
    assert len(inputs) == len(redis.keys("i2i:inputs:jobs:*")) == 3
    http.post(f"/jobs/{job['id']}/cancel")
    assert all(map(store.get, inputs))
    assert http.delete(f"/jobs/{job['id']}").status_code == 204
    assert not any(map(store.get, inputs))
    assert not redis.keys("i2i:inputs*")


def inputs_of(job: dict[str, Any]) -> tuple[str, ...]:
    return parse_spec(json.dumps(job["request"]))[0].inputs


def test_mask_can_be_a_reference(http: httpx.Client, post: Post) -> None:
    uploaded = http.post("/images", json={"image": MASK}).json()["sha256"]
    assert spec_of(post(image=IMAGE, mask=uploaded))["region"]["mask"]
    assert_rejected(post(image=IMAGE, mask="0" * 64), "mask", "No image of yours with this sha256")


def assert_rejected(response: httpx.Response, field: str, message: str) -> None:
    problem = assert_problem(response, 422)
    [error] = problem["errors"]
    assert error["field"] == field
    assert message in error["message"]


@pytest.mark.parametrize(
    ("fields", "field", "message"),
    [
        ({"image": IMAGE, "mask_blur": 3}, "mask_blur", "belongs to `mask`"),
        ({"image": IMAGE, "mask_padding": 3}, "mask_padding", "belongs to `mask`"),
        ({"image": IMAGE, "outpaint": {"left": 8}, "resize": "pad"}, "resize", "only images of `controls`"),
        ({"image": IMAGE, "image_guidance_scale": 2}, "image_guidance_scale", "belongs to"),
        ({"image": IMAGE, "negative_prompt": "x", "guidance_scale": 1}, "negative_prompt", "Without guidance"),
        ({"mask": MASK}, "image", "Field required"),
        ({"controls": [{"type": "canny"}]}, "controls.0.image", "Field required"),
        ({"controls": [{"type": "canny", "image": IMAGE}], "strength": 0.5}, "strength", "should be 1 or absent"),
        ({"image": IMAGE, "instruction": "x", "strength": 0.5}, "strength", "cannot be combined with `instruction`"),
        ({"image": IMAGE, "instruction": "x", "prompt": "y"}, "prompt", "cannot be combined with `instruction`"),
        ({"image": IMAGE, "instruction": "x", "upscale": 2}, "upscale", "second job"),
        ({"image": IMAGE, "upscale": 2, "width": 128}, "width", "cannot be combined with `upscale`"),
        ({"image": IMAGE, "upscale": 3}, "upscale", "2 or 4"),
        ({"image": IMAGE, "mask": b64(mask_with((0, 0, 5, 5), (64, 64)))}, "mask", "should be of one size"),
        ({"image": IMAGE, "mask": b64(encoded(Image.new("L", (WIDTH, HEIGHT))))}, "mask", "black all over"),
        ({"image": IMAGE, "mask": GREY_MASK}, "mask", "black all over"),
        ({"image": IMAGE, "mask": PHOTO_WITH_HOLE}, "mask", "mask=alpha"),
        ({"image": IMAGE, "mask": "alpha"}, "mask", "not transparent anywhere"),
        ({"image": IMAGE, "mask": b64(b"GIF89a")}, "mask", "PNG, JPEG or WebP"),
        ({"image": IMAGE, "outpaint": {"left": 4096, "right": 4096, "top": 4096}}, "outpaint", "at most 4,000,000"),
        ({"image": IMAGE, "controls": [{"type": "depth"}]}, "controls.0.type", "one of: canny, pose"),
        ({"image": IMAGE, "controls": [{"type": "pose"}]}, "controls.0.preprocess", "send the map"),
        ({"image": IMAGE, "controls": [{"type": "canny", "start": 0.5, "end": 0.5}]}, "controls.0", "less than `end`"),
        ({"image": IMAGE, "loras": [{"name": "tin"}]}, "loras.0.name", "one of: ink, gold"),
        ({"image": IMAGE, "loras": [{"name": "ink"}, {"name": "ink"}]}, "loras.1.name", "named twice"),
        ({"image": IMAGE, "loras": [{"name": "../ink"}]}, "loras.0.name", "1 to 100 letters"),
        ({"model": "demo", "image": IMAGE, "mask": MASK}, "mask", "does not support inpainting"),
        ({"model": "demo", "image": IMAGE, "instruction": "x"}, "instruction", "it supports: image-to-image"),
        ({"model": "demo", "image": IMAGE, "image_prompts": [{"image": IMAGE}]}, "image_prompts", "no IP-Adapter"),
        ({"model": "demo", "image": IMAGE, "loras": [{"name": "ink"}]}, "loras.0.name", "has no LoRA"),
        ({"image": IMAGE, "images": [IMAGE]}, "images", "it belongs to `instruction`, which is not given"),
        ({"images": [IMAGE] * 4, "instruction": "x"}, "images", "takes at most 3 images, and not 4"),
        ({"images": [IMAGE] * 17, "instruction": "x"}, "images", "at most 16 items"),
        ({"images": [IMAGE, b64(b"GIF89a")], "instruction": "x"}, "images.1", "PNG, JPEG or WebP"),
        ({"images": [IMAGE, LONG], "instruction": "x"}, "images.1", "more than 8 times as long as wide"),
        ({"model": "editor", "images": [IMAGE] * 2, "instruction": "x"}, "images", "takes one image"),
        ({"model": "distilled", "image": IMAGE, "strength": 0.5, "mask": MASK}, "strength", "starts from pure noise"),
        ({"model": "distilled", "image": IMAGE, "negative_prompt": "x"}, "negative_prompt", "no negative prompt"),
        ({"model": "distilled", "image": IMAGE, "guidance_scale": 2}, "guidance_scale", "without guidance"),
    ],
)
def test_unsupported_fields_are_rejected(
    post: Post, queue: JobQueue, fields: dict[str, Any], field: str, message: str
) -> None:
    status = 415 if "PNG" in message else 422
    problem = assert_problem(post(**fields), status)
    [error] = problem["errors"]
    assert error["field"] == field
    assert message in error["message"]
    assert queue.depth("able") == 0


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("controls", "canny", "JSON text"),
        ("controls", "[" * 5000, "more values"),
        ("controls", "{}", "valid tuple"),
        ("controls.0.image", None, "no entry 0"),
        ("loras", '[{"name": "ink", "weight": 1}]', "Unknown field"),
    ],
)
def test_malformed_form_fields_are_rejected(
    http: httpx.Client, post: Post, image_bytes: bytes, name: str, text: str | None, message: str
) -> None:
    part = (None, text) if text is not None else ("x.png", image_bytes)
    response = http.post("/img2img", files=[("image", ("a.png", image_bytes)), (name, part), ("model", (None, "able"))])
    problem = assert_problem(response, 422)
    assert problem["errors"][0]["field"].startswith(name)
    assert message in problem["errors"][0]["message"]


def test_distilled_model_runs_without_guidance(post: Post) -> None:
    assert spec_of(post(model="distilled", image=IMAGE))["guidance_scale"] == 1.0
