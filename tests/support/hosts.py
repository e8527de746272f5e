"""Simulated hosts on one machine: network namespaces on one bridge, which tests can disconnect."""

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import RedisError

from img2img.app.supervisor.redis_server import find_redis_server
from tests.support.buckets import Bucket, bucket_at, make_bucket
from tests.support.processes import Forked, Worker, _forkserver, run_worker

SWITCH, BRIDGE = "switch", "br0"
CLONE_NEWNET = 0x40000000
PASSWORD = "between-hosts"

_libc = ctypes.CDLL(None, use_errno=True)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


def _enter(path: str) -> None:
    """Move this thread, and the processes that it starts, into a network namespace."""
    with Path(path).open() as namespace:
        if _libc.setns(namespace.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")


class Network:
    """Hosts that are connected by a switch, and to no other network."""

    def __init__(self) -> None:
        self._prefix = f"i2i{os.getpid()}-"
        self._addresses: dict[str, str] = {}
        _ip("netns", "add", self._prefix + SWITCH)
        _ip("-n", self._prefix + SWITCH, "link", "add", BRIDGE, "type", "bridge")
        _ip("-n", self._prefix + SWITCH, "link", "set", BRIDGE, "up")

    def add(self, host: str) -> str:
        """Connect a new host to the switch, and return its address."""
        namespace, switch = self._prefix + host, self._prefix + SWITCH
        _ip("netns", "add", namespace)
        self._addresses[host] = address = f"10.77.0.{len(self._addresses) + 1}"
        _ip("link", "add", "eth0", "netns", namespace, "type", "veth", "peer", "name", host, "netns", switch)
        _ip("-n", namespace, "address", "add", f"{address}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            _ip("-n", namespace, "link", "set", device, "up")
        _ip("-n", switch, "link", "set", host, "up")
        self.reconnect(host)
        return address

    def disconnect(self, host: str) -> None:
        """Drop all packets from and to the host. Its link stays up, so that no process notices at once."""
        _ip("-n", self._prefix + SWITCH, "link", "set", host, "nomaster")

    def reconnect(self, host: str) -> None:
        _ip("-n", self._prefix + SWITCH, "link", "set", host, "master", BRIDGE)

    def path(self, host: str) -> str:
        return f"/run/netns/{self._prefix}{host}"

    @contextmanager
    def on(self, host: str) -> Iterator[None]:
        """Run the body of the `with` statement on a host: this thread connects and starts processes from there."""
        current = f"/proc/self/task/{_libc.gettid()}/ns/net"
        with Path(current).open() as original:
            _enter(self.path(host))
            try:
                yield
            finally:
                _libc.setns(original.fileno(), CLONE_NEWNET)

    def close(self) -> None:
        for host in (*self._addresses, SWITCH):
            subprocess.run(["ip", "netns", "delete", self._prefix + host], check=False)


def _run_worker_on(namespace: str, environment: dict[str, str], log: str) -> None:
    _enter(namespace)
    run_worker(environment, log)


class ForkedOn(Forked):
    """A worker on a host."""

    def __init__(self, namespace: str, environment: Mapping[str, str], log: Path) -> None:
        self._process = _forkserver().Process(target=_run_worker_on, args=(namespace, dict(environment), str(log)))
        self._process.start()
        self.pid: int = self._process.pid


class MultiHostService:
    """The service on several hosts.

    Redis and the bucket run on `data`, the API server on `api`, each worker on a separate host, and the test on
    `client`.
    """

    def __init__(self, folder: Path, model: Path) -> None:
        self._folder = folder
        self._model = model
        self._processes: list[subprocess.Popen[bytes]] = []
        self.workers: dict[str, Worker] = {}
        self.network = Network()
        data = self.network.add("data")
        self.redis_url = f"redis://:{PASSWORD}@{data}:6379/0"
        self.bucket: Bucket = bucket_at(f"http://{data}:9000")
        self.api_url = f"http://{self.network.add('api')}:8000"
        self.network.add("client")

    def start(self) -> None:
        """Start Redis, the bucket and the API server. Must be called on the host `client`."""
        folder = self._folder / "redis"
        folder.mkdir()
        options = (
            f"--bind 0.0.0.0 --requirepass {PASSWORD} --dir {folder} --appendonly yes --maxmemory-policy noeviction"
        )
        with self.network.on("data"):
            self._start([find_redis_server(), *options.split()])
            s3 = self._start([sys.executable, "-m", "tests.support.s3_server", "0.0.0.0", "9000"])
        make_bucket(self.bucket.endpoint, s3)
        while not self._is_redis_ready():
            time.sleep(0.1)
        with self.network.on("api"):
            self._start([sys.executable, "-m", "img2img.app.cli", "api", "--host", "0.0.0.0", "--insecure"], "api")

    def _is_redis_ready(self) -> bool:
        try:
            with Redis.from_url(self.redis_url) as redis:
                return bool(redis.ping())
        except RedisError:
            assert self._processes[0].poll() is None, "redis-server did not start"
            return False

    def _start(self, command: list[str], host: str = "") -> "subprocess.Popen[bytes]":
        environment = os.environ | self._settings(host) if host else None
        with (self._folder / "servers.log").open("ab") as log:
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        self._processes.append(process)
        return process

    def _settings(self, host: str) -> dict[str, str]:
        """Return the environment variables of the processes of a host. Each host has a separate data directory."""
        folder = self._folder / host
        folder.mkdir()
        settings = {"IMG2IMG_REDIS_URL": self.redis_url, "IMG2IMG_DATA_DIR": str(folder), "IMG2IMG_MODEL": "tiny"}
        return {**self.bucket.settings, **settings}

    def start_worker(self, host: str, *, slots: int, lease_s: int) -> Worker:
        """Start a worker on a new host."""
        self.network.add(host)
        worker_settings = {"IMG2IMG_MODEL": str(self._model), "IMG2IMG_DEVICE": "cpu", "IMG2IMG_SLOTS": str(slots)}
        settings = self._settings(host) | worker_settings | {"IMG2IMG_LEASE_S": str(lease_s)}
        worker = Worker(ForkedOn(self.network.path(host), settings, self.log(host)))
        self.workers[host] = worker
        return worker

    def log(self, host: str) -> Path:
        return self._folder / f"{host}.log"

    def stop(self) -> None:
        for worker in self.workers.values():
            worker.kill()
        for process in reversed(self._processes):
            process.send_signal(signal.SIGKILL)
            process.wait()
        self.network.close()


def skip_without_network_namespaces() -> None:
    """Skip the test unless TEST_HOSTS is set and this machine can create network namespaces."""
    if not os.environ.get("TEST_HOSTS"):
        pytest.skip("`make test-hosts` runs this")
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    if not shutil.which("ip"):
        pytest.skip("needs `ip`, of iproute2")
    probe = f"i2i{os.getpid()}-probe"
    created = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True, check=False)
    subprocess.run(["ip", "netns", "delete", probe], capture_output=True, check=False)
    if created.returncode:
        pytest.skip(f"this machine cannot create network namespaces: {created.stderr.strip()}")
