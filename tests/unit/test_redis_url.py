"""URLs of Redis and of Sentinels."""

import pytest
from redis.sentinel import SentinelConnectionPool

from img2img.redis.connection import SentinelUrl, connect, parse_sentinel_url
from img2img.settings import without_password

URLS = {
    "redis+sentinel://a:1,b,[::1]:3/main": SentinelUrl((("a", 1), ("b", 26379), ("::1", 3)), "main"),
    "redis+sentinel://:p%40ss@a/main/2": SentinelUrl((("a", 26379),), "main", {"password": "p@ss", "db": 2}),
    "redis+sentinel://me:x@a/main?sentinel_password=y": SentinelUrl(
        (("a", 26379),), "main", {"username": "me", "password": "x"}, {"password": "y"}
    ),
    "rediss+sentinel://a/main?ssl_ca_certs=/ca.pem": SentinelUrl(
        (("a", 26379),), "main", *[{"ssl": True, "ssl_ca_certs": "/ca.pem"}] * 2
    ),
}


@pytest.mark.parametrize("url", URLS)
def test_url_of_sentinels(url: str) -> None:
    assert parse_sentinel_url(url) == URLS[url]
    with connect(url) as redis:
        assert isinstance(redis.connection_pool, SentinelConnectionPool)


@pytest.mark.parametrize(
    "url",
    [
        "redis+sentinel://a:1",
        "redis+sentinel:///main",
        "redis+sentinel://,/main",
        "redis+sentinel://a:x/main",
        "redis+sentinel://a/main/x",
        "redis+sentinel://a/main?timeout=1",
    ],
)
def test_invalid_url_of_sentinels(url: str) -> None:
    with pytest.raises(ValueError, match=r"should|Port|unknown|invalid"):
        connect(url)


def test_passwords_are_not_shown() -> None:
    shown = without_password("redis+sentinel://me:secret@a:1,b:2/main?sentinel_password=secret&sentinel_username=x")
    assert shown == "redis+sentinel://***@a:1,b:2/main?sentinel_password=***&sentinel_username=x"
    assert without_password("redis+sentinel://:p@b,[::1]:3/main") == "redis+sentinel://***@b,[::1]:3/main"
    for url in ("redis://a:1/0", "redis://me@a", "unix:///run/redis.sock", "redis+sentinel://a:1,b,[::1]:3/main"):
        assert without_password(url) == url
