"""The client against a service that misbehaves: streams that break off, refusals that say when to come again."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from img2img.client import Client, RequestRefused, ServiceUnreachable

Answer = tuple[int, dict[str, str], bytes]


class Scripted(ThreadingHTTPServer):
    """Answers with what it was given, in that order, and remembers what it was asked."""

    def __init__(self, answers: list[Answer]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers = answers
        self.asked: list[tuple[str, dict[str, str], bytes]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Scripted

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        self.server.asked.append((self.path, {k.lower(): v for k, v in self.headers.items()}, body))
        status, headers, answer = self.server.answers.pop(0)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer)

    do_POST = do_GET  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Scripted]]:
    monkeypatch.setattr("img2img.client.RECONNECT_S", (0.01, 0.01))
    servers = []

    def start(*answers: Answer) -> Scripted:
        server = Scripted(list(answers))
        threading.Thread(target=server.serve_forever).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def stream(text: str) -> Answer:
    return 200, {"content-type": "text/event-stream"}, text.encode()


def problem(status: int, **headers: str) -> Answer:
    document = {"type": "about:blank", "title": "x", "status": status, "detail": "Not now.", "code": "x"}
    return status, {"content-type": "application/problem+json", **headers}, json.dumps(document).encode()


QUEUED = 'retry: 2000\n\nevent: queued\nid: 1\ndata: {"id":"a","status":"queued"}\n\n: still here\n\n'
DONE = 'event: preview\ndata: {}\n\nevent: succeeded\nid: 9\ndata: {"id":"a",\ndata: "status":"succeeded"}\n\n'


def test_a_stream_that_breaks_off_is_taken_up_again(scripted: Callable[..., Scripted]) -> None:
    server = scripted(stream(QUEUED + "event: progress\nda"), problem(503), stream(DONE))
    with Client(server.url) as client:
        events = list(client.follow("a"))
    assert [name for name, _ in events] == ["queued", "preview", "succeeded"]
    assert events[-1][1] == {"id": "a", "status": "succeeded"}
    assert [headers.get("last-event-id") for _, headers, _ in server.asked] == [None, "1", "1"]


def test_a_stream_that_never_gets_on_is_given_up(scripted: Callable[..., Scripted]) -> None:
    server = scripted(*[stream("")] * 3)
    with Client(server.url) as client, pytest.raises(ServiceUnreachable, match="ended the events of job a too early"):
        list(client.follow("a"))
    server = scripted(problem(404))
    with Client(server.url) as client, pytest.raises(RequestRefused, match="Not now"):
        list(client.follow("a"))
    server = scripted(stream('event: gone\ndata: {"id":"a","code":"deleted","message":"It was deleted."}\n\n'))
    with Client(server.url) as client, pytest.raises(RequestRefused, match="It was deleted"):
        list(client.follow("a"))


def test_a_submit_comes_again_when_it_is_told_to(scripted: Callable[..., Scripted]) -> None:
    server = scripted(problem(429, **{"retry-after": "0"}), (202, {}, b'{"id":"a"}'))
    with Client(server.url, api_key="secret") as client:
        assert client.submit({"image": b"pixels", "tiled": True, "prompt": "x"}) == {"id": "a"}
    first, second = server.asked
    assert second[1]["authorization"] == "Bearer secret"
    assert second[1]["content-type"].startswith("multipart/form-data")
    assert b"pixels" in first[2]
    assert b'name="tiled"\r\n\r\ntrue\r\n' in second[2]
    server = scripted(problem(429, **{"retry-after": "86400"}), problem(429))
    with Client(server.url) as client:
        for _ in range(2):
            with pytest.raises(RequestRefused, match="Not now"):
                client.submit({})


def test_structure_is_sent_as_json(scripted: Callable[..., Scripted]) -> None:
    server = scripted((202, {}, b'{"id":"a"}'))
    with Client(server.url) as client:
        client.submit({"image": b"pixels", "controls": [{"kind": "canny"}]}, idempotency_key="k")
    _, headers, body = server.asked[0]
    assert headers["idempotency-key"] == "k"
    assert json.loads(body) == {"image": "cGl4ZWxz", "controls": [{"kind": "canny"}]}
