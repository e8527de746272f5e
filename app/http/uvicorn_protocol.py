"""uvicorn's HTTP protocol with a timeout for request headers.

uvicorn waits without limit for the first byte of a request and for the end of its headers, so clients that open many
connections and send nothing could occupy all of them ("Slowloris").
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

# From the connection, or the first byte after a response, to the end of the headers.
HEADER_TIMEOUT_S = 15.0


class HeaderTimeoutProtocol(HttpToolsProtocol):
    """Closes a connection if the headers of a request do not arrive in time."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._header_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        between_requests = self.cycle is not None and self.cycle.response_complete
        if between_requests and self._header_timer is None:
            self._start_timer()
        super().data_received(data)

    def on_headers_complete(self) -> None:
        self._cancel_timer()
        super().on_headers_complete()

    def _start_timer(self) -> None:
        self._header_timer = self.loop.call_later(HEADER_TIMEOUT_S, self.transport.close)

    def _cancel_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None
