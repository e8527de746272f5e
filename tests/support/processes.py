"""Real processes for the reliability tests: workers, and a redis-server that can be killed and restarted."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import pytest
from PIL import Image
from redis import Redis

from img2img.app.supervisor.devices import PYTHON
from img2img.app.supervisor.embedded_redis import is_redis_ready, redis_command
from img2img.blobs import ObjectStore
from img2img.domain.blob_keys import input_key, result_key
from img2img.domain.job import JobRecord, JobStatus
from img2img.redis.job_queue import JobQueue
from img2img.redis.model_registry import ModelRegistry
from img2img.redis.rq_adapter import rq_queue
from img2img.settings import embedded_redis_socket
from tests.support.specs import make_spec

MODEL = "tiny"
# Pixels. Small, so that a step takes milliseconds.
SIDE = 16
T = TypeVar("T")


def wait_for(condition: Callable[[], T], timeout_s: float = 60) -> T:
    """Call `condition` until it returns a true value, and return that value."""
    deadline = time.monotonic() + timeout_s
    while not (result := condition()):
        assert time.monotonic() < deadline, f"the condition was not met within {timeout_s:g} s"
        time.sleep(0.02)
    return result


@cache
def _forkserver() -> Any:
    """Return a fork server that has imported torch and diffusers, because these imports take many seconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.support.warm_imports"])
    return context


def _make_tiny_model(folder: str) -> None:
    from tests.support.models.tiny_models import tiny_sd

    tiny_sd(Path(folder))


def make_tiny_model(folder: Path) -> None:
    """Save a tiny model, in a child process so that this process needs no torch."""
    process = _forkserver().Process(target=_make_tiny_model, args=(str(folder),))
    process.start()
    process.join()
    assert process.exitcode == 0


def run_worker(environment: dict[str, str], log: str) -> None:
    import torch

    from img2img.worker.__main__ import main

    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.update(environment)
    torch.set_num_threads(1)
    sys.exit(main())


class Forked:
    """A fork of the fork server, with the part of the interface of Popen that Worker needs."""

    def __init__(
        self, environment: dict[str, str], log: Path, run: Callable[[dict[str, str], str], None] | None = None
    ) -> None:
        """Start the process.

        Args:
            run: replaces `run_worker`, for workers that misbehave. Must be a function of a module.
        """
        self._process = _forkserver().Process(target=run or run_worker, args=(environment, str(log)))
        self._process.start()
        self.pid: int = self._process.pid

    def poll(self) -> int | None:
        return self.wait(0)

    def wait(self, timeout: float | None = None) -> int | None:
        self._process.join(timeout)
        return self._process.exitcode


def _start_cold(environment: dict[str, str], log: Path) -> "subprocess.Popen[bytes]":
    with log.open("ab") as output:
        return subprocess.Popen([*PYTHON, "img2img.worker"], env=os.environ | environment, stdout=output, stderr=output)


class Worker:
    """A worker process."""

    def __init__(self, process: "Forked | subprocess.Popen[bytes]") -> None:
        self._process = process
        self.pid = process.pid

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def send(self, signum: signal.Signals) -> None:
        os.kill(self.pid, signum)

    def kill(self) -> None:
        """Kill the worker with SIGKILL, so that it cannot clean up."""
        if self.is_alive:
            self.send(signal.SIGKILL)
        self._process.wait()

    def exit_code(self, timeout_s: float = 60) -> int:
        code = self._process.wait(timeout_s)
        assert code is not None, "still running"
        return code

    def owns(self, record: JobRecord) -> bool:
        return f"-{self.pid}-" in (record.worker or "")


