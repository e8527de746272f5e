"""redis-servers with other versions, slow disks or replicas, for tests and benchmarks of durability."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from redis import Redis

from img2img.app.supervisor.embedded_redis import find_redis_server, is_redis_ready
from tests.support.processes import wait_for

# The first Redis with WAITAOF. Valkey forked from it, and its own versions are higher.
WAITAOF_VERSION = (7, 2)
NO_WAITAOF = "no Redis or Valkey 7.2 or later: put one on PATH or name it in REDIS_7_SERVER"
SLOW_FSYNC = Path(__file__).with_name("slow_fsync.c")


@cache
def find_redis_7() -> str | None:
    """Return a redis-server or valkey-server with WAITAOF, if there is one."""
    names = (os.environ.get("REDIS_7_SERVER"), "redis-server", "valkey-server")
    for server in filter(None, (shutil.which(name) for name in names if name)):
        version = re.search(r"v=(\d+)\.(\d+)", subprocess.check_output([server, "--version"], text=True))
        if version and (int(version[1]), int(version[2])) >= WAITAOF_VERSION:
            return server
    return None


def slow_disk(folder: Path, fsync_s: float) -> dict[str, str] | None:
    """Return the environment of a process in which a flush to disk takes longer; None without a C compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        return None
    library = folder / "slow_fsync.so"
    if not library.exists():
        subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, SLOW_FSYNC, "-ldl"], check=True)
    return {"LD_PRELOAD": str(library), "FSYNC_MS": str(int(fsync_s * 1000))}


@contextmanager
def full_memory(redis: Redis) -> Iterator[None]:
    """Have Redis reach `maxmemory` while the context lasts."""
    redis.config_set("maxmemory", 1)
    try:
        yield
    finally:
        redis.config_set("maxmemory", 0)


class RedisServer:
    """A redis-server that can be killed and started again with its data.

    Args:
        folder: where its socket and its data are; with a short path.
        server: path of redis-server. Default: that of the embedded Redis.
        environment: added to that of this process, see `slow_disk`.
        options: of redis-server.
    """

    def __init__(
        self,
        folder: Path,
        *,
        server: str | None = None,
        environment: Mapping[str, str] | None = None,
        **options: str,
    ) -> None:
        folder.mkdir(exist_ok=True)
        self.socket = folder / "redis.sock"
        self.url = f"unix://{self.socket}"
        defaults = {"port": "0", "unixsocket": str(self.socket), "dir": str(folder), "save": "", "appendonly": "yes"}
        flags = defaults | {"logfile": "redis.log"} | options
        self._command = [server or find_redis_server(), *(part for k, v in flags.items() for part in (f"--{k}", v))]
        self._environment = environment
        # Longer than the longest flush, during which Redis may not respond.
        self.redis = Redis.from_url(self.url, socket_timeout=60)
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(self._command, env=os.environ | dict(self._environment or {}))
        try:
            wait_for(lambda: is_redis_ready(self.url))
        except BaseException:
            self.kill()
            raise

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def restart_on_a_fast_disk(self) -> None:
        self.kill()
        self._environment = {}
        self.start()
