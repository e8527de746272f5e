"""Both clients against a scripted service: broken streams, errors, retries."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from img2img import Client
from img2img.client import (
    ApiError,
    FieldError,
    InvalidArgument,
    InvalidRequest,
    InvalidResponse,
    JobGone,
    JobNotFound,
    ServiceUnavailable,
    ServiceUnreachable,
    TooManyRequests,
    WaitTimeout,
)
from tests.support.blocking_client import BlockingAsyncClient
from tests.support.images import encoded, gradient

Response = tuple[int, dict[str, str], bytes]


class ScriptedServer(ThreadingHTTPServer):
    """Sends the given responses in order, and keeps the requests."""

    def __init__(self, responses: list[Response]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.responses = responses
        self.requests: list[tuple[str, dict[str, str], bytes]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: ScriptedServer

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        self.server.requests.append((self.path, {k.lower(): v for k, v in self.headers.items()}, body))
        status, headers, content = self.server.responses.pop(0)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    do_POST = do_PUT = do_GET  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""


@pytest.fixture(params=[Client, BlockingAsyncClient], ids=["sync", "async"])
def connect(request: pytest.FixtureRequest) -> type[Client]:
    """The client class."""
    return request.param


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., ScriptedServer]]:
    monkeypatch.setattr("img2img.client.events.RECONNECT_S", (0.01, 0.01))
    servers = []

    def start(*responses: Response) -> ScriptedServer:
        server = ScriptedServer(list(responses))
        threading.Thread(target=server.serve_forever).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def stream(text: str) -> Response:
    return 200, {"content-type": "text/event-stream"}, text.encode()


def problem(status: int, **headers: str) -> Response:
    document = {"type": "/docs/errors#x", "title": "x", "status": status, "detail": "Not now.", "code": "x"}
    return status, {"content-type": "application/problem+json", **headers}, json.dumps(document).encode()


QUEUED = 'retry: 2000\n\nevent: queued\nid: 1\ndata: {"id":"a","status":"queued"}\n\n: still here\n\n'
DONE = (
    'event: preview\ndata: {"id":"a","step":1,"image":"data:,eA=="}\n\n'
    'event: succeeded\nid: 9\ndata: {"id":"a",\ndata: "status":"succeeded"}\n\n'
)


def job(status: str = "queued") -> Response:
    return 200, {"content-type": "application/json"}, json.dumps({"id": "a", "status": status}).encode()


Scripted = Callable[..., ScriptedServer]
IMAGE = encoded(gradient(8, 8))


def test_stream_events_reconnects_with_the_last_event_id(scripted: Scripted, connect: type[Client]) -> None:
    server = scripted(stream(QUEUED + "event: progress\nda"), problem(503), stream(DONE))
    with connect(server.url) as client:
        events = list(client.stream_events("a"))
    assert [type(event).__name__ for event in events] == ["QueuedEvent", "PreviewEvent", "Job"]
    assert events[-1].model_dump(exclude_unset=True) == {"id": "a", "status": "succeeded"}
    assert [headers.get("last-event-id") for _, headers, _ in server.requests] == [None, "1", "1"]


def test_stream_events_gives_up_after_the_last_reconnect(scripted: Scripted, connect: type[Client]) -> None:
    server = scripted(*[stream("")] * 3)
    with connect(server.url) as client, pytest.raises(ServiceUnreachable, match="ended the events of job a too early"):
        list(client.stream_events("a"))


def test_stream_events_raises_errors_of_the_service(scripted: Scripted, connect: type[Client]) -> None:
    server = scripted(problem(404))
    with connect(server.url) as client, pytest.raises(JobNotFound, match="Not now"):
        list(client.stream_events("a"))
    server = scripted(stream('event: gone\ndata: {"id":"a","code":"deleted","message":"It was deleted."}\n\n'))
    with connect(server.url) as client, pytest.raises(JobGone, match="It was deleted") as raised:
        list(client.stream_events("a"))
    assert raised.value.code == "deleted"


@pytest.mark.parametrize("status", [429, 503])
def test_submit_retries_after_the_time_in_retry_after(scripted: Scripted, connect: type[Client], status: int) -> None:
    server = scripted(problem(status, **{"retry-after": "0"}), job())
    with connect(server.url, api_key="secret") as client:
        submitted = client.submit(image=b"pixels", tiled=True, prompt="x")  # type: ignore[call-arg]
    assert submitted.model_dump(exclude_unset=True) == {"id": "a", "status": "queued"}
    first, second = server.requests
    assert second[1]["authorization"] == "Bearer secret"
    assert second[1]["content-type"].startswith("multipart/form-data")
    assert second[1]["idempotency-key"] == first[1]["idempotency-key"]
    assert b"pixels" in first[2]
    assert b'name="tiled"\r\n\r\ntrue\r\n' in second[2]


def test_images_are_sent_with_the_request_where_there_is_no_bucket(scripted: Scripted, connect: type[Client]) -> None:
    status, headers, refusal = problem(400)
    server = scripted((status, headers, refusal.replace(b'"x"}', b'"no_presigned_uploads"}')), job(), job())
    with connect(server.url, presigned_uploads=True) as client:
        for _ in range(2):
            client.submit(image=IMAGE)
    assert [path for path, _, _ in server.requests] == ["/uploads", "/img2img", "/img2img"]
    assert all(IMAGE in body for _, _, body in server.requests[1:])


def test_images_are_sent_to_the_bucket_without_the_api_key(scripted: Scripted, connect: type[Client]) -> None:
    bucket = scripted((200, {}, b""), (412, {}, b""), (403, {}, b"AccessDenied"))
    upload = {"image": "/uploads/1-2", "url": f"{bucket.url}/images/a?sign=1", "headers": {"If-None-Match": "*"}}
    created = 201, {"content-type": "application/json"}, json.dumps(upload).encode()
    server = scripted(created, job(), created, job(), created)
    with connect(server.url, api_key="secret", presigned_uploads=True) as client:
        for _ in range(2):
            client.submit(image=IMAGE)
        with pytest.raises(ApiError, match="AccessDenied"):
            client.submit(image=IMAGE)
    (path, headers, body), *_ = bucket.requests
    assert (path, body, headers["if-none-match"]) == ("/images/a?sign=1", IMAGE, "*")
    assert "authorization" not in headers
    assert server.requests[0][1]["authorization"] == "Bearer secret"
    assert json.loads(server.requests[0][2])["width"] == 8
    assert b"/uploads/1-2" in server.requests[1][2]


def test_submit_raises_without_successful_retry(scripted: Scripted, connect: type[Client]) -> None:
    server = scripted(problem(429, **{"retry-after": "86400"}), problem(429), problem(503))
    with connect(server.url) as client:
        for error in (TooManyRequests, TooManyRequests, ServiceUnavailable):
            with pytest.raises(error, match="Not now"):
                client.submit()


def test_submit_sends_structured_fields_as_json(scripted: Scripted, connect: type[Client]) -> None:
    server = scripted(job(), job())
    with connect(server.url) as client:
        client.submit(image=b"pixels", controls=[{"type": "canny", "image": b"edges"}], idempotency_key="k")
        client.inpaint(b"pixels", {"text": "the house", "grow": 8})
    assert json.loads(server.requests[1][2])["mask"] == {"text": "the house", "grow": 8}
    _, headers, body = server.requests[0]
    assert headers["idempotency-key"] == "k"
    assert json.loads(body) == {"image": "cGl4ZWxz", "controls": [{"type": "canny", "image": "ZWRnZXM="}]}


def test_method_of_each_task_sends_its_fields(scripted: Scripted, connect: type[Client]) -> None:
    server = scripted(*[job()] * 8)
    with connect(server.url) as client:
        client.inpaint(b"pixels", "alpha", prompt="a tree")
        client.outpaint(b"pixels", left=64, bottom=8)
        client.edit(b"pixels", "make it night", seed=1)
        client.upscale(b"pixels", 4)
        client.control_map(b"pixels", "canny", width=64)
        client.find_mask(b"pixels", text="the house", grow=8)
        client.inpaint(image=b"pixels", mask="alpha", outpaint={"left": 8})
        client.control_map(image=b"pixels", type="canny")
    inpaint, outpaint, edit, upscale, control_map, find_mask, both, _ = server.requests
    paths = ["/img2img"] * 4 + ["/control-maps", "/masks", "/img2img", "/control-maps"]
    assert [path for path, _, _ in server.requests] == paths
    assert json.loads(both[2])["outpaint"] == {"left": 8}
    assert b'name="text"\r\n\r\nthe house\r\n' in find_mask[2]
    assert b'name="mask"\r\n\r\nalpha\r\n' in inpaint[2]
    assert json.loads(outpaint[2])["outpaint"] == {"left": 64, "top": 0, "right": 0, "bottom": 8}
    assert b'name="instruction"\r\n\r\nmake it night\r\n' in edit[2]
    assert b'name="upscale"\r\n\r\n4\r\n' in upscale[2]
    assert all(headers["idempotency-key"] for _, headers, _ in server.requests)
    assert b'name="type"\r\n\r\ncanny\r\n' in control_map[2]


def test_arguments_that_cannot_be_used_are_refused(connect: type[Client]) -> None:
    with connect("http://127.0.0.1:1") as client:
        with pytest.raises(InvalidArgument, match="outpaint needs at least one of left, top"):
            client.outpaint(b"pixels")
        with pytest.raises(InvalidArgument, match="instruction: it must be given"):
            client.edit(b"pixels", "")
        with pytest.raises(InvalidArgument, match=r"URLs are not fetched: download https://example\.com/a\.png"):
            client.submit(image="https://example.com/a.png")
        with pytest.raises(TypeError, match=r"items\.0: a request is a mapping of fields"):
            client.batches.submit(["a.png"])  # type: ignore[list-item]


def test_refused_image_of_a_batch_is_named(scripted: Scripted, connect: type[Client], tmp_path: Path) -> None:
    error = {"status": 415, "detail": "x", "errors": [{"field": "image", "message": "No image"}]}
    refused = 415, {"content-type": "application/problem+json"}, json.dumps(error).encode()
    too_large = problem(413)
    uploaded = 200, {}, json.dumps({"sha256": "5a" * 32, "width": 8, "height": 8}).encode()
    (tmp_path / "text.png").write_bytes(b"text")
    server = scripted(uploaded, refused, too_large, refused)
    with connect(server.url) as client:
        with pytest.raises(InvalidRequest) as raised:
            client.batches.submit([{"image": IMAGE}, {"image": tmp_path / "text.png"}])
        assert str(raised.value) == f"items.1.image: No image (got {tmp_path}/text.png)"
        assert raised.value.errors == (FieldError("items.1.image", "No image", f"{tmp_path}/text.png"),)
        with (tmp_path / "text.png").open("rb") as file, pytest.raises(InvalidRequest) as raised:
            client.batches.submit([{"controls": [{"type": "canny", "image": file}]}])
        assert str(raised.value) == f"items.0.controls.0.image: Not now. (got {tmp_path}/text.png)"
        with pytest.raises(InvalidRequest) as raised:
            client.batches.vary({"prompt": "x"}, {"image": [b"x"]})
        assert str(raised.value) == "vary.image.0: No image"


def test_errors_have_status_code_and_fields(scripted: Scripted, connect: type[Client]) -> None:
    errors = [{"field": "seed", "message": "Too low", "got": "-1"}, {"field": "mask", "message": "Too small"}]
    document = {"status": 422, "detail": "x", "code": "invalid_parameter", "errors": errors}
    response = 422, {"content-type": "application/problem+json"}, json.dumps(document).encode()
    server = scripted(response, (500, {}, b"oops"))
    with connect(server.url) as client:
        with pytest.raises(InvalidRequest) as raised:
            client.submit()
        assert str(raised.value) == "2 fields were rejected\n  seed: Too low (got -1)\n  mask: Too small"
        assert (raised.value.status, raised.value.code) == (422, "invalid_parameter")
        assert [error.field for error in raised.value.errors] == ["seed", "mask"]
        with pytest.raises(ApiError, match="responded with status 500"):
            client.get_job("a")


def test_wait_continues_after_an_outage(scripted: Scripted, connect: type[Client]) -> None:
    server = scripted(job("running"), problem(503), job("succeeded"))
    with connect(server.url) as client:
        assert client.wait("a").has_ended
    assert [path for path, _, _ in server.requests] == ["/jobs/a?wait=30.0"] * 3


def test_wait_raises_after_its_timeout(scripted: Scripted, connect: type[Client]) -> None:
    server = scripted(job("running"))
    with connect(server.url) as client, pytest.raises(WaitTimeout, match="job a is running after 0 s"):
        client.wait("a", timeout_s=0)


def test_list_jobs_follows_the_cursor_up_to_the_limit(scripted: Scripted, connect: type[Client]) -> None:
    def page(cursor: str | None, *ids: str) -> Response:
        document = {"jobs": [{"id": one, "status": "queued"} for one in ids], "next_cursor": cursor}
        return 200, {}, json.dumps(document).encode()

    server = scripted(page("c", "a", "b"), page("d", "c", "d"), page("e", "f"), page(None, "g"))
    with connect(server.url) as client:
        assert [one.id for one in client.list_jobs(status="queued", limit=3)] == ["a", "b", "c"]
        assert [one.id for one in client.list_jobs()] == ["f", "g"]
    assert [path for path, _, _ in server.requests] == [
        "/jobs?status=queued&limit=3",
        "/jobs?status=queued&cursor=c&limit=1",
        "/jobs?limit=100",
        "/jobs?cursor=e&limit=100",
    ]


def test_html_response_raises_invalid_response(scripted: Scripted, connect: type[Client]) -> None:
    server = scripted((200, {"content-type": "text/html"}, b"<html>"))
    with connect(server.url) as client, pytest.raises(InvalidResponse, match="the response is no Job: Invalid JSON"):
        client.get_job("a")


def test_unreachable_service_raises_service_unreachable(connect: type[Client]) -> None:
    with (
        connect("http://127.0.0.1:1") as client,
        pytest.raises(ServiceUnreachable, match=r"cannot be reached.*; is `img2img serve` running"),
    ):
        client.list_models()
