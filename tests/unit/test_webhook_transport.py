"""Delivery attempts over real sockets: addresses, TLS, redirects, proxies and timeouts."""

import asyncio
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import httpcore
import pytest
import trustme

from img2img.app.webhooks.dispatcher import MAX_IN_FLIGHT
from img2img.app.webhooks.http_sender import DeliveryResponse, HttpSender
from img2img.app.webhooks.pinned_transport import PinnedTransport
from tests.support.webhook_receivers import Receiver, receiving


class RebindingResolver:
    """A resolver of an attacker: returns a public address first and a private one next."""

    def __init__(self, *results: list[str]) -> None:
        self._results = list(results)
        self.lookups = 0

    async def __call__(self, host: str, port: int) -> list[str]:
        self.lookups += 1
        return self._results[min(self.lookups, len(self._results)) - 1]


class LoopbackNetwork(httpcore.AnyIOBackend):
    """A network that connects every address to loopback."""

    def __init__(self) -> None:
        self.dialled: list[str] = []

    async def connect_tcp(self, host: str, port: int, *rest: Any, **more: Any) -> httpcore.AsyncNetworkStream:
        self.dialled.append(host)
        return await super().connect_tcp("127.0.0.1", port, *rest, **more)


def port_of(receiver: Receiver) -> int:
    port = urlsplit(receiver.url).port
    assert port
    return port


def post(
    url: str, backend: PinnedTransport, timeout_s: float = 10, context: ssl.SSLContext | None = None
) -> DeliveryResponse:
    poster = HttpSender(backend, timeout_s=timeout_s, allow_http=True, ssl_context=context)
    return asyncio.run(poster.post(url, {"webhook-id": "x"}, b"{}"))


def test_one_private_address_rejects_the_host() -> None:
    with receiving() as receiver:
        for addresses in (["127.0.0.1"], ["192.0.2.1"], ["1.1.1.1", "127.0.0.1"], ["::ffff:127.0.0.1"]):
            network = LoopbackNetwork()
            backend = PinnedTransport(RebindingResolver(addresses), network)
            response = post(f"http://hooks.example:{port_of(receiver)}/", backend)
            assert response == DeliveryResponse(error="the host has an address that is not public")
            assert not network.dialled
        assert not receiver.got


def test_connects_to_the_checked_address() -> None:
    """The name is resolved once, so a second result cannot be used."""
    with receiving() as receiver:
        rebinding, network = RebindingResolver(["1.1.1.1"], ["127.0.0.1"]), LoopbackNetwork()
        url = f"http://rebind.example:{port_of(receiver)}/"
        assert post(url, PinnedTransport(rebinding, network)) == DeliveryResponse(204)
        assert rebinding.lookups == 1
        assert network.dialled == ["1.1.1.1"]
        assert post(url, PinnedTransport(rebinding, network)).error == "the host has an address that is not public"
        assert network.dialled == ["1.1.1.1"]
        assert len(receiver.got) == 1


PRIVATE = [
    "127.0.0.1",
    "10.0.0.1",
    "169.254.169.254",
    "100.64.0.1",
    "0.0.0.0",
    "::1",
    "fe80::1%1",
    "fd00::1",
    "::ffff:10.0.0.1",
    "::ffff:169.254.169.254",
    "64:ff9b::7f00:1",
    "2002:7f00:1::1",
    "2001:0:7f00:1::1",
    "::127.0.0.1",
    "ff02::1",
]


@pytest.mark.parametrize("private", PRIVATE)
def test_name_that_alternates_between_addresses(private: str) -> None:
    """An attacker's name server returns a private address in turn with a public one, beside it, and before it."""
    with receiving() as receiver:
        url = f"http://rebind.example:{port_of(receiver)}/"
        results = [["1.1.1.1"], [private], ["1.1.1.1", private], [private, "1.1.1.1"], ["1.1.1.1"]]
        network = LoopbackNetwork()
        backend = PinnedTransport(RebindingResolver(*results), network)
        assert [post(url, backend).status for _ in results] == [204, None, None, None, 204]
        assert network.dialled == ["1.1.1.1"] * 2


def test_name_is_looked_up_once_and_its_address_is_dialled(monkeypatch: pytest.MonkeyPatch) -> None:
    """A chain of aliases (CNAME) ends in addresses, which are checked, and no name of the chain is dialled."""
    lookups = []

    def getaddrinfo(host: str, port: int, **_: Any) -> list[Any]:
        lookups.append(host)
        address = "1.1.1.1" if len(lookups) == 1 else "169.254.169.254"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "internal.alias.example", (address, port))]

    monkeypatch.setattr("img2img.app.webhooks.pinned_transport.socket.getaddrinfo", getaddrinfo)
    network = LoopbackNetwork()
    with receiving() as receiver:
        url = f"http://alias.example:{port_of(receiver)}/"
        assert post(url, PinnedTransport(network=network)) == DeliveryResponse(204)
        assert (lookups, network.dialled) == (["alias.example"], ["1.1.1.1"])
        assert post(url, PinnedTransport(network=network)).error == "the host has an address that is not public"
        assert network.dialled == ["1.1.1.1"]


