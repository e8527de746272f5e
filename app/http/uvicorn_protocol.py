"""uvicorn's HTTP protocol with limits on connections and headers, and problem documents for invalid requests.

uvicorn has no such limits: clients that open many connections and send nothing, send endless headers, or do not read
their responses could occupy all of its connections and memory.
"""

import asyncio
import re
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from img2img.errors import Img2ImgError, RequestError

from .connection_limit import SPARE_PART
from .errors import HeadersTooLarge, Overloaded
from .problem_details import problem_response
from .request_id import HEADER as REQUEST_ID_HEADER
from .request_id import new_request_id

# From the connection, or the first byte after a response, to the end of the headers.
HEADER_TIMEOUT_S = 15.0
# Of request line and headers; of the trailers of a chunked body.
MAX_HEADER_BYTES = 64 * 1024
# A browser behind two proxies sends about 40.
MAX_HEADERS = 128
# Requests of a connection that wait for the response to an earlier one. Each takes 5 KB, and could have 40 bytes.
MAX_PIPELINED = 16
# A client has to receive about 50 KB of a response in this time. A connection that was closed has to be gone.
WRITE_TIMEOUT_S = 30.0
# How often that is checked.
CHECK_S = 5.0
# A client that is rejected while it is still sending may go on for this long.
LINGER_S = 2.0
# When the process stops, responses may take this long. uvicorn logs an error for those that take 5 s.
SHUTDOWN_S = 4.0
# Served at any number of connections: a supervisor would restart a process that is only busy.
HEALTH_CHECKS = (b"/healthz", b"/readyz")
HOST = re.compile(rb"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~!$&'()*+,;=%-]*)(:[0-9]*)?")


