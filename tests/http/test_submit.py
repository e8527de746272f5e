"""POST /img2img over real HTTP: valid and invalid values of every field."""

import base64
import gzip
import json
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from PIL import Image
from redis import Redis

from img2img.app.schemas.requests import Img2ImgRequest
from img2img.blobs import ObjectStore
from img2img.domain.blob_keys import input_key
from img2img.domain.parameters import MAX_SEED, Scheduler, Task
from img2img.redis.job_queue import JobQueue
from img2img.redis.model_registry import ModelRegistry
from tests.support.images import encoded, gradient
from tests.support.model_cards import CARD
from tests.support.problems import assert_problem, status_at

Submit = Callable[..., httpx.Response]

DEFAULTS = {
    "task": "img2img",
    "model": "demo",
    "prompt": "",
    "negative_prompt": "",
    "prompt_weighting": False,
    "weighting_method": "compel",
    "exact_steps": False,
    "subseed": None,
    "subseed_strength": 0.0,
    "freeu": None,
    "pag_scale": 0.0,
    "seamless_tiling": False,
    "pag_adaptive_scale": 0.0,
    "strength": 0.8,
    "denoising_start": None,
    "denoising_end": None,
    "upload": None,
    "refine": [],
    "regions": [],
    "background": "keep",
    "eta": 0.0,
    "clip_skip": 0,
    "guess_mode": False,
    "guidance_rescale": 0.0,
    "speed": "exact",
    "guidance_until": 1.0,
    "fast_vae": False,
    "deterministic": False,
    "guidance_scale": 7.5,
    "guidance_rows": 2,
    "num_inference_steps": 30,
    "scheduler": "ddim",
    "sigmas": None,
    "num_images": 1,
    "width": 144,
    "height": 112,
    "resize": "crop",
    "controls": [],
    "image_prompts": [],
    "loras": [],
}

# Field, value in JSON, fields of the resolved request.
VALID: list[tuple[str, Any, dict[str, Any]]] = [
    ("prompt", "", {"prompt": ""}),
    ("prompt", "Ein Haus, 家, 🏠\nam Meer", {"prompt": "Ein Haus, 家, 🏠\nam Meer"}),
    ("prompt", "x" * 10_000, {"prompt": "x" * 10_000}),
    ("prompt", "," * 10_000, {"prompt": "," * 10_000}),
    ("negative_prompt", "blurry", {"negative_prompt": "blurry"}),
    ("strength", 0, {"strength": 0.0}),
    ("strength", 0.05, {"strength": 0.05}),
    ("strength", 1, {"strength": 1.0}),
    ("guidance_scale", 1, {"guidance_scale": 1.0}),
    ("guidance_scale", 12.5, {"guidance_scale": 12.5}),
    ("num_inference_steps", 1, {"num_inference_steps": 1}),
    ("num_inference_steps", 150, {"num_inference_steps": 150}),
    *[("scheduler", name.value, {"scheduler": name.value}) for name in Scheduler],
    ("seed", 0, {"seed": 0}),
    ("seed", MAX_SEED, {"seed": MAX_SEED}),
    ("num_images", 8, {"num_images": 8}),
    ("width", 128, {"width": 128, "height": 96}),
    ("height", 96, {"width": 128, "height": 96}),
    ("resize", "pad", {"resize": "pad"}),
    ("resize", "stretch", {"resize": "stretch"}),
    ("model", "ddim-only", {"model": "ddim-only"}),
]

