"""A receiver of webhooks: an HTTP server on loopback that records requests and sends configured responses."""

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from standardwebhooks import Webhook

from tests.support.processes import wait_for


@dataclass
class Received:
    """A received request."""

    path: str
    headers: dict[str, str]
    body: bytes
    at: float = field(default_factory=time.time)


@dataclass
class Receiver:
    """The URL and the requests of a receiver.

    Attributes:
        responses: status and headers of the first responses; further responses are 204.
        hold: responses wait until it is set.
    """

    url: str = ""
    got: list[Received] = field(default_factory=list)
    responses: list[tuple[int, Mapping[str, str]]] = field(default_factory=list)
    hold: threading.Event = field(default_factory=threading.Event)

    def wait(self, requests: int, timeout_s: float = 60) -> list[Received]:
        """Wait for this number of requests, and return all requests."""
        wait_for(lambda: len(self.got) >= requests, timeout_s)
        return list(self.got)

    def of(self, job_id: str) -> list[Received]:
        return [received for received in list(self.got) if received.headers["webhook-id"] == job_id]


def verified(received: Received, secret: str) -> dict[str, Any]:
    """Return the event after verifying its signature."""
    event: dict[str, Any] = Webhook(secret).verify(received.body, received.headers)
    return event


@contextmanager
def receiving(*responses: tuple[int, Mapping[str, str]], held: bool = False) -> Iterator[Receiver]:
    """Run a receiver.

    Args:
        held: responses wait until the test sets `hold`.
    """
    receiver = Receiver(responses=list(responses))
    if not held:
        receiver.hold.set()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            status, extra = receiver.responses.pop(0) if receiver.responses else (204, {})
            receiver.got.append(Received(self.path, headers, body))
            receiver.hold.wait(60)
            self.send_response(status)
            for name, value in extra.items():
                self.send_header(name, value)
            self.end_headers()

        do_GET = do_POST  # noqa: N815  # a GET is recorded as well

        def log_message(self, *_: object) -> None:
            return

        def handle(self) -> None:
            try:
                super().handle()
            except OSError:
                # The dispatcher was killed or has timed out.
                return

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 256

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        receiver.url = f"http://127.0.0.1:{server.server_port}/hook"
        try:
            yield receiver
        finally:
            receiver.hold.set()
            server.shutdown()
            thread.join()
