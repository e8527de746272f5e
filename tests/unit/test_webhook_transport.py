"""One attempt to deliver, over real sockets: which address is dialled, which name is verified, what is not followed."""

import asyncio
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import httpcore
import pytest
import trustme

from img2img.app.webhooks.http_sender import DeliveryResponse, HttpSender
from img2img.app.webhooks.pinned_transport import PinnedTransport
from tests.support.webhook_receivers import Receiver, receiving


class ChangesItsMind:
    """A name server of an attacker: public when it is looked at, and private the next time."""

    def __init__(self, *answers: list[str]) -> None:
        self._answers = list(answers)
        self.asked = 0

    async def __call__(self, host: str, port: int) -> list[str]:
        self.asked += 1
        return self._answers[min(self.asked, len(self._answers)) - 1]


class Diverts(httpcore.AnyIOBackend):
    """A network where every address leads to loopback: the tests talk to nobody outside."""

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


def test_one_private_address_among_public_ones_is_enough_to_refuse() -> None:
    with receiving() as receiver:
        for addresses in (["127.0.0.1"], ["192.0.2.1"], ["1.1.1.1", "127.0.0.1"], ["::ffff:127.0.0.1"]):
            network = Diverts()
            backend = PinnedTransport(ChangesItsMind(addresses), network)
            answer = post(f"http://hooks.example:{port_of(receiver)}/", backend)
            assert answer == DeliveryResponse(error="the host has an address that is not public")
            assert not network.dialled
        assert not receiver.got


def test_what_was_checked_is_what_is_dialled() -> None:
    """After the look at its address the name moves to loopback; nobody asks again."""
    with receiving() as receiver:
        rebinding, network = ChangesItsMind(["1.1.1.1"], ["127.0.0.1"]), Diverts()
        url = f"http://rebind.example:{port_of(receiver)}/"
        assert post(url, PinnedTransport(rebinding, network)) == DeliveryResponse(204)
        assert rebinding.asked == 1
        assert network.dialled == ["1.1.1.1"]
        assert post(url, PinnedTransport(rebinding, network)).error == "the host has an address that is not public"
        assert network.dialled == ["1.1.1.1"]
        assert len(receiver.got) == 1


def test_the_second_address_is_dialled_where_the_first_is_dead() -> None:
    with receiving() as receiver:
        resolver = ChangesItsMind(["127.0.0.2", "127.0.0.1"])  # the receiver listens on 127.0.0.1 alone
        url = f"http://hooks.example:{port_of(receiver)}/a?b=c"
        assert post(url, PinnedTransport(resolver, allow_private=True)) == DeliveryResponse(204)
        [received] = receiver.got
        assert received.path == "/a?b=c"
        assert received.headers["host"] == f"hooks.example:{port_of(receiver)}"


def test_a_redirect_is_not_followed() -> None:
    with receiving() as elsewhere, receiving((302, {"Location": elsewhere.url})) as receiver:
        assert post(receiver.url, PinnedTransport(allow_private=True)) == DeliveryResponse(302, "status 302")
        assert len(receiver.got) == 1
        assert not elsewhere.got


def test_a_proxy_of_the_environment_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    with receiving() as proxy, receiving() as receiver:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.url)
        assert post(receiver.url, PinnedTransport(allow_private=True)) == DeliveryResponse(204)
        assert not proxy.got


def test_retry_after_is_heard() -> None:
    with receiving((503, {"Retry-After": "120"})) as receiver:
        assert post(receiver.url, PinnedTransport(allow_private=True)) == DeliveryResponse(503, "status 503", 120)


def test_a_receiver_that_does_not_answer_costs_its_time_and_no_more() -> None:
    with receiving(held=True) as receiver:
        answer = post(receiver.url, PinnedTransport(allow_private=True), timeout_s=0.5)
        assert answer == DeliveryResponse(error="no response within 0.5 s")


def test_a_host_without_address_and_a_port_without_listener() -> None:
    assert post("http://hooks.example/", PinnedTransport(ChangesItsMind([]))) == DeliveryResponse(
        error="the host has no address"
    )
    with receiving() as receiver:
        url = receiver.url
    assert post(url, PinnedTransport(allow_private=True)).status is None


def test_plain_http_only_where_it_is_allowed() -> None:
    with receiving() as receiver:
        poster = HttpSender(PinnedTransport(allow_private=True), timeout_s=5, allow_http=False)
        assert asyncio.run(poster.post(receiver.url, {}, b"{}")) == DeliveryResponse(error="the URL is not https")
        assert not receiver.got


@contextmanager
def answering(raw: bytes, context: ssl.SSLContext | None = None) -> Iterator[int]:
    """A server that says these bytes to whoever calls, over and over, until they hang up; by its port."""
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


def test_of_an_endless_answer_only_the_status_is_read() -> None:
    with answering(b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n" + b"x" * 65536) as port:
        assert post(f"http://127.0.0.1:{port}/", PinnedTransport(allow_private=True)).is_delivered
    with answering(b"HTTP/1.1 200 OK\r\n" + b"x-more: " + b"x" * 65536) as port:
        answer = post(f"http://127.0.0.1:{port}/", PinnedTransport(allow_private=True))
        assert not answer.is_delivered
        assert answer.error


@pytest.mark.parametrize(("named", "good"), [("hooks.example", True), ("other.example", False), ("127.0.0.1", False)])
def test_tls_verifies_the_name_in_the_url_and_not_the_address(named: str, good: bool) -> None:
    authority = trustme.CA()
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert(named).configure_cert(server)
    authority.configure_trust(client)
    names: list[str] = []
    server.sni_callback = lambda _socket, name, _context: names.append(name)
    backend = PinnedTransport(ChangesItsMind(["127.0.0.1"]), allow_private=True)
    with answering(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", server) as port:
        answer = post(f"https://hooks.example:{port}/", backend, context=client)
    assert names == ["hooks.example"]
    assert answer.is_delivered is good
    if not good:
        assert "certificate verify failed" in (answer.error or "")