class Service:
    """Redis, a store and the workers that a test starts. The test takes the role of the API server."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder = folder
        self.model = model
        self.url = f"unix://{embedded_redis_socket(folder)}"
        self.workers: list[Worker] = []
        self.start_redis()
        self.redis = Redis.from_url(self.url)
        self.jobs = JobQueue(self.redis)
        self.job_store = self.jobs.job_store
        self.queue = rq_queue(MODEL, self.redis)
        self.store = ObjectStore((folder / "store").as_uri())
        png = BytesIO()
        Image.linear_gradient("L").resize((SIDE, SIDE)).convert("RGB").save(png, "PNG")
        self.input = png.getvalue()
        self.image = sha256(self.input).hexdigest()
        self.store.put(input_key(self.image), self.input)

    def start_redis(self) -> None:
        self._redis_process = subprocess.Popen(redis_command(self.folder))
        wait_for(lambda: is_redis_ready(self.url))

    def kill_redis(self) -> None:
        self._redis_process.kill()
        self._redis_process.wait()

    def stop(self) -> None:
        for worker in self.workers:
            worker.kill()
        self.redis.close()
        self.kill_redis()

    def start_worker(
        self,
        *,
        slots: int = 8,
        lease_s: int = 3,
        wait: bool = True,
        cold: bool = False,
        run: Callable[[dict[str, str], str], None] | None = None,
        **settings: str,
    ) -> Worker:
        """Start a worker.

        Args:
            wait: wait until the worker is live.
            cold: start `python -m img2img.worker` instead of a fork.
            run: replaces `run_worker` in a fork, see `Forked`.
            settings: environment variables.
        """
        environment = {
            "IMG2IMG_REDIS_URL": self.url,
            "IMG2IMG_DATA_DIR": str(self.folder),
            "IMG2IMG_MODEL": str(self.model),
            "IMG2IMG_SLOTS": str(slots),
            "IMG2IMG_LEASE_S": str(lease_s),
            "IMG2IMG_DEVICE": "cpu",
            **settings,
        }
        log = self.folder / "workers.log"
        worker = Worker(_start_cold(environment, log) if cold else Forked(environment, log, run))
        self.workers.append(worker)
        if wait:
            self.wait_until_live(worker)
        return worker

    def wait_until_live(self, worker: Worker) -> None:
        def is_live() -> bool:
            assert worker.is_alive, "the worker exited during startup"
            return any(f"-{worker.pid}-" in name for name in ModelRegistry(self.redis).live().get(MODEL, []))

        wait_for(is_live, timeout_s=180)

    def submit(self, **changes: Any) -> str:
        return self.jobs.submit(make_spec(**{"image": self.image, "width": SIDE, "height": SIDE} | changes)).id

    def record(self, job_id: str) -> JobRecord:
        record = self.job_store.get(job_id)
        assert record is not None
        return record

    def all(self, job_ids: Iterable[str]) -> list[JobRecord]:
        return [self.record(job_id) for job_id in job_ids]

    def wait_until(self, job_id: str, status: JobStatus, timeout_s: float = 120) -> JobRecord:
        wait_for(lambda: self.record(job_id).status is status, timeout_s)
        return self.record(job_id)

    def wait_until_running(self, job_id: str, worker: Worker) -> JobRecord:
        """Wait until the worker has done a step of the job."""
        wait_for(lambda: worker.owns(self.record(job_id)) and self.record(job_id).step > 0)
        return self.record(job_id)

    def wait_until_ended(self, job_ids: Iterable[str], timeout_s: float = 120) -> list[JobRecord]:
        job_ids = list(job_ids)
        wait_for(lambda: all(record.status.is_terminal for record in self.all(job_ids)), timeout_s)
        return self.all(job_ids)

    def assert_finished_once(self, records: Iterable[JobRecord]) -> None:
        """Assert that all jobs have succeeded, their images match their records, and Redis has no open work."""
        for record in records:
            assert record.status is JobStatus.SUCCEEDED, record
            assert [image.index for image in record.images] == list(range(record.spec.num_images))
            for image in record.images:
                png = self.store.get(result_key(record.id, image.index))
                assert png is not None
                assert sha256(png).hexdigest() == image.sha256
        wait_for(self.is_idle)

    def is_idle(self) -> bool:
        """Return whether no job is queued, claimed or leased, and no record is active."""
        registry = self.queue.started_job_registry.key
        lists = [self.queue.key, self.queue.intermediate_queue_key]
        return not (self.redis.exists(*lists) or self.redis.zcard(registry) or self.jobs.job_store.active_ids())


@pytest.fixture(scope="session")
def tiny_model() -> Iterator[Path]:
    with TemporaryDirectory(prefix="i2i-") as folder:
        make_tiny_model(Path(folder) / MODEL)
        yield Path(folder) / MODEL


@pytest.fixture
def service(tiny_model: Path, request: pytest.FixtureRequest) -> Iterator[Service]:
    # A short path, because it contains a unix socket.
    with TemporaryDirectory(prefix="i2i-") as folder:
        service = Service(Path(folder), tiny_model)
        try:
            yield service
        finally:
            service.stop()
            log = Path(folder) / "workers.log"
            if log.exists():
                request.node.add_report_section("teardown", "workers", log.read_text())


@pytest.fixture
def idle_service() -> Iterator[Service]:
    """A service for tests that start no worker."""
    with TemporaryDirectory(prefix="i2i-") as folder:
        service = Service(Path(folder), Path(folder) / "none")
        try:
            yield service
        finally:
            service.stop()
