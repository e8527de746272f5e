"""HTTP as uvicorn speaks it, with one thing more: the head of a request must come in time.

uvicorn waits for the first byte, and for the end of the headers, as long as the client likes. Whoever opens many
connections and sends nothing would hold them all.
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEADER_TIMEOUT_S = 15.0  # from the connection, or the first byte after an answer, to the end of the headers


class HeaderTimeoutProtocol(HttpToolsProtocol):
    """Closes a connection whose request does not begin in time."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_has_come()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        between_requests = self.cycle is not None and self.cycle.response_complete
        if between_requests and self._head_timer is None:
            self._wait_for_head()
        super().data_received(data)

    def on_headers_complete(self) -> None:
        self._head_has_come()
        super().on_headers_complete()

    def _wait_for_head(self) -> None:
        self._head_timer = self.loop.call_later(HEADER_TIMEOUT_S, self.transport.close)

    def _head_has_come(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
