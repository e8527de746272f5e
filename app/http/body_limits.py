"""How much clients may send, and how long they may take: decided before and while the body is read."""

import asyncio
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import PayloadTooLarge, RequestTimeout
from .problem_details import problem_response

IDLE_S = 15.0  # between two pieces of a body
LINGER_S = 2.0  # who is refused while it still sends may do so for this long


class BodySizeLimitMiddleware:
    """Refuses a body that says it is too large at once, and one that turns out to be while it streams."""

    def __init__(self, app: ASGIApp, max_body_bytes: int) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        too_large = PayloadTooLarge(f"A request body may have {self._max_body_bytes:,} bytes, and this one has more.")
        declared = Headers(scope=scope).get("content-length", "0")
        if declared.isdecimal() and int(declared) > self._max_body_bytes:
            await problem_response(too_large)(scope, receive, send)
            return
        received = 0

        async def counted_receive() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_body_bytes:
                raise too_large
            return message

        await self._app(scope, counted_receive, send)


class BodyTimeoutMiddleware:
    """Bounds how long a body may take, and ends the connection of whoever is answered before its body has come.

    Such a connection is not closed at once: what the client sends meanwhile would reset it, and the answer could be
    lost on its way. What comes is thrown away for a moment.
    """

    def __init__(self, app: ASGIApp, timeout_s: float) -> None:
        self._app = app
        self._timeout_s = timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not _has_body(scope):
            await self._app(scope, receive, send)
            return
        body = _TimedBody(receive, send, self._timeout_s)
        await self._app(scope, body.receive, body.send)


class _TimedBody:
    """One request with a body, and its answer."""

    def __init__(self, receive: Receive, send: Send, timeout_s: float) -> None:
        self._receive = receive
        self._send = send
        self._timeout_s = timeout_s
        self._give_up_at = time.monotonic() + timeout_s
        self._has_come = False
        self._answered = False

    async def receive(self) -> Message:
        """Raises TooSlow."""
        if self._has_come:
            return await self._receive()  # waits until the client goes
        try:
            async with asyncio.timeout(min(IDLE_S, self._give_up_at - time.monotonic())):
                return await self._next()
        except TimeoutError:
            if self._answered:  # nobody could be told
                return {"type": "http.disconnect"}
            message = (
                f"The request body did not arrive in time: in {self._timeout_s:g} s, without a pause of {IDLE_S:g} s."
            )
            raise RequestTimeout(message) from None

    async def _next(self) -> Message:
        message = await self._receive()
        self._has_come = not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        self._answered = True
        if self._has_come:
            await self._send(message)
        elif message["type"] == "http.response.start":
            MutableHeaders(scope=message)["Connection"] = "close"
            await self._send(message)
        elif message.get("more_body", False):
            await self._send(message)
        else:
            await self._send({**message, "more_body": True})  # all of the answer, but for its end
            await self._linger()
            await self._send({"type": "http.response.body"})

    async def _linger(self) -> None:
        try:
            async with asyncio.timeout(LINGER_S):
                while not self._has_come:
                    await self._next()
        except TimeoutError:
            return


def _has_body(scope: Scope) -> bool:
    headers = Headers(scope=scope)
    return "transfer-encoding" in headers or headers.get("content-length", "0") != "0"
