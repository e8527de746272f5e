"""Bounds the bytes that all requests together hold in memory: request bodies, and results on their way to clients."""

import ctypes

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from img2img.errors import Img2ImgError

from .body_limits import declared_length
from .errors import Overloaded
from .problem_details import problem_response

# A body counts twice: it is in memory as received and as parsed, decoded from base64, or encoded for the worker.
BODY_COPIES = 2
# The beginning of a body that is not counted, so that small requests are served at any time.
FREE_BYTES = 64 * 1024
# Part of the limit that one API key can use.
OWNER_SHARE = 0.5
# A response is handed to the connection in parts of this size, each when the client has received those before it.
PART_BYTES = 256 * 1024

M_MMAP_THRESHOLD = -3  # of glibc's malloc.h
MMAP_BYTES = 1024 * 1024


def configure_malloc() -> None:
    """Let glibc return the memory of large bodies to the kernel as soon as it is freed.

    By default it does so only at first, and then keeps blocks of up to 32 MB: 60 parallel uploads of 15 MB as JSON
    increased the memory of the process by 650 MB instead of 360 MB.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, MMAP_BYTES)


class ByteBudget:
    """Counts the bytes that requests hold, in total and by owner. Used by one event loop.

    Args:
        limit: Bytes of all requests. A request is never refused for its own size alone.
        share_limit: Bytes of the requests of one owner.
    """

    def __init__(self, limit: int, share_limit: int) -> None:
        self._limit = limit
        self._share_limit = share_limit
        self._used = 0
        self._used_by_owner: dict[str, int] = {}

    @property
    def used(self) -> int:
        """Bytes that are in use."""
        return self._used

    def check(self, owner: str, held: int, more: int) -> None:
        """Raise Overloaded if a request that holds `held` bytes cannot have `more`."""
        used_by_owner = self._used_by_owner.get(owner, 0)
        if used_by_owner > held and used_by_owner + more > self._share_limit:
            raise Overloaded("Your requests in progress hold too much data; send fewer large ones at a time.")
        if self._used > held and self._used + more > self._limit:
            raise Overloaded("All requests in progress hold too much data; try again in a few seconds.")

    def add(self, owner: str, more: int) -> None:
        """Change the bytes in use, also by a negative number."""
        self._used += more
        left = self._used_by_owner.get(owner, 0) + more
        if left:
            self._used_by_owner[owner] = left
        else:
            self._used_by_owner.pop(owner, None)


class HeldBytes:
    """The bytes that one request holds."""

    def __init__(self, budget: ByteBudget, owner: str) -> None:
        self._budget = budget
        self._owner = owner
        self._held = 0

    def check(self, more: int) -> None:
        """Raise Overloaded if `more` bytes do not fit."""
        self._budget.check(self._owner, self._held, more)

    def add(self, more: int) -> None:
        """Count bytes that the request holds from now on. Raises Overloaded."""
        self.check(more)
        self._budget.add(self._owner, more)
        self._held += more

    def release(self) -> None:
        """Count all bytes as released, which the request has dropped."""
        self._budget.add(self._owner, -self._held)
        self._held = 0


class InFlightMiddleware:
    """Counts the bytes of each request until its response is sent, and rejects those that do not fit with 503.

    Routes count further bytes with `request.state.held_bytes`.
    """

    def __init__(self, app: ASGIApp, budget: ByteBudget) -> None:
        self._app = app
        self._budget = budget

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        caller = scope.setdefault("state", {}).get("caller")
        held = scope["state"]["held_bytes"] = HeldBytes(self._budget, caller.owner if caller else "")
        try:
            # A slow client does not reserve what it has only declared.
            held.check(_counted(declared_length(scope)))
        except Img2ImgError as error:
            await problem_response(error)(scope, receive, send)
            return
        received = 0

        async def counted_receive() -> Message:
            nonlocal received
            message = await receive()
            before, received = received, received + len(message.get("body", b""))
            try:
                held.add(_counted(received) - _counted(before))
            except Overloaded:
                # At once, because the response lingers: other requests can continue.
                held.release()
                raise
            return message

        try:
            await self._app(scope, counted_receive, _in_parts(send))
        finally:
            held.release()


def _counted(body_bytes: int) -> int:
    return max(0, body_bytes - FREE_BYTES) * BODY_COPIES


def _in_parts(send: Send) -> Send:
    async def send_parts(message: Message) -> None:
        body = memoryview(message.get("body", b""))
        while len(body) > PART_BYTES:
            part, body = body[:PART_BYTES], body[PART_BYTES:]
            await send({**message, "body": bytes(part), "more_body": True})
        await send({**message, "body": bytes(body)} if "body" in message else message)

    return send_parts
