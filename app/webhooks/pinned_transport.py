"""Connects to checked addresses only.

A host name is resolved once, all of its addresses are checked, and the connection is made to one of them. A second
lookup could return another address (DNS rebinding).
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address

import httpcore

from .ssrf_guard import is_public

Resolver = Callable[[str, int], Awaitable[list[str]]]

# Addresses of one host that are tried.
MAX_CONNECT_ATTEMPTS = 4

# A lookup cannot be cancelled, and with a slow name server takes longer than an attempt. So there are more threads than
# attempts in flight, of which one owner has a part.
_lookups = ThreadPoolExecutor(512, thread_name_prefix="lookup")


class NonPublicAddress(httpcore.ConnectError):
    """The host has an address that is not public."""


async def system_resolver(host: str, port: int) -> list[str]:
    """Return the addresses of a host from the resolver of the operating system. Raises OSError."""
    loop = asyncio.get_running_loop()
    found = await loop.run_in_executor(_lookups, lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


class PinnedTransport(httpcore.AsyncNetworkBackend):
    """Network backend that connects to checked addresses. TLS still verifies the host name of the URL."""

    def __init__(
        self,
        resolver: Resolver = system_resolver,
        network: httpcore.AsyncNetworkBackend | None = None,
        *,
        allow_private: bool = False,
    ) -> None:
        self._resolver = resolver
        self._allow_private = allow_private
        self._network = network or httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect to a host. Raises NonPublicAddress if one of its addresses is private, OSError or httpcore errors."""
        addresses = await self._resolver(host, port)
        if not self._allow_private and not all(is_public(ip_address(address)) for address in addresses):
            raise NonPublicAddress
        failure: Exception = OSError("the host has no address")
        for address in addresses[:MAX_CONNECT_ATTEMPTS]:
            try:
                return await self._network.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure
