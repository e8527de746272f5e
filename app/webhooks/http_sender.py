"""Sends one POST per delivery attempt, without redirects, proxies or cookies; the response body is not read."""

import asyncio
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus

import httpcore

from .pinned_transport import NonPublicAddress, PinnedTransport
from .retry_policy import parse_retry_after

CONNECT_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class DeliveryResponse:
    """Response of a receiver, or the reason why there is none."""

    status: int | None = None
    error: str | None = None
    retry_after_s: float | None = None

    @property
    def is_delivered(self) -> bool:
        return self.status is not None and 200 <= self.status < 300

    @property
    def is_final(self) -> bool:
        """Whether there is nothing to retry: the event is delivered, or the receiver wants no more (410)."""
        return self.is_delivered or self.status == HTTPStatus.GONE


class HttpSender:
    """Posts to receivers, each time on a new connection to a checked address.

    Args:
        timeout_s: Longest timeout of a whole attempt.
        allow_http: Whether URLs may be plain http.
        ssl_context: Trusted certificates; by default those of the system and of certifi.
    """

    def __init__(
        self,
        transport: PinnedTransport,
        *,
        timeout_s: float,
        allow_http: bool,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self._transport = transport
        self._timeout_s = timeout_s
        self._allow_http = allow_http
        self._ssl_context = ssl_context or httpcore.default_ssl_context()

    async def post(
        self, url: str, headers: Mapping[str, str], body: bytes, timeout_s: float | None = None
    ) -> DeliveryResponse:
        """Return the response. Failures of the receiver or the network are returned as well, never raised.

        Args:
            timeout_s: Timeout of this attempt, if it is shorter than that of the sender.
        """
        limit_s = min(self._timeout_s, timeout_s or self._timeout_s)
        if not self._allow_http and not url.startswith("https:"):
            return DeliveryResponse(error="the URL is not https")
        try:
            async with asyncio.timeout(limit_s):
                return await self._post(url, headers, body)
        except NonPublicAddress:
            return DeliveryResponse(error="the host has an address that is not public")
        except (TimeoutError, httpcore.TimeoutException):
            return DeliveryResponse(error=f"no response within {limit_s:g} s")
        except (httpcore.NetworkError, httpcore.ProtocolError, OSError, ValueError) as error:
            return DeliveryResponse(error=_reason(error))

    async def _post(self, url: str, headers: Mapping[str, str], body: bytes) -> DeliveryResponse:
        async with httpcore.AsyncConnectionPool(
            ssl_context=self._ssl_context, network_backend=self._transport, max_keepalive_connections=0
        ) as pool:
            timeouts = {"connect": min(CONNECT_TIMEOUT_S, self._timeout_s)}
            async with pool.stream(
                "POST", url, headers=list(headers.items()), content=body, extensions={"timeout": timeouts}
            ) as response:
                retry_after = {name.lower(): value for name, value in response.headers}.get(b"retry-after", b"")
                retry_after_s = parse_retry_after(retry_after.decode("latin-1"), time.time())
                error = None if 200 <= response.status < 300 else f"status {response.status}"
                return DeliveryResponse(response.status, error, retry_after_s)


def _reason(error: Exception) -> str:
    """Return one line for `last_error` of the delivery."""
    text = str(error) or type(error).__name__
    return text.split("\n")[0][:200]
