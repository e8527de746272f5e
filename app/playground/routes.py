"""Serves the built files of the page: `static/`, which `make web` writes."""

import gzip
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Header, HTTPException, Response

STATIC = Path(__file__).with_name("static")
INDEX = "index.html"
# No inline scripts or styles, no other origin. Previews are data: URIs, images that need an API key are blob: URLs.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
}
# Names of assets contain a hash of their content.
IMMUTABLE = "public, max-age=31536000, immutable"
# Not from the system's table, which may lack types or name others.
MEDIA_TYPES = {
    ".html": "text/html",
    ".js": "text/javascript",
    ".css": "text/css",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".webp": "image/webp",
}
COMPRESSED = frozenset({"text/html", "text/javascript", "text/css", "image/svg+xml"})


@dataclass(frozen=True)
class StaticFile:
    """A file of the page, in memory, with its compressed form if that is smaller."""

    media_type: str
    body: bytes
    compressed: bytes | None
    etag: str

    @classmethod
    def read(cls, path: Path) -> "StaticFile":
        body = path.read_bytes()
        media_type = MEDIA_TYPES[path.suffix]
        compressed = gzip.compress(body, mtime=0) if media_type in COMPRESSED else None
        return cls(media_type, body, compressed, sha256(body).hexdigest()[:32])

    def respond(self, headers: dict[str, str], accept_encoding: str, if_none_match: str) -> Response:
        """Return the file, or 304 if the client has it."""
        is_compressed = self.compressed is not None and accepts_gzip(accept_encoding)
        etag = f'"{self.etag}{"-gzip" if is_compressed else ""}"'
        headers = headers | SECURITY_HEADERS | {"ETag": etag, "Vary": "Accept-Encoding"}
        if etag in (tag.strip().removeprefix("W/") for tag in if_none_match.split(",")):
            return Response(status_code=304, headers=headers)
        if is_compressed:
            return Response(self.compressed, media_type=self.media_type, headers=headers | {"Content-Encoding": "gzip"})
        return Response(self.body, media_type=self.media_type, headers=headers)


def accepts_gzip(accept_encoding: str) -> bool:
    """Check whether `Accept-Encoding` names gzip, without the weight 0."""
    for item in accept_encoding.lower().split(","):
        name, _, weight = item.replace(" ", "").partition(";q=")
        if name == "gzip":
            return weight.strip("0.") != "" or not weight
    return False


AcceptEncoding = Annotated[str, Header()]
IfNoneMatch = Annotated[str, Header()]


def playground_router() -> APIRouter:
    """Return the routes of the page, with its files in memory."""
    router = APIRouter(include_in_schema=False)
    index = StaticFile.read(STATIC / INDEX)
    assets = {path.name: StaticFile.read(path) for path in (STATIC / "assets").iterdir()}

    @router.get("/")
    async def get_page(accept_encoding: AcceptEncoding = "", if_none_match: IfNoneMatch = "") -> Response:
        headers = {"Cache-Control": "no-cache", "Content-Security-Policy": CONTENT_SECURITY_POLICY}
        return index.respond(headers, accept_encoding, if_none_match)

    @router.get("/assets/{name}")
    async def get_asset(name: str, accept_encoding: AcceptEncoding = "", if_none_match: IfNoneMatch = "") -> Response:
        if name not in assets:
            raise HTTPException(404, "There is no such file; reload the page.")
        return assets[name].respond({"Cache-Control": IMMUTABLE}, accept_encoding, if_none_match)

    return router
