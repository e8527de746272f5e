"""Clients for the URL of a Redis: of one server, or of Sentinels that know the present primary.

A URL of Sentinels has the form `redis+sentinel://[user:password@]host[:port][,host[:port]...]/service[/db]`; with
`rediss+sentinel` the servers are reached by TLS. User and password are those of the servers; the parameters
`sentinel_username` and `sentinel_password` are those of the Sentinels.
"""

import re
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from redis.asyncio.sentinel import Sentinel as AsyncSentinel
from redis.sentinel import Sentinel

SENTINEL_PORT = 26379
# A Sentinel that does not respond in this time is left out.
SENTINEL_S = 0.5
_SCHEMES = ("redis+sentinel", "rediss+sentinel")


@dataclass(frozen=True)
class SentinelUrl:
    """Where Sentinels are, and which servers they watch.

    Attributes:
        service: Name that the Sentinels have for the primary and its replicas.
        server: Options of the connections to the servers.
        sentinel: Options of the connections to the Sentinels.
    """

    addresses: tuple[tuple[str, int], ...]
    service: str
    server: dict[str, Any] = field(default_factory=dict)
    sentinel: dict[str, Any] = field(default_factory=dict)


def is_sentinel_url(url: str) -> bool:
    """Return whether the URL names Sentinels."""
    return url.partition("://")[0].lower() in _SCHEMES


def parse_sentinel_url(url: str) -> SentinelUrl:
    """Return the parts of a URL of Sentinels.

    Raises:
        ValueError: The URL has no addresses or no service, or a part of it is invalid.
    """
    scheme, _, rest = url.partition("://")
    authority = re.split("[/?#]", rest, maxsplit=1)[0]
    credentials, _, hosts = authority.rpartition("@")
    # Without the hosts, because `urlsplit` refuses several if one is an IPv6 address.
    parts = urlsplit(rest.removeprefix(authority))
    service, _, database = parts.path.strip("/").partition("/")
    if not hosts.strip(",") or not service:
        raise ValueError("the URL should be redis+sentinel://host:26379,host:26379/service")
    server: dict[str, Any] = {"ssl": True} if scheme.lower() == _SCHEMES[1] else {}
    sentinel: dict[str, Any] = dict(server)
    username, has_password, password = credentials.partition(":")
    if username:
        server["username"] = unquote(username)
    if has_password:
        server["password"] = unquote(password)
    if database:
        if not database.isdigit():
            raise ValueError(f"the database should be a number: {database}")
        server["db"] = int(database)
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name in ("sentinel_username", "sentinel_password"):
            sentinel[name.removeprefix("sentinel_")] = value
        elif name in ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs"):
            server[name] = sentinel[name] = value
        else:
            raise ValueError(f"unknown parameter {name}")
    addresses = tuple(_address(host) for host in hosts.split(",") if host)
    return SentinelUrl(addresses, service, server, sentinel)


def connect(url: str, **options: Any) -> Redis:
    """Return a client. It does not connect before it is used.

    With Sentinels, each new connection asks them for the primary, and a connection to a server that is no primary any
    more is closed.

    Args:
        options: Those of `Redis`.

    Raises:
        ValueError: The URL is invalid.
    """
    if not is_sentinel_url(url):
        return Redis.from_url(url, **options)
    parsed = parse_sentinel_url(url)
    options = {"sentinel_kwargs": _timeouts() | parsed.sentinel} | parsed.server | options
    sentinel = Sentinel(parsed.addresses, **options)  # type: ignore[no-untyped-call]
    client: Redis = sentinel.master_for(parsed.service)  # type: ignore[no-untyped-call]
    return client


def connect_async(url: str, **options: Any) -> AsyncRedis:
    """Return a client for asyncio, see `connect`."""
    if not is_sentinel_url(url):
        return AsyncRedis.from_url(url, **options)
    parsed = parse_sentinel_url(url)
    options = {"sentinel_kwargs": _timeouts() | parsed.sentinel} | parsed.server | options
    sentinel = AsyncSentinel(parsed.addresses, **options)  # type: ignore[no-untyped-call]
    client: AsyncRedis = sentinel.master_for(parsed.service)
    return client


def _timeouts() -> dict[str, Any]:
    return {"socket_timeout": SENTINEL_S, "socket_connect_timeout": SENTINEL_S}


def _address(host: str) -> tuple[str, int]:
    parts = urlsplit(f"//{host}")
    if not parts.hostname:
        raise ValueError(f"invalid address of a Sentinel: {host}")
    return parts.hostname, parts.port or SENTINEL_PORT
