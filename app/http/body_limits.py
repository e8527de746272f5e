"""Limits on request bodies: their size, and the time that they take to arrive.

uvicorn has neither limit. The timeout is a defence against slow clients that hold connections open ("Slowloris",
R-U-Dead-Yet). `FastAPI(max_body_size=)` is not used, because it rejects a declared Content-Length with text/plain.
"""

import asyncio
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import PayloadTooLarge, RequestTimeout
from .problem_details import problem_response

# Longest pause between two parts of a body.
IDLE_TIMEOUT_S = 15.0
# A client that is rejected while it is still sending may go on for this long.
LINGER_S = 2.0


def declared_length(scope: Scope) -> int:
    """Return the Content-Length of a request, 0 if there is none. The server has checked that it fits into 64 bits."""
    declared = Headers(scope=scope).get("content-length", "").lstrip("0")
    # Python converts at most 4,300 digits, zeros included.
    return int(declared) if declared.isdecimal() else 0


class BodySizeLimitMiddleware:
    """Rejects a body that is too large: at once by its Content-Length, else when the limit is passed."""

    def __init__(self, app: ASGIApp, max_body_bytes: int) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        too_large = f"The request body is larger than {self._max_body_bytes:,} bytes."
        if declared_length(scope) > self._max_body_bytes:
            await problem_response(PayloadTooLarge(too_large))(scope, receive, send)
            return
        received = 0

        async def counted_receive() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_body_bytes:
                raise PayloadTooLarge(too_large)
            return message

        await self._app(scope, counted_receive, send)


class BodyTimeoutMiddleware:
    """Limits the time for a request body, and closes the connection if the response precedes the end of the body.

    The connection is not closed at once, but lingers while the rest of the body is discarded: closing a socket with
    unread data resets the connection, and the client might never see the response (RFC 9112, section 9.6).
    """

    def __init__(self, app: ASGIApp, timeout_s: float) -> None:
        self._app = app
        self._timeout_s = timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not _has_body(scope):
            await self._app(scope, receive, send)
            return
        exchange = _TimedExchange(receive, send, self._timeout_s)
        await self._app(scope, exchange.receive, exchange.send)


class _TimedExchange:
    """A request with a body, and its response."""

    def __init__(self, receive: Receive, send: Send, timeout_s: float) -> None:
        self._receive = receive
        self._send = send
        self._timeout_s = timeout_s
        self._deadline = time.monotonic() + timeout_s
        self._body_complete = False
        self._response_started = False

    async def receive(self) -> Message:
        """Return the next ASGI message of the request. Raises RequestTimeout."""
        if self._body_complete:
            # Waits until the client disconnects.
            return await self._receive()
        try:
            async with asyncio.timeout(min(IDLE_TIMEOUT_S, self._deadline - time.monotonic())):
                return await self._receive_part()
        except TimeoutError:
            if self._response_started:
                # An error response can no longer be sent.
                return {"type": "http.disconnect"}
            raise RequestTimeout(
                f"The request body did not arrive within {self._timeout_s:g} s, or paused for {IDLE_TIMEOUT_S:g} s."
            ) from None

    async def _receive_part(self) -> Message:
        message = await self._receive()
        self._body_complete = not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        """Send an ASGI message of the response."""
        self._response_started = True
        if self._body_complete:
            await self._send(message)
        elif message["type"] == "http.response.start":
            MutableHeaders(scope=message)["Connection"] = "close"
            await self._send(message)
        elif message.get("more_body", False):
            await self._send(message)
        else:
            # Send the last part, but keep the response open, and with it the connection.
            await self._send({**message, "more_body": True})
            await self._discard_rest()
            await self._send({"type": "http.response.body"})

    async def _discard_rest(self) -> None:
        try:
            async with asyncio.timeout(LINGER_S):
                while not self._body_complete:
                    await self._receive_part()
        except TimeoutError:
            return


def _has_body(scope: Scope) -> bool:
    headers = Headers(scope=scope)
    return "transfer-encoding" in headers or headers.get("content-length", "0") != "0"
