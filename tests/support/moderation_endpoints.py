"""A moderation endpoint as a process of its own, which answers well or badly, by the path of the request.

It flags texts with the word `forbidden`, images that are red, and PNGs with the word `gory` in their metadata.
"""

import gzip
import io
import json
import subprocess
import sys
import threading
import time
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx

HOLD_S = 60.0


@dataclass(frozen=True)
class Endpoint:
    """The URLs of a running endpoint."""

    base: str

    def url(self, behaviour: str) -> str:
        return f"{self.base}/{behaviour}"

    def requests(self) -> list[dict[str, Any]]:
        """Return the requests so far: path, headers and parsed body."""
        got: list[dict[str, Any]] = httpx.get(f"{self.base}/requests").json()
        return got

    def reset(self) -> None:
        """Forget the requests, and hold those to `/held`."""
        httpx.post(f"{self.base}/reset")

    def release(self) -> None:
        """Answer the requests to `/held`."""
        httpx.post(f"{self.base}/release")


@contextmanager
def moderation_endpoint() -> Iterator[Endpoint]:
    """Run an endpoint."""
    command = [sys.executable, "-m", "tests.support.moderation_endpoints"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield Endpoint(process.stdout.readline().strip())
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def _result(part: dict[str, Any]) -> dict[str, Any]:
    if part["type"] == "text":
        return _flags(violence="forbidden" in part["text"], sexual=False, illicit=None)
    from PIL import Image

    png = b64decode(part["image_url"]["url"].removeprefix("data:image/png;base64,"))
    with Image.open(io.BytesIO(png)) as image:
        red, _green, blue = image.convert("RGB").resize((1, 1)).getpixel((0, 0))
    return _flags(**{"violence/graphic": b"gory" in png, "red": red > 200 and blue < 50})


def _flags(**categories: bool | None) -> dict[str, Any]:
    return {"flagged": any(categories.values()), "categories": categories, "category_scores": {}}


class _Handler(BaseHTTPRequestHandler):
    got: list[dict[str, Any]] = []
    released = threading.Event()

    def log_message(self, *_args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer(self.got)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        behaviour = self.path.strip("/")
        if behaviour == "reset":
            self.got.clear()
            self.released.clear()
        elif behaviour == "release":
            self.released.set()
        else:
            self.got.append({"path": behaviour, "headers": dict(self.headers), "body": json.loads(body)})
            with suppress(ConnectionError):
                getattr(self, behaviour.replace("-", "_"))(json.loads(body)["input"])
            return
        self._answer({})

    def ok(self, parts: list[dict[str, Any]]) -> None:
        self._answer({"id": "modr-1", "model": "test", "results": [_result(part) for part in parts]})

    def held(self, parts: list[dict[str, Any]]) -> None:
        self.released.wait(HOLD_S)
        self.ok(parts)

    def flaky(self, parts: list[dict[str, Any]]) -> None:
        if sum(request["path"] == "flaky" for request in self.got) % 2:
            self._answer({}, 503)
        else:
            self.ok(parts)

    def error(self, _parts: list[dict[str, Any]]) -> None:
        self._answer({}, 500)

    def unauthorized(self, _parts: list[dict[str, Any]]) -> None:
        self._answer({}, 401)

    def redirect(self, _parts: list[dict[str, Any]]) -> None:
        self.send_response(307)
        self.send_header("location", "/ok")
        self.send_header("content-length", "0")
        self.end_headers()

    def garbage(self, _parts: list[dict[str, Any]]) -> None:
        self._send(b"<html>welcome</html>")

    def no_results(self, _parts: list[dict[str, Any]]) -> None:
        self._answer({"results": []})

    def not_boolean(self, _parts: list[dict[str, Any]]) -> None:
        self._answer({"results": [{"flagged": "no"}]})

    def nested(self, _parts: list[dict[str, Any]]) -> None:
        self._send(b'{"results": ' + b"[" * 100_000)

    def compressed(self, parts: list[dict[str, Any]]) -> None:
        content = json.dumps({"results": [_result(part) for part in parts]}).encode()
        self._send(gzip.compress(content), encoding="gzip")

    def huge(self, _parts: list[dict[str, Any]]) -> None:
        self.send_response(200)
        self.end_headers()
        while True:
            self.wfile.write(b" " * 65536)

    def silent(self, _parts: list[dict[str, Any]]) -> None:
        time.sleep(HOLD_S)

    def dripping(self, _parts: list[dict[str, Any]]) -> None:
        """Send a header that never ends, one byte at a time."""
        self.wfile.write(b"HTTP/1.1 200 OK\r\nx-slow: ")
        while True:
            self.wfile.write(b"a")
            self.wfile.flush()
            time.sleep(0.05)

    def _answer(self, content: Any, status: int = 200) -> None:
        self._send(json.dumps(content).encode(), status)

    def _send(self, content: bytes, status: int = 200, encoding: str | None = None) -> None:
        self.send_response(status)
        if encoding:
            self.send_header("content-encoding", encoding)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def main() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    sys.stdout.write(f"http://127.0.0.1:{server.server_port}\n")
    sys.stdout.flush()
    server.serve_forever()


if __name__ == "__main__":
    main()
