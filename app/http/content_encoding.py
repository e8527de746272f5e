"""Refuses compressed request bodies."""

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from img2img.errors import UnsupportedMedia

from .problem_details import problem_response


class ContentEncodingMiddleware:
    """Responds to a compressed request body with 415 (RFC 9110, section 15.5.16). Images are compressed already."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            encoding = Headers(scope=scope).get("content-encoding", "").strip()
            if encoding.lower() not in ("", "identity"):
                error = UnsupportedMedia(f"The request body is compressed ({encoding[:40]}); send it uncompressed.")
                error.field = "Content-Encoding"
                await problem_response(error, {"Accept-Encoding": "identity"})(scope, receive, send)
                return
        await self._app(scope, receive, send)
