"""Hosts on one machine: network namespaces, each with an address of its own, on one bridge. A cable can be pulled."""

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

from img2img.app.supervisor.embedded_redis import find_redis_server
from tests.support.buckets import Bucket, bucket_at, make_bucket
from tests.support.processes import Forked, Worker, _forkserver, run_worker

SWITCH, BRIDGE = "switch", "br0"
CLONE_NEWNET = 0x40000000
PASSWORD = "between-hosts"

_libc = ctypes.CDLL(None, use_errno=True)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


def _enter(path: str) -> None:
    """Puts this thread, and what it starts, into a network namespace."""
    with Path(path).open() as namespace:
        if _libc.setns(namespace.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")


class Network:
    """The hosts, and the switch between them. They see each other and nothing else."""

    def __init__(self) -> None:
        self._prefix = f"i2i{os.getpid()}-"
        self._addresses: dict[str, str] = {}
        _ip("netns", "add", self._prefix + SWITCH)
        _ip("-n", self._prefix + SWITCH, "link", "add", BRIDGE, "type", "bridge")
        _ip("-n", self._prefix + SWITCH, "link", "set", BRIDGE, "up")

    def add(self, host: str) -> str:
        """A new host, on the switch. Its address."""
        own, switch = self._prefix + host, self._prefix + SWITCH
        _ip("netns", "add", own)
        self._addresses[host] = address = f"10.77.0.{len(self._addresses) + 1}"
        _ip("link", "add", "eth0", "netns", own, "type", "veth", "peer", "name", host, "netns", switch)
        _ip("-n", own, "address", "add", f"{address}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            _ip("-n", own, "link", "set", device, "up")
        _ip("-n", switch, "link", "set", host, "up")
        self.heal(host)
        return address

    def cut(self, host: str) -> None:
        """What this host sends, and what is sent to it, is lost from now on. Nobody is told: its link stays up."""
        _ip("-n", self._prefix + SWITCH, "link", "set", host, "nomaster")

    def heal(self, host: str) -> None:
        _ip("-n", self._prefix + SWITCH, "link", "set", host, "master", BRIDGE)

    def path(self, host: str) -> str:
        return f"/run/netns/{self._prefix}{host}"

    @contextmanager
    def on(self, host: str) -> Iterator[None]:
        """What this thread connects to or starts meanwhile, it does on that host."""
        before = f"/proc/self/task/{_libc.gettid()}/ns/net"
        with Path(before).open() as home:
            _enter(self.path(host))
            try:
                yield
            finally:
                _libc.setns(home.fileno(), CLONE_NEWNET)

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


class Site:
    """The service on hosts: `data` has Redis and the bucket, `front` the API, and each worker is on its own.

    The test stands on `desk`, a host of its own.
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
        self.front_url = f"http://{self.network.add('front')}:8000"
        self.network.add("desk")

    def start(self) -> None:
        """Redis, the bucket and the API. Called on `desk`."""
        folder = self._folder / "redis"
        folder.mkdir()
        options = (
            f"--bind 0.0.0.0 --requirepass {PASSWORD} --dir {folder} --appendonly yes --maxmemory-policy noeviction"
        )
        with self.network.on("data"):
            self._start([find_redis_server(), *options.split()])
            s3 = self._start([sys.executable, "-m", "tests.support.s3_server", "0.0.0.0", "9000"])
        make_bucket(self.bucket.endpoint, s3)
        while not self._redis_answers():
            time.sleep(0.1)
        with self.network.on("front"):
            self._start([sys.executable, "-m", "img2img.app.cli", "api", "--host", "0.0.0.0", "--insecure"], "front")

    def _redis_answers(self) -> bool:
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
        """What a process on that host is told. Its files are its own."""
        folder = self._folder / host
        folder.mkdir()
        settings = {"IMG2IMG_REDIS_URL": self.redis_url, "IMG2IMG_DATA_DIR": str(folder), "IMG2IMG_MODEL": "tiny"}
        return {**self.bucket.settings, **settings}

    def start_worker(self, host: str, *, slots: int, lease_s: int) -> Worker:
        """A worker on a new host."""
        self.network.add(host)
        own = {"IMG2IMG_MODEL": str(self._model), "IMG2IMG_DEVICE": "cpu", "IMG2IMG_SLOTS": str(slots)}
        settings = self._settings(host) | own | {"IMG2IMG_LEASE_S": str(lease_s)}
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


def needs_hosts() -> None:
    """Skips where nobody asked for it, or this machine cannot make network namespaces."""
    if not os.environ.get("TEST_HOSTS"):
        pytest.skip("`make test-hosts` runs this")
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    if not shutil.which("ip"):
        pytest.skip("needs `ip`, of iproute2")
    probe = f"i2i{os.getpid()}-probe"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True, check=False)
    subprocess.run(["ip", "netns", "delete", probe], capture_output=True, check=False)
    if made.returncode:
        pytest.skip(f"this machine makes no network namespaces: {made.stderr.strip()}")
