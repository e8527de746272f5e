"""The processes of a chaos run: a redis-server, API servers, workers and webhook dispatchers, behind proxies."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

from redis import Redis
from redis.exceptions import RedisError

from img2img.app.supervisor.embedded_redis import is_redis_ready, redis_command
from img2img.app.supervisor.process import _die_with_parent
from img2img.app.supervisor.supervisor import PYTHON, free_port
from img2img.domain.api_key import Scope
from img2img.redis.api_keys import ApiKeys
from img2img.redis.model_registry import ModelRegistry
from img2img.settings import embedded_redis_socket
from tests.chaos.proxy import Proxies
from tests.chaos.workers import run as run_worker
from tests.support.processes import MODEL, Forked, wait_for

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
WEBHOOK_TIMEOUT_S = 3
MIN_LIFE_S = 1.0  # a process that dies sooner than this is not started again at once


class Running(Protocol):
    pid: int

    def poll(self) -> int | None: ...

    def wait(self, timeout: float | None = None) -> int | None: ...


@dataclass
class Process:
    """A place in the plant: what runs there is started again whenever it has died, as a supervisor would."""

    name: str
    kind: str
    start: Callable[[], Running]
    running: Running = field(init=False)
    started_at: float = 0.0
    own_deaths: int = 0  # of which nobody here was the cause
    shy_until: float = 0.0  # a worker that missed beats lets others come back before it takes their jobs
    held: threading.Lock = field(default_factory=threading.Lock)  # while a fault is done to it

    def begin(self) -> None:
        self.running, self.started_at = self.start(), time.monotonic()

    @property
    def pid(self) -> int:
        return self.running.pid

    def send(self, signum: signal.Signals) -> None:
        os.kill(self.pid, signum)

    def kill(self) -> None:
        """kill -9 of the process alone: what it has started must see to itself."""
        if self.running.poll() is None:
            self.send(signal.SIGKILL)
        self.running.wait()

    def tend(self) -> None:
        """Starts it again if it died of something else than a fault."""
        if not self.held.acquire(blocking=False):
            return
        try:
            if self.running.poll() is not None and time.monotonic() - self.started_at > MIN_LIFE_S:
                self.own_deaths += 1
                self.begin()
        finally:
            self.held.release()


class Plant:
    """All processes, and how to reach them."""

    def __init__(self, folder: Path, data: Path, model: Path, receiver: str, *, lease_s: int, workers: int) -> None:
        """folder: for logs. data: of Redis and the store, on the small disk if there is one."""
        self.folder, self.data, self.lease_s = folder, data, lease_s
        self.socket = embedded_redis_socket(data)
        self.proxies = Proxies(self.socket)
        self.redis = Redis.from_url(f"unix://{self.socket}", socket_timeout=2)  # ours, which no proxy disturbs
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
        self.receiver = receiver
        self.redis_server = Process("redis", "redis", self._start_redis)
        self.ports = [free_port() for _ in range(2)]
        self.urls = [f"http://127.0.0.1:{port}" for port in self.ports]
        self.workers = [self._process("worker", i, self._start_worker) for i in range(workers)]
        self.dispatchers = [self._process("webhooks", i, self._start_python, "img2img.app.webhooks") for i in range(2)]
        self.apis = [self._process("api", i, self._start_python, "img2img.app.cli", "api") for i in range(2)]
        self.keys: list[str] = []
        self._over = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="keeper", daemon=True)

    @property
    def processes(self) -> list[Process]:
        return [self.redis_server, *self.dispatchers, *self.workers, *self.apis]

    def start(self) -> None:
        """Everything, until jobs could be submitted and each worker is live."""
        self.redis_server.begin()
        wait_for(lambda: is_redis_ready(f"unix://{self.socket}"))
        self.keys = [ApiKeys(self.redis).create(f"owner {i}", [Scope.READ, Scope.SUBMIT])[0] for i in range(3)]
        for process in self.processes[1:]:
            process.begin()
        wait_for(lambda: len(ModelRegistry(self.redis).live().get(MODEL, [])) == len(self.workers), 180)
        self._keeper.start()

    def is_live(self, worker: Process) -> bool:
        """Whether it has said that it is ready."""
        try:
            names = ModelRegistry(self.redis).live().get(MODEL, [])
        except RedisError:
            return False
        return any(f"-{worker.pid}-" in name for name in names)

    def can_sweep(self) -> bool:
        """Whether there is a worker that could find lost jobs now."""
        now = time.monotonic()
        fit = [worker for worker in self.workers if now >= worker.shy_until and not worker.held.locked()]
        return any(map(self.is_live, fit))

    def stop(self) -> None:
        self._over.set()
        if self._keeper.is_alive():
            self._keeper.join()
        for process in reversed(self.processes):
            if hasattr(process, "running"):
                process.kill()
        self.redis.close()
        self.proxies.close()

    def _keep(self) -> None:
        while not self._over.wait(0.1):
            for process in self.processes:
                process.tend()

    def _process(self, kind: str, place: int, start: Callable[..., Running], *command: str) -> Process:
        name = f"{kind}-{place}"
        environment = {**self._settings, "IMG2IMG_REDIS_URL": self.proxies.url(name)}
        if kind == "api":
            environment["IMG2IMG_PORT"] = str(self.ports[place])
        return Process(name, kind, partial(start, name, environment, *command))

    def _start_redis(self) -> Running:
        with (self.folder / "redis.log").open("ab") as log:
            return subprocess.Popen(redis_command(self.data), stdout=log, stderr=log, preexec_fn=_die_with_parent)

    def _start_worker(self, name: str, environment: dict[str, str]) -> Running:
        return Forked(environment, self.folder / f"{name}.log", run_worker)

    def _start_python(self, name: str, environment: dict[str, str], *command: str) -> Running:
        own = {key: value for key, value in os.environ.items() if not key.startswith("IMG2IMG_")}
        with (self.folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                [*PYTHON, *command], env=own | environment, stdout=log, stderr=log, preexec_fn=_die_with_parent
            )
