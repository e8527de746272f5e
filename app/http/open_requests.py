"""Ends requests in progress when their API key is revoked or expires: event streams, long polls, downloads.

An API server reads the keys of its open requests once a second, all of them with one command.
"""

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

import anyio
from anyio.to_thread import run_sync
from redis.exceptions import RedisError
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from img2img.errors import Img2ImgError
from img2img.redis.api_keys import ApiKeys

from .problem_details import problem_response

CHECK_S = 1.0
RECORD_EXPIRIES_S = 60.0
# Time for the last event of a stream to be taken by the client.
LAST_EVENT_S = 1.0
# Name of the state of a request that is a function: it returns the last event of a stream that ends with an error.
ERROR_EVENT = "error_event"

log = logging.getLogger(__name__)


@dataclass(eq=False)
class _OpenRequest:
    """A request that is being processed."""

    cancellation: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    error: Img2ImgError | None = None


class OpenRequests:
    """The requests in progress that were made with an API key."""

    def __init__(self, keys: ApiKeys) -> None:
        self._keys = keys
        self._by_key: defaultdict[str, set[_OpenRequest]] = defaultdict(set)
        # Not one of the threads that requests may occupy.
        self._limiter = anyio.CapacityLimiter(1)
        self._record_expiries_at = 0.0

    async def run_request(self, key_id: str, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        """Process a request. If the key becomes invalid meanwhile, the response ends:

        - A response that has not started is a 401.
        - An event stream ends with an event `error`.
        - Any other response is cut off, by closing the connection. `InFlightMiddleware` sends responses in parts, each
          when the client has received those before it.
        """
        request, response = _OpenRequest(), _Response(send)
        self._by_key[key_id].add(request)
        try:
            with request.cancellation:
                await app(scope, receive, response.send)
        finally:
            self._by_key[key_id].discard(request)
            if not self._by_key[key_id]:
                del self._by_key[key_id]
        if request.error is not None and request.cancellation.cancelled_caught:
            await response.end(request.error, scope, receive)

    async def run(self) -> None:
        """End requests whose key has become invalid, until cancelled."""
        while True:
            await asyncio.sleep(CHECK_S)
            try:
                await self._check()
            except (RedisError, OSError) as error:
                log.info("open requests wait for Redis: %s", error)
            except Exception:
                log.exception("the keys of open requests could not be checked")

    async def _check(self) -> None:
        key_ids = list(self._by_key)
        if key_ids:
            found = await run_sync(self._keys.get, key_ids, limiter=self._limiter)
            for key_id in key_ids:
                error = self._keys.error(found.get(key_id))
                if error is not None:
                    self._end(key_id, error)
        if time.monotonic() >= self._record_expiries_at:
            self._record_expiries_at = time.monotonic() + RECORD_EXPIRIES_S
            await run_sync(self._keys.record_expiries, limiter=self._limiter)

    def _end(self, key_id: str, error: Img2ImgError) -> None:
        for request in list(self._by_key.get(key_id, ())):
            request.error = error
            request.cancellation.cancel()


class _Response:
    """A response that can be ended early."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._is_started = False
        self._is_event_stream = False
        self._is_complete = False

    async def send(self, message: Message) -> None:
        """Send an ASGI message."""
        if message["type"] != "http.response.body":
            self._is_started = True
            self._is_event_stream = _media_type(message) == "text/event-stream"
        await self._send(message)
        self._is_complete = message["type"] == "http.response.body" and not message.get("more_body", False)

    async def end(self, error: Img2ImgError, scope: Scope, receive: Receive) -> None:
        """End the response because of an error. One that can only be cut off is left to the server to close."""
        if not self._is_started:
            await problem_response(error)(scope, receive, self._send)
        elif self._is_event_stream and not self._is_complete:
            last: Callable[[Img2ImgError], bytes] = scope["state"].get(ERROR_EVENT, problem_event)
            with anyio.move_on_after(LAST_EVENT_S):
                await self._send({"type": "http.response.body", "body": last(error), "more_body": False})


def problem_event(error: Img2ImgError) -> bytes:
    """Return the event of an error: its data are the problem document."""
    return b"event: error\ndata: " + bytes(problem_response(error).body) + b"\n\n"


def _media_type(message: Message) -> str:
    return Headers(raw=message.get("headers", [])).get("content-type", "").partition(";")[0]
