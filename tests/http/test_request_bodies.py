"""Bodies that are expensive to parse, cannot be encoded, or are cut off, on every route that reads one."""

import struct
import threading
import time
import zlib
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import pytest
from fastapi.routing import iter_route_contexts
from redis import Redis

from img2img.app.http.request_body import MAX_JSON_TOKENS, MAX_JSON_VALUES
from img2img.app.main import create_app
from img2img.app.settings import ApiSettings
from img2img.redis.model_registry import ModelRegistry
from tests.support.api_process import ApiProcess, api_process
from tests.support.model_cards import CARD
from tests.support.problems import assert_problem, status_at
from tests.support.servers import redis_server

JSON_ROUTES = ("/img2img", "/control-maps", "/images", "/sdapi/v1/img2img", "/sdapi/v1/options", "/sdapi/v1/png-info")
FORM_ROUTES = ("/img2img", "/control-maps", "/images", "/v1/images/edits", "/v1/images/variations")
JSON = {"Content-Type": "application/json"}
CREATING = ("control-maps", "masks", "images", "uploads", "batches")
SIZE = 31_000_000


def unknown_keys(size: int) -> bytes:
    return b"{" + b",".join(b'"%x":0' % (i + (1 << 20)) for i in range(size // 11)) + b"}"


def text_of_values(size: int) -> bytes:
    """A webhook as JSON text, whose brackets and commas are escaped."""
    return b'{"webhook":"\\u007b\\u0022events\\u0022:\\u005b1' + b"\\u002c1" * (size // 7 - 100) + b']\\u007d"}'


BOMBS = {
    "6 MB of keys": lambda: unknown_keys(6_000_000),
    "31 MB of keys": lambda: unknown_keys(SIZE),
    "lists": lambda: b'{"a":[' + b"[]," * (SIZE // 3) + b"1]}",
    "objects": lambda: b'{"a":[' + b"{}," * (SIZE // 3) + b"1]}",
    "depth": lambda: b'{"a":' + b"[" * (SIZE // 2) + b"]" * (SIZE // 2) + b"}",
    "depth within the limits": lambda: b'{"a":' + b"[" * MAX_JSON_VALUES + b"]" * MAX_JSON_VALUES + b"}",
    "keys within the limits of tokens": lambda: unknown_keys(MAX_JSON_TOKENS * 10),
    "keys within the limits of values": lambda: unknown_keys(MAX_JSON_VALUES * 10),
    "digits": lambda: b'{"seed":' + b"9" * SIZE + b"}",
    "a long key": lambda: b'{"' + b"k" * SIZE + b'":0}',
    "percent signs": lambda: b'{"image":"data:image/png;base64,' + b"%" * (SIZE - 100) + b'"}',
    "percent codes": lambda: b'{"image":"data:image/png;base64,' + b"%2BAAAAAA" * (SIZE // 9 - 100) + b'"}',
    "escapes": lambda: b'{"prompt":"' + b"\\u00e9" * (SIZE // 6) + b'"}',
    "base64 that is not ASCII": lambda: b'{"image":"' + "\u00e9".encode() * (SIZE // 2 - 100) + b'"}',
    "JSON in a text": lambda: text_of_values(SIZE),
}


def test_fastapi_parses_no_body(settings: ApiSettings) -> None:
    """It would do so on the event loop, without limits."""
    app = create_app(settings)
    for context in iter_route_contexts(app.routes):
        assert getattr(context.route, "body_field", None) is None, context.path


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiProcess]:
    """A process of its own, whose memory and delays can be measured."""
    log = tmp_path_factory.mktemp("api") / "log"
    with TemporaryDirectory(prefix="i2i-") as name, redis_server(Path(name)) as url, Redis.from_url(url) as redis:
        ModelRegistry(redis).register("w", [CARD], ttl_s=600)
        with api_process(Path(name), log) as api:
            yield api


@contextmanager
def slowest_health_check(url: str) -> Iterator[list[float]]:
    """Measure health checks during the context. The list has the time of the slowest one, in seconds."""
    ended, slowest = threading.Event(), [0.0]

    def measure() -> None:
        with httpx.Client(base_url=url, timeout=60) as client:
            while not ended.wait(0.02):
                started_at = time.monotonic()
                assert client.get("/healthz").status_code == 200
                slowest[0] = max(slowest[0], time.monotonic() - started_at)

    thread = threading.Thread(target=measure)
    thread.start()
    try:
        yield slowest
    finally:
        ended.set()
        thread.join()


@pytest.mark.parametrize("bomb", BOMBS)
def test_expensive_json_delays_no_other_request(api: ApiProcess, bomb: str) -> None:
    body = BOMBS[bomb]()
    for path in JSON_ROUTES:
        with slowest_health_check(api.url) as slowest:
            response = httpx.post(f"{api.url}{path}", content=body, headers=JSON, timeout=60)
        assert_problem(response, response.status_code)
        assert response.status_code in (400, 415, 422)
        assert len(response.content) < 20_000
        assert slowest[0] < 1.5, path  # it was 9 s for 6 MB of keys, and 19 s for percent signs
    # Of 4 GB for 31 MB of keys.
    assert api.peak_bytes() < 400_000_000


def chunk(kind: bytes, content: bytes) -> bytes:
    """Return a chunk of a PNG."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def test_compressed_texts_of_an_image_have_bounded_memory(api: ApiProcess) -> None:
    """2,000 texts of 8 MB in an image of 16 MB."""
    text = zlib.compress(b"a" * 8_000_000)
    texts = [chunk(b"zTXt", b"%d\0\0" % index + text) for index in range(2000)]
    png = b"\x89PNG\r\n\x1a\n" + b"".join(texts)
    response = httpx.post(f"{api.url}/sdapi/v1/png-info", json={"image": b64encode(png).decode()}, timeout=60)
    assert response.status_code == 200
    assert len(response.content) < 10_000_000
    assert api.peak_bytes() < 400_000_000
    many = b"\x89PNG\r\n\x1a\n" + chunk(b"tEXt", b"a\0") * 1_000_000
    response = httpx.post(f"{api.url}/sdapi/v1/png-info", json={"image": b64encode(many).decode()}, timeout=60)
    assert "more than 20,000 chunks" in assert_problem(response, 422, "invalid_image")["detail"]


SURROGATES = (
    b'{"\\ud800":"x"}',
    b'{"prompt":"\\udfff"}',
    b'{"x":["\\ud800\\ud800"]}',
    b'{"sd_model_checkpoint":"\\ud800"}',
)


@pytest.mark.parametrize("path", JSON_ROUTES)
@pytest.mark.parametrize("body", [*SURROGATES, b'{"\xff":0}', b'{"prompt":"\xed\xa0\x80"}', b"\xef\xbb\xbf{", b""])
def test_text_that_is_not_unicode_is_rejected(http: httpx.Client, path: str, body: bytes) -> None:
    assert_problem(http.post(path, content=body, headers=JSON), 422, "invalid_parameter")


@pytest.mark.parametrize("path", FORM_ROUTES)
def test_text_of_forms_that_is_not_unicode_is_rejected(http: httpx.Client, path: str, image_bytes: bytes) -> None:
    for fields in (
        {"controls": '[{"type":"\\ud800"}]'},
        {"loras": '[{"name":"\\ud800"}]'},
        {"\udcff": "x"},
        {"prompt": "\x00"},
        {"webhook": '{"url":"\\ud800"}'},
        {"prompt": "\udcff"},
    ):
        [(name, value)] = fields.items()
        part = f'--b\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n--b--\r\n'
        body = part.encode("utf-8", "surrogateescape")
        response = http.post(path, content=body, headers={"Content-Type": "multipart/form-data; boundary=b"})
        assert response.status_code in (400, 422), (fields, response.text)


@pytest.mark.parametrize(
    "path",
    [
        "/jobs?status=%ff",
        "/jobs?cursor=%ed%a0%80",
        "/jobs?%ff=%fe",
        "/jobs/%ff%fe",
        "/jobs/%ed%a0%80/events",
        "/jobs/%00/result?format=%ff&quality=%00",
        "/%ff",
        "/sdapi/v1/progress?skip_current_image=%ff",
        "/static-offline-docs/%ff%00",
        "/docs/%ff",
    ],
)
@pytest.mark.parametrize("header", [b"x", b"\xff\xfe\xed\xa0\x80"])
def test_odd_bytes_in_urls_and_headers_are_no_server_error(http: httpx.Client, path: str, header: bytes) -> None:
    names = (b"Accept", b"Authorization", b"X-API-Key", b"If-None-Match", b"Prefer", b"Idempotency-Key", b"traceparent")
    response = http.get(path, headers=[(name, header) for name in names])
    assert response.status_code < 500
    posted = http.post("/img2img", content=b"{}", headers=[(b"content-type", b"application/json;x=" + header)])
    assert posted.status_code == 422
    for name in (b"content-type", b"idempotency-key", b"content-encoding"):
        assert http.post("/img2img", content=b"{}", headers=[(name, header)]).status_code in (415, 422)


def form(image: bytes, strength: str = "0.11") -> bytes:
    return (
        b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
        + image
        + b'\r\n--b\r\nContent-Disposition: form-data; name="strength"\r\n\r\n'
        + strength.encode()
        + b"\r\n--b--\r\n"
    )


@pytest.mark.parametrize("path", FORM_ROUTES)
@pytest.mark.parametrize(
    "name", ["a.b", "a.b.c.d", ".", "...", "image.0", "controls.0", "controls.0.image.x", "loras.0.x"]
)
def test_files_of_unknown_names_are_rejected(http: httpx.Client, path: str, name: str, image_bytes: bytes) -> None:
    response = http.post(path, files={"image": image_bytes, name: image_bytes}, data={"prompt": "x"})
    assert response.status_code == status_at(path, 422), response.text


@pytest.mark.parametrize("path", FORM_ROUTES)
@pytest.mark.parametrize("charset", ["punycode", "utf-7", "unicode_escape"])
def test_forms_in_other_charsets_are_rejected(http: httpx.Client, path: str, charset: str) -> None:
    headers = {"Content-Type": f"multipart/form-data; boundary=b; charset={charset}"}
    response = http.post(path, content=form(b"x"), headers=headers)
    assert response.status_code == status_at(path, 415), response.text


@pytest.mark.parametrize("path", ["/img2img", "/control-maps", "/v1/images/edits", "/sdapi/v1/img2img"])
def test_sides_that_are_no_floats_are_rejected(http: httpx.Client, path: str, image_bytes: bytes) -> None:
    image = b64encode(image_bytes).decode()
    body = {"image": image, "type": "canny", "prompt": "x"} if path != "/sdapi/v1/img2img" else {"init_images": [image]}
    if path != "/control-maps":
        body.pop("type", None)
    for name in ("width", "height"):
        response = http.post(path, json=body | {name: 10**400})
        assert response.status_code == status_at(path, 422), response.text


@pytest.mark.parametrize("path", FORM_ROUTES)
@pytest.mark.parametrize("cut", [3, 6, 7, 8, 10, 60, 100, 10_000])
def test_form_without_its_closing_boundary_is_rejected(
    http: httpx.Client, redis: Redis, image_bytes: bytes, path: str, cut: int
) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    response = http.post(path, content=form(image_bytes)[:-cut], headers=headers)
    assert response.status_code == 400, response.text
    assert redis.zcard("i2i:jobs") == 0


@pytest.mark.parametrize("end", [b"", b"\r\nepilogue", b"\r\n\r\n"])
def test_whole_form_is_accepted(http: httpx.Client, image_bytes: bytes, end: bytes) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    response = http.post("/img2img", content=form(image_bytes).removesuffix(b"\r\n") + end, headers=headers)
    assert response.status_code == 202
    assert response.json()["request"]["strength"] == 0.11


@pytest.mark.parametrize("path", FORM_ROUTES)
def test_other_media_types_are_rejected(http: httpx.Client, path: str) -> None:
    response = http.post(path, content=b"image=x", headers={"Content-Type": "application/x-www-form-urlencoded"})
    assert response.status_code == status_at(path, 415)


@pytest.mark.parametrize("path", ["/sdapi/v1/img2img", "/sdapi/v1/options"])
def test_json_needs_its_media_type(http: httpx.Client, path: str) -> None:
    assert_problem(http.post(path, content=b"{}", headers={"Content-Type": "text/plain"}), 415)


@pytest.mark.parametrize("path", [*JSON_ROUTES, *FORM_ROUTES])
def test_long_content_type_is_rejected(http: httpx.Client, path: str) -> None:
    started_at = time.monotonic()
    response = http.post(path, content=b"{}", headers={"Content-Type": "application/json" + ";a=b" * 15_000})
    assert response.status_code == status_at(path, 415)
    assert time.monotonic() - started_at < 1


@pytest.mark.parametrize("path", ["/img2img?dryrun=1", *(f"/{route}?dry_run=1" for route in CREATING)])
def test_unknown_query_parameters_are_refused(http: httpx.Client, path: str) -> None:
    """A request with a misspelt or misplaced `dry_run` would create a job."""
    [error] = assert_problem(http.post(path, json={}), 422, "invalid_parameter")["errors"]
    assert error["field"] in path
    assert "Unknown query parameter" in error["message"]


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "/jobs?cursor=x", "the `next_cursor` of the previous page"),
        ("GET", "/batches?cursor=x", "the `next_cursor` of the previous page"),
        ("GET", "/replicate/v1/predictions?cursor=x", "the `next_cursor` of the previous page"),
        ("DELETE", "/images/x", "the SHA-256 in hexadecimal"),
        ("DELETE", "/uploads/x", "`POST /uploads` has returned"),
        ("PUT", "/models/ä", "1 to 200 letters, digits"),
        ("PUT", "/models/a/loras/ä", "1 to 100 letters, digits"),
    ],
)
def test_wrong_form_is_refused_in_words(http: httpx.Client, method: str, path: str, expected: str) -> None:
    detail = assert_problem(http.request(method, path, json={"source": "a/b"}), 422)["detail"]
    assert "Input should be " in detail
    assert expected in detail
    assert "pattern" not in detail


def test_wrong_form_of_fields_and_headers_is_refused_in_words(http: httpx.Client, image_bytes: bytes) -> None:
    image = {"image": image_bytes}
    key = http.post("/img2img", files=image, headers={"Idempotency-Key": "two words"})
    assert "without spaces" in assert_problem(key, 422)["detail"]
    size = http.post("/v1/images/edits", files=image, data={"prompt": "x", "size": "big"})
    assert "`auto`, or width x height" in size.json()["error"]["message"]
    upload = {"sha256": "x", "bytes": 1, "content_type": "image/png"}
    assert "64 digits" in assert_problem(http.post("/uploads", json=upload), 422)["detail"]


@pytest.mark.parametrize(
    "path", ["/jobs?status=queued&status=failed", "/jobs?state=queued", "/batches?limit=1&limit=2"]
)
def test_repeated_and_unknown_query_parameters_of_lists_are_refused(http: httpx.Client, path: str) -> None:
    assert "uery parameter" in assert_problem(http.get(path), 422)["detail"]


@pytest.mark.parametrize("path", ["/jobs?cursor=", "/batches?cursor=", "/replicate/v1/predictions?cursor="])
def test_empty_cursor_is_the_first_page(http: httpx.Client, path: str) -> None:
    assert http.get(path).status_code == 200


def test_content_type_is_named(http: httpx.Client) -> None:
    for path in ("/img2img", "/batches", "/uploads"):
        response = http.post(path, content=b"x", headers={"Content-Type": "text/plain"})
        [error] = assert_problem(response, 415)["errors"]
        assert error["field"] == "Content-Type"


def test_fields_of_openai_forms_are_sent_once(http: httpx.Client, image_bytes: bytes) -> None:
    image = ("image", ("a.png", image_bytes))
    twice = [image, ("prompt", (None, "a")), ("prompt", (None, "b"))]
    masks = [image, ("prompt", (None, "a")), ("mask", ("m.png", image_bytes)), ("mask", ("m.png", image_bytes))]
    for form, message in ((twice, "more than once"), (masks, "one mask, not 2")):
        response = http.post("/v1/images/edits", files=form)
        assert response.status_code == 400
        assert message in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "body", "takes_references"),
    [
        ("/img2img", {"image": "https://example.com/a.png"}, True),
        ("/hf/demo", {"inputs": "https://example.com/a.png"}, True),
        ("/images", {"image": "https://example.com/a.png"}, False),
        ("/v1/images/edits", {"prompt": "x", "image": {"image_url": "https://example.com/a.png"}}, False),
    ],
)
def test_references_are_recommended_where_they_are_taken(
    http: httpx.Client, path: str, body: dict[str, object], takes_references: bool
) -> None:
    text = http.post(path, json=body).text
    assert "URLs and file names are not read" in text
    assert ("sha256" in text) is takes_references