# Field, value in JSON, part of the error message.
INVALID: list[tuple[str, Any, str]] = [
    ("prompt", "x" * 10_001, "at most 10000 characters"),
    ("prompt", "a\0b", "should not contain the character NUL"),
    ("negative_prompt", "x" * 10_001, "at most 10000 characters"),
    ("strength", -0.01, "greater than or equal to 0"),
    ("strength", 1.01, "less than or equal to 1"),
    ("strength", float("nan"), "finite number"),
    ("strength", "much", "valid number"),
    ("guidance_scale", 0.99, "greater than or equal to 1"),
    ("guidance_scale", float("inf"), "finite number"),
    ("num_inference_steps", 0, "greater than or equal to 1"),
    ("num_inference_steps", 151, "less than or equal to 150"),
    ("num_inference_steps", 2.5, "valid integer"),
    ("scheduler", "euler_b", "'ddim', 'ddpm', 'pndm', 'lms', 'euler', 'euler_a', 'heun'"),
    ("seed", -2, "greater than or equal to -1"),
    ("seed", MAX_SEED + 1, f"less than or equal to {MAX_SEED}"),
    ("seed", 10**400, f"less than or equal to {MAX_SEED}"),
    ("num_images", 0, "greater than or equal to 1"),
    ("num_images", 9, "less than or equal to 8"),
    ("width", 0, "greater than or equal to 1"),
    ("width", 100, "the nearest is 96"),
    ("width", 264, "the nearest is 256"),
    ("height", 1, "the nearest is 64"),
    ("resize", "fill", "'crop', 'pad' or 'stretch'"),
    ("model", "sdxl", "ddim-only, demo"),
    ("masks", "x", "Unknown field; known are image, prompt"),
]


def value_id(value: object) -> str | None:
    return repr(value)[:30] if not isinstance(value, dict) else ""


@pytest.fixture
def submit_json(http: httpx.Client, image_bytes: bytes) -> Submit:
    def post(**fields: Any) -> httpx.Response:
        body = json.dumps({"image": base64.b64encode(image_bytes).decode(), **fields})
        return http.post("/img2img", content=body, headers={"content-type": "application/json"})

    return post


@pytest.mark.parametrize(("field", "value", "resolved"), VALID, ids=value_id)
def test_form_and_json_resolve_to_the_same_request(
    submit: Submit, submit_json: Submit, field: str, value: Any, resolved: dict[str, Any]
) -> None:
    fields = {"seed": 1} | {field: value}
    specs = []
    for response in (submit(**fields), submit_json(**fields)):
        assert response.status_code == 202, response.text
        specs.append(response.json()["request"])
    assert specs[0] == specs[1]
    image = specs[0].pop("image")
    assert len(image) == 64
    assert specs[0] == DEFAULTS | {"seed": 1} | resolved


@pytest.mark.parametrize(("field", "value", "message"), INVALID, ids=value_id)
def test_invalid_values_are_rejected_by_field(
    submit: Submit, submit_json: Submit, redis: Redis, field: str, value: Any, message: str
) -> None:
    for response in (submit(**{field: value}), submit_json(**{field: value})):
        problem = assert_problem(response, 422, "invalid_parameter")
        [error] = problem["errors"]
        assert error["field"] == field
        assert message in error["message"]
        assert error["got"].startswith(str(value)[:12])
        assert len(error["got"]) < 100
        assert field in problem["detail"]
    assert not redis.keys("i2i:job:*")


@pytest.mark.parametrize(
    ("fields", "field", "message"),
    [
        ({"scheduler": "lcm", "num_inference_steps": 51}, "num_inference_steps", "at most 50"),
        ({"scheduler": "tcd", "num_inference_steps": 51}, "num_inference_steps", "at most 50"),
        ({"model": "ddim-only", "scheduler": "euler"}, "scheduler", "one of: ddim"),
        ({"seed": MAX_SEED, "num_images": 2}, "seed", f"at most {MAX_SEED - 1}"),
        ({"width": 256, "height": 250}, "height", "the nearest is 248"),
    ],
)
def test_unsupported_combinations_are_rejected(
    submit: Submit, fields: dict[str, Any], field: str, message: str
) -> None:
    [error] = assert_problem(submit(**fields), 422, "invalid_parameter")["errors"]
    assert error["field"] == field
    assert message in error["message"]


def test_one_response_names_all_invalid_fields(submit: Submit) -> None:
    problem = assert_problem(submit(strength=7, seed=-2, colour="red"), 422, "invalid_parameter")
    assert {error["field"] for error in problem["errors"]} == {"strength", "seed", "colour"}


@pytest.mark.parametrize("value", ["30", True, 30.5, [], {}])
def test_json_integer_rejects_other_types(submit_json: Submit, value: Any) -> None:
    [error] = assert_problem(submit_json(num_inference_steps=value), 422, "invalid_parameter")["errors"]
    assert error["field"] == "num_inference_steps"


