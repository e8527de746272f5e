"""Who may enter, and how much they may send: decided before the body is read."""

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.contract.errors import TooLarge
from app.errors import problem_response


class BodyLimit:
    """Refuses a body that says it is too large at once, and one that turns out to be while it streams."""

    def __init__(self, app: ASGIApp, max_body_bytes: int) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        too_large = TooLarge(f"A request body may have {self._max_body_bytes:,} bytes, and this one has more.")
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
