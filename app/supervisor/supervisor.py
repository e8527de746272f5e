"""Runs Redis, webhook dispatcher, worker and API server on one machine, for `img2img serve`."""

import errno
import fcntl
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import IO

import httpx
import typer
from obstore.exceptions import BaseError as StoreError
from redis.exceptions import RedisError

from img2img.blobs import ObjectStore, UnusableStore
from img2img.domain.model_card import is_path
from img2img.model_sources import SEPARATOR
from img2img.private_files import make_private
from img2img.redis.api_keys import ApiKeys
from img2img.redis.durability import Durability, DurableWrites, UnsupportedDurability

from ..settings import ApiSettings
from ..webhooks.signing import ensure_secret
from .devices import PYTHON, count_gpus, environment_of, worker_devices
from .embedded_redis import connect, is_redis_ready, redis_command
from .errors import ServeError, TemporaryServeError
from .process import ManagedProcess
from .redis_server import RedisUnavailable

# Contents of the data directory of `img2img serve`.
DATA_ENTRIES = ("redis", "redis.sock", "store", "serve.lock", "webhook-secret")
# Exit code of a worker that cannot start and has logged the reason.
CANNOT_START = 2
# Time for a worker to finish its jobs. Unfinished jobs run again after the next start.
DRAIN_S = 60.0


