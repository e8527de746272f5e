"""Ids of requests: in the header `X-Request-ID` of every response, and in the log records of the request."""

import re
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from img2img.telemetry.logging import request_context

HEADER = "X-Request-ID"
# Ids of proxies: UUIDs and other hexadecimal numbers. Other text could be data of clients, which logs must not contain.
ACCEPTED = re.compile(r"[0-9A-Fa-f-]{16,48}")


def new_request_id() -> str:
    """Return an id for a request that has none."""
    return uuid4().hex


class RequestIdMiddleware:
    """Gives every request an id: that of its header `X-Request-ID` if it is a hexadecimal number, else a new one."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(HEADER, "")
        request_id = given if ACCEPTED.fullmatch(given) else new_request_id()
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[HEADER] = request_id
            await send(message)

        with request_context(request_id):
            await self._app(scope, receive, send_with_id)
