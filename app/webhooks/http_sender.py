"""One attempt to deliver: one POST. No redirects, no proxies, no cookies, and the answer's body is not read."""

import asyncio
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus

import httpcore

from .pinned_transport import NonPublicAddress, PinnedTransport
from .retry_policy import parse_retry_after

CONNECT_S = 5.0


@dataclass(frozen=True)
class DeliveryResponse:
    """What a receiver answered, or why there is no answer."""

    status: int | None = None
    error: str | None = None
    retry_after_s: float | None = None

    @property
    def is_delivered(self) -> bool:
        return self.status is not None and 200 <= self.status < 300

    @property
    def is_final(self) -> bool:
        """Whether it is of no use to try again: the receiver has it, or wants nothing more."""
        return self.is_delivered or self.status == HTTPStatus.GONE


class HttpSender:
    """Posts to receivers; each attempt on a connection of its own, to an address that was checked for it."""

    def __init__(
        self, network: PinnedTransport, *, timeout_s: float, allow_http: bool, ssl_context: ssl.SSLContext | None = None
    ) -> None:
        """timeout_s: for the whole attempt. ssl_context: whom to trust; by default whom the system and certifi do."""
        self._network = network
        self._timeout_s = timeout_s
        self._allow_http = allow_http
        self._ssl_context = ssl_context or httpcore.default_ssl_context()

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> DeliveryResponse:
        """Never raises for what a receiver does."""
        if not self._allow_http and not url.startswith("https:"):
            return DeliveryResponse(error="the URL is not https")
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._post(url, headers, body)
        except NonPublicAddress:
            return DeliveryResponse(error="the host has an address that is not public")
        except (TimeoutError, httpcore.TimeoutException):
            return DeliveryResponse(error=f"no answer within {self._timeout_s:g} s")
        except (httpcore.NetworkError, httpcore.ProtocolError, OSError, ValueError) as error:
            return DeliveryResponse(error=_reason(error))

    async def _post(self, url: str, headers: Mapping[str, str], body: bytes) -> DeliveryResponse:
        async with httpcore.AsyncConnectionPool(
            ssl_context=self._ssl_context, network_backend=self._network, max_keepalive_connections=0
        ) as pool:
            timeouts = {"connect": min(CONNECT_S, self._timeout_s)}
            async with pool.stream(
                "POST", url, headers=list(headers.items()), content=body, extensions={"timeout": timeouts}
            ) as response:
                asked = {name.lower(): value for name, value in response.headers}.get(b"retry-after", b"")
                retry_after_s = parse_retry_after(asked.decode("latin-1"), time.time())
                error = None if 200 <= response.status < 300 else f"answered {response.status}"
                return DeliveryResponse(response.status, error, retry_after_s)


def _reason(error: Exception) -> str:
    """One line for the client who waits for the webhook."""
    text = str(error) or type(error).__name__
    return text.split("\n")[0][:200]
