"""The front end over real HTTP, on a real redis-server. No worker: tests write into records what a worker would."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

import httpx
import pytest
import uvicorn
from PIL import Image
from redis import Redis

from img2img.app.http.uvicorn_protocol import HeaderTimeoutProtocol
from img2img.app.main import create_app
from img2img.app.settings import ApiSettings
from img2img.app.supervisor.embedded_redis import is_redis_ready, redis_command
from img2img.app.supervisor.supervisor import free_port
from img2img.blobs import ObjectStore
from img2img.domain.job import ImageInfo, JobStatus
from img2img.domain.model_card import ModelCard, size_buckets
from img2img.domain.spec import FLOW_SCHEDULERS, Scheduler, Task, result_key
from img2img.redis.job_queue import JobQueue
from img2img.redis.model_registry import ModelRegistry
from img2img.settings import embedded_redis_socket
from tests.support.serving import serving

# A shell without job control starts background commands with SIGINT ignored, which all processes below would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)

CARD = ModelCard(
    name="demo",
    family="sd1",
    native_size=128,
    size_multiple=8,
    min_size=64,
    max_size=256,
    sizes=size_buckets(128, 8),
    schedulers=tuple(Scheduler),
    default_scheduler=Scheduler.DDIM,
)
# A flow model without guidance: what it does not have is refused.
PLAIN = CARD.model_copy(
    update={
        "name": "plain",
        "tasks": (Task.IMG2IMG, Task.EDIT),
        "schedulers": FLOW_SCHEDULERS,
        "default_scheduler": Scheduler.FLOW_EULER,
        "negative_prompt": False,
        "guidance": False,
        "image_guidance": False,
        "prompt_weighting": False,
    }
)
DDIM_ONLY = CARD.model_copy(update={"name": "ddim-only", "schedulers": (Scheduler.DDIM,)})


@contextmanager
def redis_server(data_dir: Path) -> Iterator[str]:
    """A redis-server of its own, by its URL."""
    process = subprocess.Popen(redis_command(data_dir))
    url = f"unix://{embedded_redis_socket(data_dir)}"
    try:
        while not is_redis_ready(url):
            assert process.poll() is None, "redis-server did not start"
        yield url
    finally:
        process.kill()
        process.wait()


@contextmanager
def http_server(settings: ApiSettings) -> Iterator[str]:
    """The front end on a loopback port, by its URL."""
    config = uvicorn.Config(create_app(settings), port=settings.port, http=HeaderTimeoutProtocol, log_level="warning")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.01)
        yield settings.local_url
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="session", autouse=True)
def no_settings_from_outside() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith("IMG2IMG_"):
                patch.delenv(name)
        yield


@pytest.fixture(scope="session")
def data_dir() -> Iterator[Path]:
    with TemporaryDirectory(prefix="i2i-") as folder:  # short: a unix socket lies in it
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
    """A client of the service, with the models announced and the queue empty."""
    monkeypatch.setattr(
        "img2img.app.progress.eta.THROUGHPUT_TTL_S", 0
    )  # what one test's workers say is nothing to the next test
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
def picture() -> bytes:
    return encoded(gradient(160, 120))


@pytest.fixture
def submit(http: httpx.Client, picture: bytes) -> Callable[..., httpx.Response]:
    """Posts a multipart submit."""

    def post(image: bytes = picture, **fields: Any) -> httpx.Response:
        return http.post("/img2img", files={"image": ("input", image)}, data=fields)

    return post


@pytest.fixture
def finish(queue: JobQueue, store: ObjectStore) -> Callable[[str], bytes]:
    """Ends a job as a worker would, and returns its first PNG."""

    def succeed(job_id: str) -> bytes:
        record = queue.job_store.get(job_id)
        assert record is not None
        execution = uuid4().hex
        assert queue.job_store.start(job_id, execution=execution, worker="test-worker")
        spec, images, pngs = record.spec, [], []
        for index in range(spec.num_images):
            png = encoded(gradient(spec.width, spec.height, blue=index))
            store.put(result_key(job_id, index), png)
            images.append(
                ImageInfo(
                    index=index,
                    seed=spec.seed + index,
                    width=spec.width,
                    height=spec.height,
                    sha256=sha256(png).hexdigest(),
                    bytes=len(png),
                )
            )
            pngs.append(png)
        assert queue.job_store.succeed(
            job_id, execution=execution, images=images, timings={"denoise": 0.25}, steps=record.steps
        )
        return pngs[0]

    return succeed


@pytest.fixture
def worked(queue: JobQueue, finish: Callable[[str], bytes], http: httpx.Client) -> Iterator[None]:
    """A thread ends jobs as a worker would."""
    over = threading.Event()

    def work() -> None:
        while not over.wait(0.05):
            for job_id in queue.job_store.active_ids():
                record = queue.job_store.get(job_id)
                if record and record.status is JobStatus.QUEUED:
                    finish(job_id)

    thread = threading.Thread(target=work)
    thread.start()
    yield
    over.set()
    thread.join()


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random-weight Stable Diffusion."""
    from tests.support.models.tiny_models import tiny_sd  # here, so that tests without a model need no torch

    return tiny_sd(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def client(model_folder: Path) -> Iterator[httpx.Client]:
    """A client of the whole service, which runs the tiny model."""
    with TemporaryDirectory(prefix="i2i-") as folder, serving(Path(folder), model_folder) as client:
        yield client


def gradient(width: int, height: int, blue: int = 0) -> Image.Image:
    """Red grows to the right and green downwards."""
    red = Image.linear_gradient("L").rotate(90).resize((width, height))
    green = Image.linear_gradient("L").resize((width, height))
    return Image.merge("RGB", (red, green, Image.new("L", (width, height), blue)))


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()