def test_slow_name_servers_do_not_delay_other_names(monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()

    def getaddrinfo(host: str, port: int, **_: Any) -> list[Any]:
        if host.startswith("slow"):
            released.wait(30)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    monkeypatch.setattr("img2img.app.webhooks.pinned_transport.socket.getaddrinfo", getaddrinfo)
    context = ssl.create_default_context()

    async def send(url: str) -> DeliveryResponse:
        sender = HttpSender(PinnedTransport(allow_private=True), timeout_s=20, allow_http=True, ssl_context=context)
        slow = [asyncio.create_task(sender.post(f"http://slow{i}.example/", {}, b"")) for i in range(MAX_IN_FLIGHT)]
        await asyncio.sleep(0.1)
        response = await sender.post(url, {}, b"{}", 5)
        released.set()
        for task in slow:
            task.cancel()
        await asyncio.gather(*slow, return_exceptions=True)
        return response

    with receiving() as receiver:
        assert asyncio.run(send(f"http://quick.example:{port_of(receiver)}/")) == DeliveryResponse(204)


def test_second_address_is_tried_if_the_first_fails() -> None:
    with receiving() as receiver:
        resolver = RebindingResolver(["127.0.0.2", "127.0.0.1"])  # the receiver listens on 127.0.0.1 only
        url = f"http://hooks.example:{port_of(receiver)}/a?b=c"
        assert post(url, PinnedTransport(resolver, allow_private=True)) == DeliveryResponse(204)
        [received] = receiver.got
        assert received.path == "/a?b=c"
        assert received.headers["host"] == f"hooks.example:{port_of(receiver)}"


def test_redirect_is_not_followed() -> None:
    with receiving() as target, receiving((302, {"Location": target.url})) as receiver:
        assert post(receiver.url, PinnedTransport(allow_private=True)) == DeliveryResponse(302, "status 302")
        assert len(receiver.got) == 1
        assert not target.got


def test_proxy_of_the_environment_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    with receiving() as proxy, receiving() as receiver:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.url)
        assert post(receiver.url, PinnedTransport(allow_private=True)) == DeliveryResponse(204)
        assert not proxy.got


def test_retry_after_is_returned() -> None:
    with receiving((503, {"Retry-After": "120"})) as receiver:
        assert post(receiver.url, PinnedTransport(allow_private=True)) == DeliveryResponse(503, "status 503", 120)


def test_unresponsive_receiver_times_out() -> None:
    with receiving(held=True) as receiver:
        response = post(receiver.url, PinnedTransport(allow_private=True), timeout_s=0.5)
        assert response == DeliveryResponse(error="no response within 0.5 s")


def test_connection_errors_are_returned() -> None:
    assert post("http://hooks.example/", PinnedTransport(RebindingResolver([]))) == DeliveryResponse(
        error="the host has no address"
    )
    with receiving() as receiver:
        url = receiver.url
    assert post(url, PinnedTransport(allow_private=True)).status is None


def test_plain_http_is_rejected_unless_allowed() -> None:
    with receiving() as receiver:
        poster = HttpSender(PinnedTransport(allow_private=True), timeout_s=5, allow_http=False)
        assert asyncio.run(poster.post(receiver.url, {}, b"{}")) == DeliveryResponse(error="the URL is not https")
        assert not receiver.got


@contextmanager
def answering(raw: bytes, context: ssl.SSLContext | None = None) -> Iterator[int]:
    """A server that sends these bytes repeatedly to every client; yields its port."""
    ready, stopped = threading.Event(), threading.Event()
    ports: list[int] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            while not stopped.is_set():
                writer.write(raw)
                await writer.drain()
                if context:
                    break
            writer.close()
        except (OSError, asyncio.IncompleteReadError):
            writer.close()

    async def serve() -> None:
        server = await asyncio.start_server(talk, "127.0.0.1", 0, ssl=context)
        ports.append(server.sockets[0].getsockname()[1])
        ready.set()
        while not stopped.is_set():
            await asyncio.sleep(0.02)
        server.close()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    ready.wait()
    try:
        yield ports[0]
    finally:
        stopped.set()
        thread.join()


def test_response_body_is_not_read() -> None:
    with answering(b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n" + b"x" * 65536) as port:
        assert post(f"http://127.0.0.1:{port}/", PinnedTransport(allow_private=True)).is_delivered
    with answering(b"HTTP/1.1 200 OK\r\n" + b"x-more: " + b"x" * 65536) as port:
        response = post(f"http://127.0.0.1:{port}/", PinnedTransport(allow_private=True))
        assert not response.is_delivered
        assert response.error


@pytest.mark.parametrize(
    ("certificate_name", "accepted"), [("hooks.example", True), ("other.example", False), ("127.0.0.1", False)]
)
def test_tls_verifies_the_host_name_of_the_url(certificate_name: str, accepted: bool) -> None:
    authority = trustme.CA()
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert(certificate_name).configure_cert(server)
    authority.configure_trust(client)
    names: list[str] = []
    server.sni_callback = lambda _socket, name, _context: names.append(name)
    backend = PinnedTransport(RebindingResolver(["127.0.0.1"]), allow_private=True)
    with answering(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", server) as port:
        response = post(f"https://hooks.example:{port}/", backend, context=client)
    assert names == ["hooks.example"]
    assert response.is_delivered is accepted
    if not accepted:
        assert "certificate verify failed" in (response.error or "")
