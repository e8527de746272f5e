"""Keeps web pages from using a service that needs no API key.

A page of any site can make a browser send requests to this machine: forms, images and `fetch` without CORS, whose
responses it cannot read, and by rebinding its own DNS name to 127.0.0.1 even requests whose responses it can read.
Browsers tell such requests apart by `Host`, `Origin` and Fetch Metadata (https://www.w3.org/TR/fetch-metadata/). Other
clients send no `Origin`.
"""

from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from img2img.errors import RequestError

from ..schemas.problems import truncate
from ..settings import is_loopback
from .authentication import changes_models
from .errors import ForbiddenHost, ForbiddenOrigin
from .problem_details import problem_response


class BrowserRequestMiddleware:
    """Rejects requests of web pages of other origins, and requests by an unknown host name.

    Args:
        allowed_hosts: Host names that are accepted besides `localhost` and loopback addresses; None: all.
        allowed_origins: Origins of web pages that are accepted besides the service's own; `*`: all.
    """

    def __init__(self, app: ASGIApp, allowed_hosts: Collection[str] | None, allowed_origins: Collection[str]) -> None:
        self._app = app
        self._allowed_hosts = allowed_hosts
        self._allowed_origins = allowed_origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        error = None if scope["type"] == "lifespan" else self._error(scope)
        if error is not None:
            await problem_response(error)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _error(self, scope: Scope) -> RequestError | None:
        headers, method = Headers(scope=scope), scope.get("method", "")
        # A browser always sends the header.
        host = headers.get("host", "localhost").lower()
        if not self._is_allowed_host(host):
            return ForbiddenHost(
                f"Without API keys, this service accepts requests to localhost, not to {truncate(host)}. Add the name "
                "to IMG2IMG_ALLOWED_HOSTS, or require API keys with IMG2IMG_KEYS=required."
            )
        origin = _origin_of_page(headers, method)
        if origin is None or urlsplit(origin).netloc == host:
            return None
        if self._is_allowed_origin(origin):
            if changes_models(scope):
                return ForbiddenOrigin("Without API keys, no web page of another origin may change models.")
            return None
        return ForbiddenOrigin(
            f"Without API keys, this service accepts no requests of web pages of {truncate(origin)}. Add the origin to "
            "IMG2IMG_CORS_ORIGINS."
        )

    def _is_allowed_host(self, host: str) -> bool:
        if self._allowed_hosts is None:
            return True
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        return is_loopback(name) or name in self._allowed_hosts

    def _is_allowed_origin(self, origin: str) -> bool:
        return origin in self._allowed_origins or "*" in self._allowed_origins


def _origin_of_page(headers: Headers, method: str) -> str | None:
    """Return the origin of the web page that makes a request, "null" if unknown; None for other clients and the user.

    A user makes a request by an address or a link: the browser shows the response and no page can read it.
    """
    origin = headers.get("origin")
    if origin is not None:
        return origin.lower()
    if headers.get("sec-fetch-site", "none") in ("none", "same-origin"):
        return None
    if method in ("GET", "HEAD") and headers.get("sec-fetch-dest") == "document":
        return None
    # A page can embed an image without `Origin`. The browser then sends a referrer, unless the page prevents that.
    page = urlsplit(headers.get("referer", ""))
    return f"{page.scheme}://{page.netloc}".lower() if page.netloc else "null"
