"""An S3 server in memory (moto): `python -m tests.support.s3_server HOST PORT [KIND]`.

moto honours `If-None-Match: *`; `rclone serve s3` accepts the header and overwrites the object.
"""

import sys
import threading
from base64 import b64encode
from collections.abc import Callable, Iterable
from hashlib import sha256
from io import BytesIO
from typing import Any

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import run_simple

from tests.support.signatures import is_signed

Environ = dict[str, Any]


class SerializedRequests:
    """Handles one request at a time.

    moto checks for a key before it writes the key, so two concurrent requests could both write.
    """

    def __init__(self) -> None:
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._lock = threading.Lock()

    def __call__(self, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        # Read before the lock is taken, so that a slow sender does not delay other requests.
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        environ["wsgi.input"] = BytesIO(body)
        with self._lock:
            return list(self._moto(environ, start_response))


class IgnoresConditions(SerializedRequests):
    """Ignores `If-None-Match` and overwrites."""

    def __call__(self, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        environ.pop("HTTP_IF_NONE_MATCH", None)
        return super().__call__(environ, start_response)


class LosesResponses(SerializedRequests):
    """Writes each blob, but responds with status 500 to the first write."""

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


class ComparesChecksums(SerializedRequests):
    """Rejects blobs that come without their SHA-256, or with another one. moto ignores the header."""

    def __call__(self, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        environ["wsgi.input"] = BytesIO(body)
        is_blob = environ["REQUEST_METHOD"] == "PUT" and environ["PATH_INFO"].count("/") > 1
        if is_blob and environ.get("HTTP_X_AMZ_CHECKSUM_SHA256") != b64encode(sha256(body).digest()).decode():
            start_response("400 Bad Request", [])
            return [b"<Error><Code>BadDigest</Code></Error>"]
        return super().__call__(environ, start_response)


class ChecksSignatures(ComparesChecksums):
    """Rejects requests to a signed URL whose signature is not that of the request. moto accepts all."""

    def __call__(self, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        if "X-Amz-Signature=" in environ["QUERY_STRING"]:
            headers = {
                name.removeprefix("HTTP_").replace("_", "-").lower(): value
                for name, value in environ.items()
                if name.startswith("HTTP_") or name in ("CONTENT_TYPE", "CONTENT_LENGTH")
            }
            url = f"http://{environ['HTTP_HOST']}{environ['PATH_INFO']}?{environ['QUERY_STRING']}"
            if not is_signed(environ["REQUEST_METHOD"], url, headers):
                start_response("403 Forbidden", [])
                return [b"<Error><Code>SignatureDoesNotMatch</Code></Error>"]
        return super().__call__(environ, start_response)


KINDS = {
    kind.__name__: kind
    for kind in (SerializedRequests, IgnoresConditions, LosesResponses, ComparesChecksums, ChecksSignatures)
}

if __name__ == "__main__":
    host, port, *kind = sys.argv[1:]
    run_simple(host, int(port), KINDS[(kind or ["SerializedRequests"])[0]](), threaded=True)
