"""A model hub on loopback: the parts of the HTTP API of the Hugging Face Hub that a download uses, from a folder."""

import hashlib
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from json import dumps
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "1" * 40
REVISIONS = ("main", COMMIT)
CHUNK = 8192


@contextmanager
def model_hub(
    repository: str,
    folder: Path,
    *,
    bytes_per_s: float = 1e12,
    is_gated: bool = False,
    error: tuple[int, str] | None = None,
) -> Iterator[str]:
    """Serve the files of a folder as a repository, and yield the URL for `HF_ENDPOINT`.

    Args:
        is_gated: Show the list of files, but not the files.
        error: Status and message of the response to every request.
        bytes_per_s: Speed of each download.
    """
    files = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._respond(with_body=False)

        def do_GET(self) -> None:
            self._respond(with_body=True)

        def _respond(self, *, with_body: bool) -> None:
            if error is not None:
                self.send_response(error[0])
                self.send_header("X-Error-Message", error[1])
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            path = unquote(urlsplit(self.path).path)
            if path.startswith(f"/api/models/{repository}/revision/") and path.rsplit("/", 1)[1] not in REVISIONS:
                self._refuse(404, "RevisionNotFound")
                return
            if path == f"/api/models/{repository}" or path.startswith(f"/api/models/{repository}/"):
                self._json(path, with_body)
                return
            prefix = f"/{repository}/resolve/"
            name = path.removeprefix(prefix).partition("/")[2] if path.startswith(prefix) else ""
            if name not in files:
                self._refuse(404, "EntryNotFound" if path.startswith(prefix) else "RepoNotFound")
                return
            if is_gated:
                self._refuse(403, "GatedRepo")
                return
            body = files[name].read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            for start in range(0, len(body), CHUNK) if with_body else ():
                self.wfile.write(body[start : start + CHUNK])
                time.sleep(CHUNK / bytes_per_s)

        def _refuse(self, status: int, code: str) -> None:
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def _json(self, path: str, with_body: bool) -> None:
            if "/tree/" in path:
                content: object = [
                    {"type": "file", "path": name, "size": file.stat().st_size, "oid": "0" * 40}
                    for name, file in files.items()
                ]
            else:
                content = {
                    "_id": "0",
                    "id": repository,
                    "sha": COMMIT,
                    "siblings": [{"rfilename": name} for name in files],
                    "tags": [],
                    "downloads": 0,
                    "private": False,
                }
            body = dumps(content).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if with_body:
                self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