@contextmanager
def running(settings: ApiSettings, announce: Callable[[], None] = lambda: None) -> Iterator["Supervisor"]:
    """Run the service while the context lasts. SIGTERM interrupts it like Ctrl-C.

    Args:
        announce: Called when nothing that can be checked at once prevents the start.

    Raises:
        ServeError: It cannot start, or a worker cannot.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    check_model(settings)
    check_torch()
    with lock_data_dir(settings.data_dir):
        check_port(settings.host, settings.port)
        announce()
        if not settings.webhook_secret:
            _ensure_secret(settings.data_dir)
        supervisor = Supervisor(settings)
        try:
            supervisor.start()
            yield supervisor
        except KeyboardInterrupt:
            typer.echo("\nimg2img: stopping after jobs in flight; press Ctrl-C again to stop immediately", err=True)
            raise
        finally:
            supervisor.stop()


class Supervisor:
    """Starts, restarts and stops the processes of the service."""

    def __init__(self, settings: ApiSettings) -> None:
        self._settings = settings
        self._environment = settings.as_environment() | _model_folders(settings)
        self._processes: list[ManagedProcess] = []
        self._workers: list[ManagedProcess] = []
        self._reported = ""

    def start(self) -> None:
        """Start Redis, webhook dispatcher, worker and API server; wait until they are ready. Raises ServeError."""
        if not self._settings.redis_url:
            if self._settings.durability is Durability.REPLICA:
                raise ServeError("IMG2IMG_DURABILITY=replica needs a Redis with replicas: set IMG2IMG_REDIS_URL")
            try:
                command = redis_command(self._settings.data_dir, self._settings.durability)
            except RedisUnavailable as error:
                raise ServeError(str(error)) from None
            self._add("redis", command, stop_within_s=20)
            self._wait_until(lambda: is_redis_ready(self._settings.resolved_redis_url))
        check_keys(self._settings)
        check_store(self._settings)
        self._add("webhooks", [*PYTHON, "img2img.app.webhooks"], stop_within_s=self._settings.webhook_timeout_s + 5)
        self._start_workers()
        self._add("api", [*PYTHON, "img2img.app.cli", "api", "--part-of-serve"], stop_within_s=10)
        with httpx.Client(base_url=self._settings.local_url, trust_env=False) as http:
            self._wait_until(lambda: is_ready(http, self._report))

    def _start_workers(self) -> None:
        devices = worker_devices(self._settings.device, count_gpus)
        for index, device in enumerate(devices):
            name = "worker" if len(devices) == 1 else f"worker {index} ({device})"
            environment = environment_of(index, devices, self._environment)
            worker = ManagedProcess(name, [*PYTHON, "img2img.worker"], environment, DRAIN_S)
            self._processes.append(worker)
            self._workers.append(worker)

    def _report(self, reason: str) -> None:
        """Print why the service is not ready, when the reason changes."""
        if reason != self._reported:
            typer.echo(f"img2img: not ready: {reason}", err=True)
            self._reported = reason

    def tick(self) -> None:
        """Restart processes that have ended. Raises ServeError if no worker can start."""
        self._drop_failed_workers()
        for process in self._processes:
            code = process.exit_code
            if code is not None and process.restart_when_due():
                typer.echo(f"img2img: {process.name} ended with exit code {code}; restarted it", err=True)

    def _drop_failed_workers(self) -> None:
        """Leave workers that cannot start down, while others run. Raises ServeError if there is no other."""
        for worker in [worker for worker in self._workers if worker.exit_code == CANNOT_START]:
            self._workers.remove(worker)
            if not self._workers:
                raise ServeError
            self._processes.remove(worker)
            typer.echo(f"img2img: {worker.name} cannot start; the service runs without it", err=True)

    def stop(self) -> None:
        """Stop the API server first, then workers, webhook dispatcher and Redis. A second Ctrl-C does not wait."""
        try:
            while self._processes:
                last = self._processes[-1]
                for worker in self._workers if last in self._workers else ():
                    # Together: each may need its time to finish jobs.
                    worker.terminate()
                last.stop()
                self._processes.pop()
        finally:
            for process in self._processes:
                process.kill()

    def _add(self, name: str, command: list[str], stop_within_s: float) -> None:
        self._processes.append(ManagedProcess(name, command, self._environment, stop_within_s))

    def _wait_until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._drop_failed_workers()
            for process in self._processes:
                code = process.exit_code
                if code is not None:
                    raise TemporaryServeError(f"{process.name} ended with exit code {code} while starting")
            time.sleep(0.1)


def is_ready(http: httpx.Client, report: Callable[[str], None] = lambda _: None) -> bool:
    """Whether the service accepts jobs and has a worker for them. If Redis or the disk prevents it, report that."""
    try:
        response = http.get("/readyz")
    except httpx.TransportError:
        return False
    if response.status_code == 503 and response.headers["content-type"] == "application/json":
        status = response.json()
        reasons = [f"{part}: {status[part]['detail']}" for part in ("redis", "store") if not status[part]["ok"]]
        if reasons:
            report("; ".join(reasons))
    return response.status_code == 200


def _model_folders(settings: ApiSettings) -> dict[str, str]:
    """Return the folders of models that requests add: any, where only users of this machine can make requests."""
    if settings.model_folders is not None or not settings.is_only_for_this_machine:
        return {}
    # Relative paths are those of a model file.
    base = settings.models_file.absolute().parent if settings.models_file else Path.cwd()
    return {"IMG2IMG_MODEL_FOLDERS": f"{base}{SEPARATOR}/"}


def _ensure_secret(data_dir: Path) -> None:
    try:
        ensure_secret(data_dir)
    except OSError as error:
        raise ServeError(f"the data directory {data_dir} cannot be written: {error.strerror}") from None


def check_keys(settings: ApiSettings) -> None:
    """Raise ServeError if API keys are required but there are none, so that no client could use the service.

    If Redis is unavailable the check is skipped; requests are then rejected until it is back.
    """
    if not settings.keys_required:
        if settings.cells:
            raise ServeError("IMG2IMG_CELLS needs API keys, each of which belongs to a cell: set IMG2IMG_KEYS=required")
        return
    for cell in settings.by_cell().values():
        with connect(cell.resolved_redis_url) as redis:
            try:
                if ApiKeys(redis).any():
                    return
            except RedisError:
                return
    # The Compose file sets `published_host`.
    inside, insecure = (
        ("docker compose run --rm api ", "IMG2IMG_INSECURE=true") if settings.published_host else ("", "--insecure")
    )
    raise ServeError(
        f"on {settings.published_host or settings.host} requests need an API key, and none exists yet: create one with "
        f"`{inside}img2img keys create --name NAME`, or accept requests without API keys with {insecure}"
    )


def check_durability(settings: ApiSettings) -> None:
    """Raise ServeError if Redis does not support the durability. A Redis that does not respond is not an error."""
    with connect(settings.resolved_redis_url) as redis:
        try:
            DurableWrites(redis, settings.durability).check()
        except UnsupportedDurability as error:
            raise ServeError(error.message) from None
        except RedisError:
            return


def check_store(settings: ApiSettings) -> None:
    """Raise ServeError if the blob store lacks a required feature. A store that does not respond is not an error."""
    try:
        store = ObjectStore(settings.resolved_store_url, retry_timeout_s=1)
        if settings.result_redirect:
            _check_signing(store)
        store.check_first_writer_wins()
    except UnusableStore as error:
        raise ServeError(str(error)) from None
    except StoreError:
        return


def _check_signing(store: ObjectStore) -> None:
    try:
        store.sign("GET", "check", 1)
    except (UnusableStore, StoreError) as error:
        why = str(error).split("\n", 1)[0]
        raise ServeError(f"IMG2IMG_RESULT_REDIRECT=true needs a store that signs URLs: {why}") from None


def check_model(settings: ApiSettings) -> None:
    """Raise ServeError if the model is a file or folder that does not exist, before processes start for it."""
    path = Path(settings.model).expanduser()
    if settings.models_file is None and is_path(settings.model) and not path.exists():
        raise ServeError(f"--model (IMG2IMG_MODEL): {path.absolute()} does not exist")


def check_torch() -> None:
    """Raise ServeError if torch, which is an optional dependency, is not installed."""
    if find_spec("torch") is None:
        raise ServeError("a worker needs torch: pip install 'img2img-server[worker]'")


def lock_data_dir(data_dir: Path) -> IO[str]:
    """Create the data directory for this user only, and lock it while the returned file is open. Raises ServeError."""
    try:
        make_private(data_dir, DATA_ENTRIES)
        # Path.open cannot set the mode.
        lock = open(os.open(data_dir / "serve.lock", os.O_WRONLY | os.O_CREAT, 0o600), "w")  # noqa: PTH123, SIM115
    except OSError as error:
        raise ServeError(f"the data directory {data_dir} cannot be written: {error.strerror}") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise TemporaryServeError(f"another `img2img serve` is using the data directory {data_dir}") from None
    return lock


def check_port(host: str, port: int) -> None:
    """Raise ServeError if the address cannot be listened on."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        can_use_another = error.errno in (errno.EADDRINUSE, errno.EACCES)
        remedy = "; choose another with --port or IMG2IMG_PORT" if can_use_another else ""
        raise TemporaryServeError(f"cannot listen on {host} port {port}: {error.strerror}{remedy}") from None


def free_port() -> int:
    """Return a port of 127.0.0.1 that is currently unused."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
