"""Fixtures shared by all tests. Fixtures of one folder are in the conftest.py of that folder."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import pytest
from redis import Redis

from img2img.app.settings import ApiSettings
from img2img.app.supervisor.supervisor import free_port
from img2img.blobs import ObjectStore
from img2img.domain.job import JobStatus
from img2img.redis.job_queue import JobQueue
from img2img.redis.model_registry import ModelRegistry
from tests.support.finished_jobs import succeed
from tests.support.images import encoded, gradient
from tests.support.model_cards import CARD, DDIM_ONLY
from tests.support.processes import idle_service, service, tiny_model  # noqa: F401  # fixtures
from tests.support.servers import http_server, redis_server
from tests.support.serving import serving

# Models as small as those of the tests are slower with more threads, also in the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell without job control starts background commands with SIGINT ignored, which child processes would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)


# A redis-server or valkey-server that all tests use, with everything that they start.
if "TEST_REDIS" in os.environ:
    _programs = TemporaryDirectory(prefix="i2i-")
    (Path(_programs.name) / "redis-server").symlink_to(Path(os.environ["TEST_REDIS"]).absolute())
    os.environ["PATH"] = f"{_programs.name}{os.pathsep}{os.environ['PATH']}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest."""
    first = {"test_pixels.py": 0, "test_service.py": 1, "test_reliability.py": 2, "test_chaos.py": 3}
    items.sort(key=lambda item: first.get(item.path.name, len(first)))


@pytest.fixture(scope="session", autouse=True)
def clear_settings_of_the_environment() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith("IMG2IMG_"):
                patch.delenv(name)
        yield


@pytest.fixture(scope="session")
def data_dir() -> Iterator[Path]:
    # A short path, because it contains a unix socket.
    with TemporaryDirectory(prefix="i2i-") as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def redis_url(data_dir: Path) -> Iterator[str]:
    with redis_server(data_dir) as url:
        yield url


@pytest.fixture(scope="session")
def settings(data_dir: Path, redis_url: str) -> ApiSettings:
    return ApiSettings(
        _env_file=None,
        data_dir=data_dir,
        redis_url=redis_url,
        model="demo",
        port=free_port(),
        max_body_bytes=4 * 1024 * 1024,
        max_pixels=4_000_000,
    )


@pytest.fixture(scope="session")
def service_url(settings: ApiSettings) -> Iterator[str]:
    with http_server(settings) as url:
        yield url


@pytest.fixture
def redis(redis_url: str) -> Iterator[Redis]:
    with Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def http(service_url: str, redis: Redis, monkeypatch: pytest.MonkeyPatch) -> Iterator[httpx.Client]:
    """A client of the service, with registered models and an empty queue."""
    # The throughput that the workers of one test report must not affect the next test.
    monkeypatch.setattr("img2img.app.progress.eta.THROUGHPUT_TTL_S", 0)
    monkeypatch.setattr("img2img.app.backends.readiness.MAX_AGE_S", 0)
    redis.flushall()
    ModelRegistry(redis).register("test-worker", [CARD, DDIM_ONLY], ttl_s=60)
    with httpx.Client(base_url=service_url, timeout=10) as client:
        yield client


@pytest.fixture
def queue(redis: Redis) -> JobQueue:
    return JobQueue(redis)


@pytest.fixture
def store(settings: ApiSettings) -> ObjectStore:
    return ObjectStore(settings.resolved_store_url)


@pytest.fixture
def image_bytes() -> bytes:
    return encoded(gradient(160, 120))


@pytest.fixture
def submit(http: httpx.Client, image_bytes: bytes) -> Callable[..., httpx.Response]:
    """Submit a job as a multipart form."""

    def post(image: bytes = image_bytes, **fields: Any) -> httpx.Response:
        return http.post("/img2img", files={"image": ("input", image)}, data=fields)

    return post


@pytest.fixture
def finish(queue: JobQueue, store: ObjectStore) -> Callable[[str], bytes]:
    """Complete a job as a worker does, and return its first PNG."""
    return lambda job_id: succeed(job_id, queue, store)


@pytest.fixture
def fake_worker(queue: JobQueue, finish: Callable[[str], bytes], http: httpx.Client) -> Iterator[None]:
    """Run a thread that completes jobs as a worker does."""
    stopped = threading.Event()

    def work() -> None:
        while not stopped.wait(0.05):
            for job_id in queue.job_store.active_ids():
                record = queue.job_store.get(job_id)
                if record and record.status is JobStatus.QUEUED:
                    finish(job_id)

    thread = threading.Thread(target=work)
    thread.start()
    yield
    stopped.set()
    thread.join()


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny Stable Diffusion model with random weights."""
    # Not at the top of the module, so that tests without a model need no torch.
    from tests.support.models.tiny_models import tiny_sd

    return tiny_sd(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def client(model_folder: Path) -> Iterator[httpx.Client]:
    """A client of the whole service with the tiny model."""
    with TemporaryDirectory(prefix="i2i-") as folder, serving(Path(folder), model_folder) as client:
        yield client