@pytest.fixture
def _able(http: httpx.Client, redis: Redis) -> None:  # `http` removes all models first
    """Register a model that can inpaint, too."""
    ModelRegistry(redis).register("test-worker", [CARD.model_copy(update={"tasks": tuple(Task)})], ttl_s=60)


@pytest.mark.usefixtures("_able")
def test_integer_may_be_written_as_a_float(submit_json: Submit) -> None:
    response = submit_json(num_inference_steps=30.0, seed=1e3, outpaint={"left": 8.0, "top": 0.0}, num_images=2.0)
    assert response.status_code == 202, response.text
    request = response.json()["request"]
    assert (request["num_inference_steps"], request["seed"], request["num_images"]) == (30, 1000, 2)
    assert request["region"]["margins"]["left"] == 8


OPTIONAL = sorted(set(Img2ImgRequest.model_fields) - {"image"})


@pytest.mark.parametrize("field", OPTIONAL)
def test_null_and_empty_fields_are_absent(
    http: httpx.Client, submit_json: Submit, image_bytes: bytes, field: str
) -> None:
    form = http.post("/img2img", files=[("image", ("a.png", image_bytes)), (field, (None, ""))])
    for response in (form, submit_json(**{field: None})):
        assert response.status_code == 202, response.text
        assert response.json()["request"] | {"seed": 1, "image": ""} == DEFAULTS | {"seed": 1, "image": ""}


@pytest.mark.usefixtures("_able")
def test_null_in_nested_fields_is_absent(submit_json: Submit) -> None:
    response = submit_json(outpaint={"left": 8, "top": None}, webhook=None, loras=None)
    assert response.status_code == 202, response.text
    assert response.json()["request"]["region"]["margins"] == {"left": 8, "top": 0, "right": 0, "bottom": 0}


@pytest.mark.usefixtures("_able")
def test_form_of_a_page_with_all_fields_left_empty(http: httpx.Client, image_bytes: bytes) -> None:
    """As browsers send a form whose optional files are not chosen, and as /docs does."""
    parts: list[Any] = [("image", ("a.png", image_bytes))]
    parts += [(field, (None, "")) for field in OPTIONAL if field != "mask"]
    request = http.build_request("POST", "/img2img", files=[*parts, ("mask", ("PLACEHOLDER", b""))])
    content = request.read().replace(b"PLACEHOLDER", b"")
    headers = {"content-type": request.headers["content-type"]}
    response = http.post("/img2img", content=content, headers=headers)
    assert response.status_code == 202, response.text
    # An empty file that was chosen is one.
    chosen = http.post("/img2img", files=[*parts, ("mask", ("mask.png", b""))])
    [error] = assert_problem(chosen, 415, "unsupported_media_type")["errors"]
    assert "empty file" in error["message"]
    assert error["field"] == "mask"


def test_random_seed_is_reported(submit: Submit, submit_json: Submit) -> None:
    responses = [submit(), submit_json(), submit(seed=-1), submit_json(seed=-1), submit_json(seed=-1.0)]
    seeds = {response.json()["request"]["seed"] for response in responses}
    assert len(seeds) == 5
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_submit_queues_a_job_and_stores_its_image(submit: Submit, queue: JobQueue, store: ObjectStore) -> None:
    response = submit(prompt="a house", num_images=2, strength=0.5)
    job = response.json()
    assert response.status_code == 202
    assert response.headers["location"] == f"/jobs/{job['id']}"
    assert (job["status"], job["images"], job["error"], job["timings"]) == ("queued", [], None, {})
    assert (job["started_at"], job["finished_at"], job["worker"]) == (None, None, None)
    assert job["created_at"].endswith("Z")
    assert job["progress"] == {"step": 0, "steps": 30, "fraction": 0.0}
    assert queue.depth("demo") == 1
    record = queue.job_store.get(job["id"])
    assert record is not None
    assert record.spec.model_dump(mode="json") == job["request"]
    blob = store.get(input_key(record.spec.image))
    assert blob is not None
    assert blob.startswith(b"\x89PNG")


