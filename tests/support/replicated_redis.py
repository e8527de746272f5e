"""A Redis with replicas, and Sentinels that promote one of them when the primary is lost."""

import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

from redis import Redis
from redis.exceptions import RedisError

from img2img.app.supervisor.process import _die_with_parent
from img2img.app.supervisor.redis_server import find_redis_server
from img2img.app.supervisor.supervisor import free_port
from img2img.redis.connection import connect
from tests.support.processes import wait_for

SERVICE = "main"
SERVERS, SENTINELS, QUORUM = 3, 3, 2
DOWN_AFTER_MS, FAILOVER_TIMEOUT_MS = 1000, 3000


class ReplicatedRedis:
    """One primary, two replicas and three Sentinels, as processes.

    Args:
        folder: for their data, configurations and logs.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ports = [free_port() for _ in range(SERVERS)]
        self._sentinel_ports = [free_port() for _ in range(SENTINELS)]
        self._servers: dict[int, subprocess.Popen[bytes]] = {}
        self._sentinels: list[subprocess.Popen[bytes]] = []

    @property
    def url(self) -> str:
        addresses = ",".join(f"127.0.0.1:{port}" for port in self._sentinel_ports)
        return f"redis+sentinel://{addresses}/{SERVICE}"

    def start(self) -> None:
        """Start all processes, and wait until the replicas are in sync and the Sentinels know each other."""
        for port in self._ports:
            self._start_server(port, self._ports[0])
        wait_for(self.is_in_sync)
        for port in self._sentinel_ports:
            self._start_sentinel(port)
        wait_for(self._is_watched)

    def primary(self) -> int | None:
        """Return the port of the primary that most Sentinels name, if they agree."""
        found = []
        for port in self._sentinel_ports:
            with suppress(RedisError), Redis(port=port, socket_timeout=1) as sentinel:
                address = sentinel.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)
                found.append(int(address[1]))
        return next((port for port in set(found) if found.count(port) >= QUORUM), None)

    def kill_primary(self) -> int:
        """Kill the primary with SIGKILL, and return its port. A replica is promoted soon."""
        port = wait_for(self.primary)
        self._servers[port].kill()
        self._servers.pop(port).wait()
        return port

    def wait_for_failover(self, lost: int) -> None:
        """Wait until another primary than the lost one accepts writes."""

        def is_writable() -> bool:
            with suppress(RedisError), connect(self.url, socket_timeout=1, socket_connect_timeout=1) as redis:
                return self.primary() not in (None, lost) and bool(redis.set("failover", 1, ex=60))
            return False

        wait_for(is_writable, 60)

    def restart_lost(self) -> None:
        """Start the servers that do not run, as replicas of the present primary, and wait until they are in sync.

        The failover is over for all Sentinels afterwards. Until then, one of them can name a server that is a replica
        by now, and if the new primary is lost too, they may never agree again.
        """
        primary = self.primary()
        assert primary is not None
        for port in self._ports:
            if port not in self._servers:
                self._start_server(port, primary)
        wait_for(lambda: self.is_in_sync() and self._is_settled(), 60)

    def is_in_sync(self) -> bool:
        """Return whether one server is the primary, and all others have its data."""
        roles = []
        for port in self._ports:
            with suppress(RedisError), Redis(port=port, socket_timeout=1) as redis:
                info = redis.info("replication")
                roles.append("primary" if info["role"] == "master" else info["master_link_status"])
        return sorted(roles) == ["primary", *["up"] * (SERVERS - 1)]

    def stop(self) -> None:
        for process in (*self._sentinels, *self._servers.values()):
            process.kill()
            process.wait()

    def _is_settled(self) -> bool:
        """Return whether all Sentinels watch the same primary, and no failover is in progress."""
        states = self._states()
        is_over = all("failover_in_progress" not in state["flags"] for state in states)
        return is_over and len(states) == SENTINELS and len({state["port"] for state in states}) == 1

    def _is_watched(self) -> bool:
        known = [(state["num-slaves"], state["num-other-sentinels"]) for state in self._states()]
        return known == [(SERVERS - 1, SENTINELS - 1)] * SENTINELS

    def _states(self) -> list[dict[str, Any]]:
        """Return what each Sentinel knows of the servers; Sentinels that do not answer are left out."""
        states = []
        for port in self._sentinel_ports:
            with suppress(RedisError), Redis(port=port, socket_timeout=1) as sentinel:
                states.append(sentinel.sentinel_masters()[SERVICE])
        return states

    def _start_server(self, port: int, primary: int) -> None:
        folder = self._folder / f"redis-{port}"
        folder.mkdir(exist_ok=True)
        options = {
            "port": str(port),
            "dir": str(folder),
            "logfile": "redis.log",
            "save": "",
            "appendonly": "yes",
            # A primary without replicas cannot confirm writes, and may have been replaced.
            "min-replicas-to-write": "1",
            "min-replicas-max-lag": "3",
            "repl-diskless-sync-delay": "0",
        }
        if port != primary:
            options["replicaof"] = f"127.0.0.1 {primary}"
        arguments = [part for name, value in options.items() for part in (f"--{name}", *_words(name, value))]
        self._servers[port] = subprocess.Popen([find_redis_server(), *arguments], preexec_fn=_die_with_parent)

    def _start_sentinel(self, port: int) -> None:
        config = self._folder / f"sentinel-{port}.conf"
        config.write_text(
            f"port {port}\n"
            f'dir "{self._folder}"\n'
            f'logfile "sentinel-{port}.log"\n'
            f"sentinel monitor {SERVICE} 127.0.0.1 {self._ports[0]} {QUORUM}\n"
            f"sentinel down-after-milliseconds {SERVICE} {DOWN_AFTER_MS}\n"
            f"sentinel failover-timeout {SERVICE} {FAILOVER_TIMEOUT_MS}\n"
            f"sentinel parallel-syncs {SERVICE} {SERVERS}\n"
        )
        command = [find_redis_server(), str(config), "--sentinel"]
        self._sentinels.append(subprocess.Popen(command, preexec_fn=_die_with_parent))


def _words(name: str, value: str) -> list[str]:
    return value.split() if name == "replicaof" else [value]
