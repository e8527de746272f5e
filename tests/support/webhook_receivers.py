"""A real receiver of webhooks: an HTTP server on loopback that keeps what it got and answers as it is told."""

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
    """One request as it came."""

    path: str
    headers: dict[str, str]
    body: bytes
    at: float = field(default_factory=time.time)


@dataclass
class Receiver:
    """answers: status and headers of the first answers, then of all others 204."""

    url: str = ""
    got: list[Received] = field(default_factory=list)
    answers: list[tuple[int, Mapping[str, str]]] = field(default_factory=list)
    hold: threading.Event = field(default_factory=threading.Event)  # an answer waits until it is set

    def wait(self, requests: int, timeout_s: float = 60) -> list[Received]:
        """The requests, once there are so many."""
        wait_for(lambda: len(self.got) >= requests, timeout_s)
        return list(self.got)

    def of(self, job_id: str) -> list[Received]:
        return [received for received in list(self.got) if received.headers["webhook-id"] == job_id]


def verified(received: Received, secret: str) -> dict[str, Any]:
    """The event, if its signature is good."""
    event: dict[str, Any] = Webhook(secret).verify(received.body, received.headers)
    return event


@contextmanager
def receiving(*answers: tuple[int, Mapping[str, str]], held: bool = False) -> Iterator[Receiver]:
    """A receiver at its url. held: it takes requests, and answers none before `hold` is set."""
    receiver = Receiver(answers=list(answers))
    if not held:
        receiver.hold.set()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            status, extra = receiver.answers.pop(0) if receiver.answers else (204, {})
            receiver.got.append(Received(self.path, headers, body))
            receiver.hold.wait(60)
            self.send_response(status)
            for name, value in extra.items():
                self.send_header(name, value)
            self.end_headers()

        do_GET = do_POST  # noqa: N815  # whoever asked by GET is found out

        def log_message(self, *_: object) -> None:
            return

        def handle(self) -> None:
            try:
                super().handle()
            except OSError:  # the dispatcher has been killed or has timed out
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
