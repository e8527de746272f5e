"""An S3 server in memory (moto), as a process: `python -m tests.s3_server HOST PORT [MISBEHAVIOUR]`.

Of the servers in packages this one honours `If-None-Match: *`; `rclone serve s3` takes the header and overwrites.
"""

import sys
import threading
from collections.abc import Callable, Iterable
from io import BytesIO
from typing import Any

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import run_simple

Environ = dict[str, Any]


class OneAtATime:
    """moto looks whether a key is there, and then writes it: of two requests at the same time both could write."""

    def __init__(self) -> None:
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._lock = threading.Lock()

    def __call__(self, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))  # a slow sender holds up nobody
        environ["wsgi.input"] = BytesIO(body)
        with self._lock:
            return list(self._moto(environ, start_response))


class ForgetsConditions(OneAtATime):
    """Overwrites, whatever the writer said."""

    def __call__(self, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        environ.pop("HTTP_IF_NONE_MATCH", None)
        return super().__call__(environ, start_response)


class LosesAnswers(OneAtATime):
    """Writes each blob, and says the first time that something went wrong."""

    def __init__(self) -> None:
        super().__init__()
        self._lost: set[str] = set()

    def __call__(self, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        lost = environ["REQUEST_METHOD"] == "PUT" and path.count("/") > 1 and path not in self._lost
        if not lost:
            return super().__call__(environ, start_response)
        self._lost.add(path)
        super().__call__(environ, lambda *_: None)
        start_response("500 Internal Server Error", [])
        return []


KINDS = {kind.__name__: kind for kind in (OneAtATime, ForgetsConditions, LosesAnswers)}

if __name__ == "__main__":
    host, port, *kind = sys.argv[1:]
    run_simple(host, int(port), KINDS[(kind or ["OneAtATime"])[0]](), threaded=True)
