"""The processes of a chaos run: a redis-server, API servers, workers and webhook dispatchers, behind proxies.

Every process has its own proxy to Redis, and its own to the S3 server if images are in a bucket.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from redis.exceptions import RedisError

from img2img.app.supervisor.embedded_redis import is_redis_ready, redis_command
from img2img.app.supervisor.process import _die_with_parent
from img2img.app.supervisor.supervisor import PYTHON, free_port
from img2img.blobs import ObjectStore
from img2img.domain.api_key import Scope
from img2img.redis.api_keys import ApiKeys
from img2img.redis.connection import connect
from img2img.redis.keys import AOF_REWRITE
from img2img.redis.model_registry import ModelRegistry
from img2img.settings import embedded_redis_socket
from tests.chaos import poisoned_worker
from tests.chaos.preload import FAULTS, PreloadedFaults
from tests.chaos.proxy import Proxies
from tests.chaos.workers import run as run_worker
from tests.support.buckets import Bucket
from tests.support.processes import MODEL, Forked, wait_for
from tests.support.replicated_redis import ReplicatedRedis

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
WEBHOOK_TIMEOUT_S = 3
UPLOAD_TTL_S = 20  # of the images that fill the disk
MIN_LIFETIME_S = 1.0  # a process that has died sooner is not restarted before
KILLED = -signal.SIGKILL  # exit code


class ProcessHandle(Protocol):
    pid: int

    def poll(self) -> int | None: ...

    def wait(self, timeout: float | None = None) -> int | None: ...


@dataclass
class Process:
    """A process that is restarted whenever it has died, as a supervisor would do."""

    name: str
    kind: str
    start: Callable[[], ProcessHandle]
    preloaded: PreloadedFaults | None  # None without a C compiler
    handle: ProcessHandle = field(init=False)
    started_at: float = 0.0
    unexpected_exits: int = 0  # exits that no fault has caused
    # Called with this process when it has died from SIGKILL without a fault: a worker by a job that kills it.
    on_killed: Callable[["Process"], object] = lambda process: None
    # Until then a worker that has missed heartbeats does not requeue the jobs of other workers.
    no_recovery_until: float = 0.0
    # Held while a fault is injected.
    faulted: threading.Lock = field(default_factory=threading.Lock)

    def begin(self) -> None:
        self.handle, self.started_at = self.start(), time.monotonic()

    @property
    def pid(self) -> int:
        return self.handle.pid

    def send(self, signum: signal.Signals) -> None:
        os.kill(self.pid, signum)

    def kill(self) -> None:
        """Kill the process with SIGKILL, but not its children."""
        if self.handle.poll() is None:
            self.send(signal.SIGKILL)
        self.handle.wait()

    def restart_if_dead(self) -> None:
        """Restart the process if it has died, unless a fault is being injected."""
        if not self.faulted.acquire(blocking=False):
            return
        try:
            if self.handle.poll() is not None and time.monotonic() - self.started_at > MIN_LIFETIME_S:
                self.unexpected_exits += 1
                if self.handle.poll() == KILLED:
                    self.on_killed(self)
                self.begin()
        finally:
            self.faulted.release()


class Deployment:
    """All processes of a run.

    Args:
        folder: for logs.
        data: for Redis and the blob store, on the small disk if there is one.
        model: folder of the model.
        receiver: URL of the webhook receiver.
        lease_s: lease of the workers.
        workers: number of workers.
        bucket: where the images are stored; None for a directory.
        preload: whether the present process has loaded the library of `preload.c`.
        replicated: a Redis with replicas, which all processes reach through its Sentinels; None for one server that
            they reach through proxies.
        redis_server: the primary of `replicated`, as a process; None for one server, which is started here.
        earlier: environment of an earlier release, of which every second process of a kind is; None without one.
    """

    def __init__(
        self,
        folder: Path,
        data: Path,
        model: Path,
        receiver: str,
        *,
        lease_s: int,
        workers: int,
        bucket: Bucket | None,
        preload: bool,
        replicated: ReplicatedRedis | None = None,
        redis_server: Process | None = None,
        earlier: Mapping[str, str] | None = None,
    ) -> None:
        self.folder, self.data, self.lease_s, self.bucket = folder, data, lease_s, bucket
        self.socket = embedded_redis_socket(data)
        self.proxies = Proxies()
        self._preload, self._earlier = preload, earlier
        self.store = ObjectStore(bucket.url if bucket else (data / "store").as_uri())
        self._replicated = replicated
        # Without a proxy.
        self.redis = connect(replicated.url if replicated else f"unix://{self.socket}", socket_timeout=2)
        self._settings = {
            "IMG2IMG_DATA_DIR": str(data),
            "IMG2IMG_MODEL": str(model),
            "IMG2IMG_SLOTS": "8",
            "IMG2IMG_LEASE_S": str(lease_s),
            "IMG2IMG_DEVICE": "cpu",
            "IMG2IMG_KEYS": "required",
            "IMG2IMG_LOG_LEVEL": "INFO",
            "IMG2IMG_WEBHOOK_SECRET": SECRET,
            "IMG2IMG_WEBHOOK_ALLOW_PRIVATE": "true",
            "IMG2IMG_WEBHOOK_TIMEOUT_S": str(WEBHOOK_TIMEOUT_S),
        }
        if replicated:
            self._settings["IMG2IMG_DURABILITY"] = "replica"
        self.receiver = receiver
        preloaded = self._preloaded("redis")
        self.redis_server = redis_server or Process("redis", "redis", partial(self._start_redis, preloaded), preloaded)
        self.ports = [free_port() for _ in range(3)]
        *self.urls, self.upload_url = [f"http://127.0.0.1:{port}" for port in self.ports]
        self.workers = [self._process("worker", i, self._start_worker) for i in range(workers)]
        self.dispatchers = [self._process("webhooks", i, self._start_python, "img2img.app.webhooks") for i in range(2)]
        self.apis = [self._process("api", i, self._start_python, "img2img.app.cli", "api") for i in range(2)]
        # Keeps images only for a short time, and is used only to fill the disk.
        self.upload_api = self._process("uploads", 0, self._start_python, "img2img.app.cli", "api")
        self.keys: list[str] = []
        self._stopped = threading.Event()
        self._supervisor = threading.Thread(target=self._supervise, name="supervisor", daemon=True)

    @property
    def processes(self) -> list[Process]:
        return [self.redis_server, *self.dispatchers, *self.workers, *self.apis, self.upload_api]

    @property
    def upload_key(self) -> str:
        """The API key whose images fill the disk."""
        return self.keys[-1]

    def start(self) -> None:
        """Start all processes, and wait until each worker is live."""
        self.redis_server.begin()
        if not self._replicated:
            wait_for(lambda: is_redis_ready(f"unix://{self.socket}"))
        # No process may rewrite the append-only file, because it is the history of all jobs that is checked at the end.
        self.redis.set(AOF_REWRITE, 1)
        scopes = [Scope.READ, Scope.SUBMIT, Scope.PRIORITY]
        self.keys = [ApiKeys(self.redis).create(f"owner {i}", scopes)[0] for i in range(4)]
        for process in self.processes[1:]:
            process.begin()
        wait_for(lambda: len(ModelRegistry(self.redis).live().get(MODEL, [])) == len(self.workers), 180)
        self._supervisor.start()

    def is_live(self, worker: Process) -> bool:
        """Return whether the worker has registered its model."""
        try:
            names = ModelRegistry(self.redis).live().get(MODEL, [])
        except RedisError:
            return False
        return any(f"-{worker.pid}-" in name for name in names)

    def can_recover(self) -> bool:
        """Return whether there is a worker that could recover lost jobs now."""
        now = time.monotonic()
        able = [worker for worker in self.workers if now >= worker.no_recovery_until and not worker.faulted.locked()]
        return any(map(self.is_live, able))

    def stop(self) -> None:
        self._stopped.set()
        if self._supervisor.is_alive():
            self._supervisor.join()
        for process in reversed(self.processes):
            if hasattr(process, "handle"):
                process.kill()
        if self._replicated:
            self._replicated.stop()
        self.redis.close()
        self.proxies.close()

    def _supervise(self) -> None:
        while not self._stopped.wait(0.1):
            for process in self.processes:
                process.restart_if_dead()

    def _preloaded(self, name: str) -> PreloadedFaults | None:
        return PreloadedFaults(self.folder / f"{name}.faults") if self._preload else None

    def _process(self, kind: str, index: int, start: Callable[..., ProcessHandle], *command: str) -> Process:
        is_earlier = self._earlier is not None and index % 2 == 1
        name = f"{kind}-{index} of the earlier release" if is_earlier else f"{kind}-{index}"
        redis_url = self._replicated.url if self._replicated else ""
        if not redis_url:
            redis_url = f"redis://127.0.0.1:{self.proxies.port(name, self.socket)}/0"
        environment = {**self._settings, "IMG2IMG_REDIS_URL": redis_url}
        if self.bucket:
            store_port = self.proxies.port(store_of(name), urlsplit(self.bucket.endpoint).port or 0)
            endpoint = f"http://127.0.0.1:{store_port}"
            environment |= {**self.bucket.settings, "AWS_ENDPOINT_URL": endpoint}
        if kind == "api":
            environment["IMG2IMG_PORT"] = str(self.ports[index])
        if kind == "uploads":
            environment |= {"IMG2IMG_PORT": str(self.ports[-1]), "IMG2IMG_RESULT_TTL": str(UPLOAD_TTL_S)}
        preloaded = self._preloaded(name)
        if preloaded:
            environment[FAULTS] = str(preloaded.file)
        if is_earlier:
            environment |= self._earlier or {}
            if kind == "worker":
                start, command = self._start_python, (poisoned_worker.__file__,)
        return Process(name, kind, partial(start, name, environment, *command), preloaded)

    def _start_redis(self, preloaded: PreloadedFaults | None) -> ProcessHandle:
        environment = os.environ | ({FAULTS: str(preloaded.file)} if preloaded else {})
        with (self.folder / "redis.log").open("ab") as log:
            return subprocess.Popen(
                redis_command(self.data), env=environment, stdout=log, stderr=log, preexec_fn=_die_with_parent
            )

    def _start_worker(self, name: str, environment: dict[str, str]) -> ProcessHandle:
        return Forked(environment, self.folder / f"{name}.log", run_worker)

    def _start_python(self, name: str, environment: dict[str, str], *command: str) -> ProcessHandle:
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("IMG2IMG_")}
        program = [sys.executable, "-P"] if command[0].endswith(".py") else PYTHON
        with (self.folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                [*program, *command], env=inherited | environment, stdout=log, stderr=log, preexec_fn=_die_with_parent
            )


def store_of(name: str) -> str:
    """Return the name of a process's proxy to the S3 server."""
    return f"{name}, store"