class ServerProtocol(HttpToolsProtocol):
    """A connection. The lifespan state of the application has its limit, and what to call when the process stops."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._header_timer: asyncio.TimerHandle | None = None
        self._check_timer: asyncio.TimerHandle | None = None
        # Bytes of the part of a request that the parser has not finished: headers, trailers, the size of a chunk.
        self._unfinished_bytes = 0
        # Further bytes are discarded.
        self._is_refused = False
        # Since when the connection waits for a request, if it does.
        self._waiting_since = 0.0
        # The request that is being processed; `cycle` is the last one that was received.
        self._running: RequestResponseCycle | None = None
        # Since when the client has not received what was written, or the connection should be closed.
        self._stalled_since: float | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._waiting_since = self.loop.time()
        if len(self.connections) > self._max_connections * (1 + SPARE_PART):
            self._abort_longest_waiting()
            if transport.is_closing():
                return
        self._start_header_timer()
        self._check_timer = self.loop.call_later(CHECK_S, self._check_progress)

    def _abort_longest_waiting(self) -> None:
        """Abort the connection that has sent no complete headers for the longest time, so that new ones get a response.

        Without one, this connection is the only one that waits.
        """
        waiting = [
            other
            for other in self.connections
            if isinstance(other, ServerProtocol) and not other._has_open_request and not other.transport.is_closing()
        ]
        min(waiting, key=lambda other: other._waiting_since).transport.abort()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._waiting_since = self.loop.time()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_header_timer()
        if self._check_timer is not None:
            self._check_timer.cancel()
        super().connection_lost(exc)

    @property
    def _max_connections(self) -> int:
        limit: int = self.app_state.get("max_connections", 1000)
        return limit

    @property
    def _has_open_request(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def data_received(self, data: bytes) -> None:
        if not self._has_open_request and self.cycle is not None and self._header_timer is None:
            self._start_header_timer()
        # In parts, so that the parser never has much more than the limit: it joins the parts of a header again and
        # again, which takes quadratic time.
        for start in range(0, len(data), MAX_HEADER_BYTES):
            if self._is_refused or self.transport.is_closing():
                return
            part = data[start : start + MAX_HEADER_BYTES]
            self._unfinished_bytes += len(part)
            super().data_received(part)
            if self._unfinished_bytes > MAX_HEADER_BYTES and not self._is_refused:
                self._refuse(HeadersTooLarge(f"Headers may have {MAX_HEADER_BYTES:,} bytes in all."))

    def eof_received(self) -> None:
        if self._has_open_request and self.cycle.more_body and not self._is_refused:
            self._refuse(RequestError("The request body ended early."))

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        if len(self.headers) > MAX_HEADERS:
            self._refuse(HeadersTooLarge(f"At most {MAX_HEADERS} headers are accepted."))

    def on_headers_complete(self) -> None:
        self._unfinished_bytes = 0
        self._cancel_header_timer()
        if self._is_refused:
            return
        hosts = [value for name, value in self.headers if name == b"host"]
        if len(hosts) > 1 or (not hosts and self.parser.get_http_version() == "1.1"):
            self._refuse(RequestError(f"A request needs one Host header; this one has {len(hosts)}."))
        elif hosts and not HOST.fullmatch(hosts[0]):
            self._refuse(RequestError("The Host header is not a host name with an optional port."))
        elif len(self.connections) > self._max_connections and not self.url.startswith(HEALTH_CHECKS):
            self._refuse(Overloaded("The server has too many connections; try again in a few seconds."))
        elif len(self.pipeline) >= MAX_PIPELINED:
            self._refuse(RequestError("Too many requests at once on one connection."))
        else:
            super().on_headers_complete()
            if self.parser.should_upgrade():
                # There are no other protocols. The parser ends with this request.
                self.cycle.keep_alive = False

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def _should_upgrade_to_ws(self) -> bool:
        """Whether there are WebSockets. Their protocol would have none of these limits."""
        return False

    def _unsupported_upgrade_warning(self) -> None:
        """Called after a request with the header `Upgrade`, which is processed like any other. Logs nothing."""

    def on_body(self, body: bytes) -> None:
        self._unfinished_bytes = 0
        if not self._is_refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._unfinished_bytes = 0
        if not self._is_refused:
            super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Respond to a request that cannot be parsed."""
        if not self._is_refused:
            self._refuse(RequestError(msg))

    def _refuse(self, error: Img2ImgError) -> None:
        """Respond with an error, discard the rest of the request, and close the connection."""
        self._is_refused = True
        self._cancel_header_timer()
        if self.pipeline and self.cycle.more_body:
            self.pipeline.popleft()
            previous = self.pipeline[0][0] if self.pipeline else self._running
            assert previous is not None
            self.cycle = previous
        if self._has_open_request and not self.cycle.more_body:
            # The responses to complete requests come first, and are the last ones.
            self.cycle.keep_alive = False
            return
        if self._has_open_request:
            is_started = self.cycle.response_started
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            if is_started:
                self.transport.close()
                return
        path = self.url.partition(b"?")[0].decode("latin-1")
        response = problem_response(error, {REQUEST_ID_HEADER: new_request_id()}).for_path(path)
        self.transport.write(STATUS_LINE[response.status_code])
        for name, value in (*self.server_state.default_headers, *response.raw_headers, (b"connection", b"close")):
            self.transport.write(b"%s: %s\r\n" % (name, value))
        self.transport.write(b"\r\n" + bytes(response.body))
        # Closing a socket with unread data resets the connection, and the client might never see the response.
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(LINGER_S, self.transport.close)

    def shutdown(self) -> None:
        """Called for each connection when the process stops."""
        begin_shutdown = self.app_state.get("begin_shutdown")
        if begin_shutdown is not None:
            begin_shutdown()
        super().shutdown()
        self.loop.call_later(SHUTDOWN_S, self.transport.abort)

    def pause_writing(self) -> None:
        """Called when the client receives more slowly than the response is written."""
        super().pause_writing()
        self._stalled_since = self.loop.time()

    def resume_writing(self) -> None:
        """Called when the client has received most of the written data."""
        super().resume_writing()
        self._stalled_since = None

    def _check_progress(self) -> None:
        """Abort the connection if the client does not receive its response."""
        now = self.loop.time()
        if self._stalled_since is None and self.transport.is_closing():
            self._stalled_since = now
        if self._stalled_since is not None and now - self._stalled_since > WRITE_TIMEOUT_S:
            self.transport.abort()
            return
        self._check_timer = self.loop.call_later(CHECK_S, self._check_progress)

    def _start_header_timer(self) -> None:
        self._header_timer = self.loop.call_later(HEADER_TIMEOUT_S, self.transport.close)

    def _cancel_header_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None