@pytest.mark.parametrize("prefix", ["", "data:image/png;base64,", "DATA:;BASE64,"])
@pytest.mark.parametrize(
    "spell",
    [
        lambda data: base64.b64encode(data).decode(),
        lambda data: base64.encodebytes(data).decode(),
        lambda data: base64.encodebytes(data).decode().replace("\n", "\r\n\t"),
        lambda data: base64.urlsafe_b64encode(data).decode(),
        lambda data: base64.b64encode(data).decode().rstrip("="),
        lambda data: base64.urlsafe_b64encode(data).decode().rstrip("=") + "\n",
    ],
    ids=["plain", "lines", "indented lines", "for URLs", "without padding", "for URLs without padding"],
)
@pytest.mark.parametrize("extra", [b"", b"x", b"xy"])
def test_json_image_is_base64_or_a_data_uri(
    submit_json: Submit, image_bytes: bytes, prefix: str, spell: Callable[[bytes], str], extra: bytes
) -> None:
    assert submit_json(image=prefix + spell(image_bytes + extra)).status_code == 202


def test_data_uri_may_be_percent_encoded(submit_json: Submit, image_bytes: bytes) -> None:
    text = quote(base64.b64encode(image_bytes).decode(), safe="")
    assert submit_json(image=f"data:image/png;base64,{text}").status_code == 202


@pytest.mark.parametrize("path", ["/img2img", "/sdapi/v1/img2img", "/v1/images/edits", "/images"])
@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate", "gzip, identity"])
def test_compressed_body_is_refused(http: httpx.Client, path: str, encoding: str) -> None:
    headers = {"content-type": "application/json", "content-encoding": encoding}
    response = http.post(path, content=gzip.compress(b"{}"), headers=headers)
    assert response.status_code == status_at(path, 415)
    assert "unsupported_media_type" in response.text
    assert "compressed" in response.text
    assert response.headers["accept-encoding"] == "identity"


def test_json_may_have_a_byte_order_mark(http: httpx.Client, image_bytes: bytes) -> None:
    body = json.dumps({"image": base64.b64encode(image_bytes).decode()})
    headers = {"content-type": "application/json", "content-encoding": "identity"}
    assert http.post("/img2img", content=body.encode("utf-8-sig"), headers=headers).status_code == 202
    for encoding in ("utf-16", "utf-16-le", "utf-32"):
        response = http.post("/img2img", content=body.encode(encoding), headers=headers)
        assert_problem(response, 400, "bad_request")
        assert "UTF-16" in response.json()["detail"]


@pytest.mark.parametrize(
    ("image", "status", "message"),
    [
        ("!!!", 422, "base64"),
        ("QUJD!", 422, "base64"),
        ("data:image/png,raw", 422, "data:image/png;base64"),
        ("https://example.com/a.png", 422, "POST /images"),
        ("//example.com/a.png", 422, "POST /images"),
        ("photo.jpg", 422, "POST /images"),
        ("/home/ada/photo", 422, "POST /images"),
        ("C:\\photos\\a.webp", 422, "POST /images"),
        (7, 422, "base64"),
        (None, 422, "Field required"),
        ("", 415, "PNG, JPEG or WebP"),
        (base64.b64encode(b"<svg/>").decode(), 415, "PNG, JPEG or WebP"),
    ],
)
def test_invalid_json_images_are_rejected(submit_json: Submit, image: Any, status: int, message: str) -> None:
    [error] = assert_problem(submit_json(image=image), status)["errors"]
    assert error["field"] == "image"
    assert message in error["message"]


@pytest.mark.parametrize(
    ("image", "status", "code"),
    [
        (b"", 415, "unsupported_media_type"),
        (encoded(gradient(20, 20), "GIF"), 415, "unsupported_media_type"),
        (encoded(gradient(20, 20))[:-30], 422, "invalid_image"),
        (encoded(Image.new("L", (4001, 1000))), 422, "invalid_image"),
    ],
)
def test_invalid_form_images_are_rejected(submit: Submit, image: bytes, status: int, code: str) -> None:
    [error] = assert_problem(submit(image), status, code)["errors"]
    assert error["field"] == "image"


