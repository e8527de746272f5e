"""Connections to Redis over TLS, configured by a `rediss://` URL, verify the certificate."""

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest
import trustme
from redis.exceptions import ConnectionError as NoConnection

from img2img.app.main import connect_redis
from img2img.app.settings import ApiSettings
from img2img.settings import embedded_redis_socket


def pump(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


@pytest.fixture
def port(settings: ApiSettings, tmp_path: Path) -> Iterator[int]:
    """The port of a TLS proxy of the redis-server of the tests."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                plain, _ = listener.accept()
            except OSError:
                return
            with (
                suppress(OSError),
                plain,
                context.wrap_socket(plain, server_side=True) as client,
                socket.socket(socket.AF_UNIX) as redis,
            ):
                redis.connect(str(embedded_redis_socket(settings.data_dir)))
                back = threading.Thread(target=pump, args=(redis, client))
                back.start()
                pump(client, redis)
                back.join()

    thread = threading.Thread(target=serve)
    thread.start()
    with closing(listener):
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
    thread.join()


def test_url_configures_tls(redis_url: str, port: int, tmp_path: Path) -> None:
    with connect_redis(f"rediss://localhost:{port}/0?ssl_ca_certs={tmp_path}/ca.pem") as redis:
        assert redis.ping()


def test_certificate_of_an_unknown_authority_is_refused(redis_url: str, port: int) -> None:
    with connect_redis(f"rediss://localhost:{port}/0") as redis, pytest.raises(NoConnection, match="certificate"):
        redis.ping()


def test_certificate_of_another_host_is_refused(redis_url: str, port: int, tmp_path: Path) -> None:
    with (
        connect_redis(f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={tmp_path}/ca.pem") as redis,
        pytest.raises(NoConnection, match=r"certificate|mismatch"),
    ):
        redis.ping()
