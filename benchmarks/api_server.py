"""An API server for benchmarks: the real process with a separate Redis and without a worker."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

from redis import Redis

from img2img.app.settings import ApiSettings
from img2img.app.supervisor.embedded_redis import is_redis_ready, redis_command
from img2img.app.supervisor.process import ManagedProcess
from img2img.app.supervisor.supervisor import free_port
from img2img.domain.model_card import ModelCard, size_buckets
from img2img.domain.parameters import Scheduler
from img2img.domain.spec import Img2ImgSpec
from img2img.redis.job_queue import JobQueue
from img2img.redis.model_registry import ModelRegistry
from img2img.redis.rq_adapter import rq_queue

CARD = ModelCard(
    name="demo",
    family="stable-diffusion",
    native_size=512,
    size_multiple=8,
    min_size=256,
    max_size=1024,
    sizes=size_buckets(512, 8),
    schedulers=tuple(Scheduler),
    default_scheduler=Scheduler.DPMPP_2M,
)
SPEC = Img2ImgSpec(
    model=CARD.name,
    image="0" * 64,
    prompt="a house",
    strength=0.6,
    guidance_scale=5,
    num_inference_steps=20,
    scheduler=Scheduler.DPMPP_2M,
    seed=1,
    width=512,
    height=512,
)


class ApiServer:
    """An HTTP client of the API server, and its Redis.

    Attributes:
        api_pid: Process id of the API server.
    """

    def __init__(self, settings: ApiSettings, redis: Redis, api_pid: int) -> None:
        self.url = settings.local_url
        self.redis_url = settings.resolved_redis_url
        self.api_pid = api_pid
        self._http = HTTPConnection(settings.host, settings.port)
        self._redis = redis

    def disconnect(self) -> None:
        """Close the connection; the next request opens another."""
        self._http.close()

    def post(self, path: str, body: bytes, content_type: str) -> None:
        self._http.request("POST", path, body, {"Content-Type": content_type})
        self._check(202)

    def get(self, path: str) -> None:
        self._http.request("GET", path)
        self._check(200)

    def is_up(self) -> bool:
        try:
            self.get("/healthz")
        except ConnectionError:
            self.disconnect()
            return False
        return True

    def _check(self, status: int) -> None:
        response = self._http.getresponse()
        body = response.read()
        if response.status != status:
            raise SystemExit(f"the API server responded with {response.status}: {body.decode()}")

    def fill(self, jobs: int, queued: int) -> list[str]:
        """Queue `queued` jobs. Return the ids of `jobs` jobs: ten across the queue, the others running."""
        queue = JobQueue(self._redis)
        running = [queue.submit(SPEC).id for _ in range(jobs - 10)]
        for job_id in running:
            queue.job_store.start(job_id, execution=uuid4().hex, worker="benchmark")
            rq_queue(SPEC.model, self._redis).remove(job_id)
        waiting = [queue.submit(SPEC).id for _ in range(queued)]
        if queue.depth(SPEC.model) != queued:
            raise SystemExit(f"{queue.depth(SPEC.model)} jobs are queued, not {queued}")
        return running + waiting[:: queued // 10][:10]


@contextmanager
def run_api_server() -> Iterator[ApiServer]:
    """Start the API server and Redis, with an announced model so that submits are accepted."""
    with run_api_servers(1) as (_, [service]):
        yield service


@contextmanager
def run_api_servers(
    count: int, command: Callable[[ApiSettings], list[str]] | None = None, **environment: str
) -> Iterator[tuple[int, list[ApiServer]]]:
    """Start API servers and a Redis. Yields the process id of Redis, and the servers.

    Args:
        command: Returns the command of another server with these settings.
        environment: Further environment variables.
    """
    with TemporaryDirectory(prefix="i2i-") as folder:
        data_dir = Path(folder)
        store = {"store_url": environment["IMG2IMG_STORE_URL"]} if "IMG2IMG_STORE_URL" in environment else {}
        servers = [
            ApiSettings(_env_file=None, data_dir=data_dir, model=CARD.name, port=free_port(), **store)
            for _ in range(count)
        ]
        settings = servers[0]
        children = [ManagedProcess("redis", redis_command(data_dir), settings.as_environment(), stop_within_s=20)]
        try:
            while not is_redis_ready(settings.resolved_redis_url):
                _check_running(children)
            with Redis.from_url(settings.resolved_redis_url) as redis:
                ModelRegistry(redis).register("benchmark", [CARD], ttl_s=3600)
                for one in servers:
                    run = command(one) if command else [sys.executable, "-m", "img2img.app.cli", "api"]
                    children.append(ManagedProcess("api", run, one.as_environment() | environment, stop_within_s=10))
                services = [
                    ApiServer(one, redis, child.process.pid) for one, child in zip(servers, children[1:], strict=True)
                ]
                while not all(one.is_up() for one in services):
                    _check_running(children)
                    time.sleep(0.1)
                yield children[0].process.pid, services
        finally:
            for child in reversed(children):
                child.kill()


def _check_running(children: list[ManagedProcess]) -> None:
    for child in children:
        if child.exit_code is not None:
            raise SystemExit(f"{child.name} ended with exit code {child.exit_code} while starting")