def test_image_is_required(http: httpx.Client) -> None:
    form = http.post("/img2img", files={"prompt": (None, "x")})
    body = http.post("/img2img", json={"prompt": "x"})
    for response in (form, body):
        [error] = assert_problem(response, 422, "invalid_parameter")["errors"]
        assert error == {"field": "image", "message": "Field required"}


def test_form_rejects_repeated_unknown_and_misplaced_fields(http: httpx.Client, image_bytes: bytes) -> None:
    image = ("image", ("a.png", image_bytes))
    for parts, field, message in [
        ([image, image], "image", "more than once"),
        ([image, ("seed", (None, "1")), ("seed", (None, "2"))], "seed", "more than once"),
        ([("image", (None, "text"))], "image", "as a file"),
        ([image, ("colour", (None, "red"))], "colour", "Unknown field"),
        ([image, ("prompt", ("p.txt", b"hello"))], "prompt", "as text"),
        ([image, ("extra", ("e.png", image_bytes))], "extra", "Unknown field"),
    ]:
        [error] = assert_problem(http.post("/img2img", files=parts), 422, "invalid_parameter")["errors"]
        assert error["field"] == field
        assert message in error["message"]


@pytest.mark.parametrize(
    ("content_type", "body", "status"),
    [
        ("text/plain", b"hello", 415),
        ("", b"hello", 415),
        ("application/x-www-form-urlencoded", b"prompt=x", 415),
        ("image/png", b"\x89PNG", 415),
        ("multipart/form-data; boundary=x; charset=utf-7", b"--x--", 415),
        ("multipart/form-data", b"--x--", 400),
        ("multipart/form-data; boundary=x", b"hello", 400),
        ("multipart/form-data; boundary=x", b"--x\r\nContent-Disposition: form-data\r\n\r\na\r\n--x--", 400),
        ("application/json", b"", 422),
        ("application/json", b"{", 422),
        ("application/json", b"[1]", 422),
        ("application/json", b'"text"', 422),
        ("application/json", b'{"prompt": "\\ud800"}', 422),
        ("application/json", b'{"prompt": "\xff"}', 422),
        ("application/json", b"[" * 20_000, 422),
        ("application/json", b'{"image": [' + b"[]," * 100_000 + b"[]]}", 400),
    ],
)
def test_malformed_bodies_are_rejected(http: httpx.Client, content_type: str, body: bytes, status: int) -> None:
    assert_problem(http.post("/img2img", content=body, headers={"content-type": content_type}), status)


def test_response_to_many_unknown_fields_is_short(http: httpx.Client) -> None:
    response = http.post("/img2img", json={f"{i}" * 50: "x" * 200 for i in range(1_500)})
    assert_problem(response, 422, "invalid_parameter")
    assert len(response.content) < 20_000


def test_form_with_too_many_parts_is_rejected(http: httpx.Client) -> None:
    assert_problem(http.post("/img2img", files=[(f"f{i}", (None, "x")) for i in range(100)]), 400, "bad_request")


def test_large_content_length_is_rejected_before_the_body(http: httpx.Client) -> None:
    sent = 0

    def stream() -> Iterator[bytes]:
        nonlocal sent
        while sent < 5_000_000:
            sent += 1000
            yield b"x" * 1000

    response = http.post("/img2img", content=stream(), headers={"content-length": "5000000"})
    assert_problem(response, 413, "payload_too_large")


def test_large_body_is_rejected_without_content_length(http: httpx.Client) -> None:
    for content_type in ("application/json", "multipart/form-data; boundary=x"):
        start = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
        chunks = iter([start, *[b"x" * 100_000] * 60])
        assert_problem(
            http.post("/img2img", content=chunks, headers={"content-type": content_type}), 413, "payload_too_large"
        )


def test_submit_is_unavailable_before_the_first_worker(submit: Submit, redis: Redis) -> None:
    redis.flushall()
    response = submit()
    assert_problem(response, 503, "unavailable")
    assert int(response.headers["retry-after"]) > 0
