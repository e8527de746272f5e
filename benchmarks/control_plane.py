"""Cost of a job in Redis and in a worker without a model: a real redis-server and a real BatchWorker.

python -m benchmarks.control_plane
"""

import argparse
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

from redis import Redis
from rq.job import Job

from benchmarks.api_server import CARD
from benchmarks.queue_memory import Filler
from img2img.app.supervisor.embedded_redis import is_redis_ready, redis_command
from img2img.app.supervisor.process import ManagedProcess
from img2img.domain.blob_keys import input_key
from img2img.domain.spec import JobSpec
from img2img.redis.job_queue import JobQueue
from img2img.settings import embedded_redis_socket
from img2img.worker.engine.timeline import Timeline
from img2img.worker.queue.batch_worker import BatchWorker
from tests.support.fixed_models import FixedModels
from tests.support.memory_store import MemoryStore

PNG = b"an image"


class FinishedJob:
    """A job that is finished as soon as it is started."""

    def __init__(self, indices: Sequence[int]) -> None:
        self.indices = indices
        self.steps_done = self.remaining = 0

    def start(self, on_done: Callable[[], None]) -> None:
        on_done()

    def stop(self) -> None:
        return

    def timeline(self) -> Timeline:
        timeline = Timeline()
        timeline.add("denoise", 0.0, 0.0)
        return timeline

    def render(self) -> list[Any]:
        return [SimpleNamespace(index=index, png=PNG) for index in self.indices]


class NoOpRunner:
    """A runner without a model, whose jobs take no time."""

    slots = 16

    def prepare(
        self, _spec: JobSpec, _pngs: Mapping[str, bytes], indices: Sequence[int], _model: object
    ) -> FinishedJob:
        return FinishedJob(indices)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2_000)
    parser.add_argument("--json", type=Path, help="write all results to this file")
    options = parser.parse_args()
    with TemporaryDirectory(prefix="i2i-") as folder:
        child = ManagedProcess("redis", redis_command(Path(folder)), os.environ, stop_within_s=20)
        url = f"unix://{embedded_redis_socket(Path(folder))}"
        try:
            while not is_redis_ready(url):
                if child.exit_code is not None:
                    raise SystemExit("redis-server did not start")
            with Redis.from_url(url) as redis:
                results = measure(redis, options.jobs)
        finally:
            child.kill()
    for name, value in results.items():
        sys.stdout.write(f"| {name.replace('_', ' ')} | {value:,.2f} |\n")
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


def measure(redis: Redis, jobs: int) -> dict[str, float]:
    """Return the CPU time of a submit and of a worker per job, and the memory in Redis of a finished job."""
    queue, store, filler = JobQueue(redis), MemoryStore(), Filler(redis)
    empty, idle = _memory(redis), _cpu_s(redis)
    ids = [filler.submit() for _ in range(jobs)]
    submitted = _cpu_s(redis)
    for job_id in ids:
        store.put(input_key(queue.job_store.find(job_id).spec.inputs[0]), PNG)
    before, worker_before = _cpu_s(redis), time.process_time()
    _work(redis, queue, store)
    ended, spent = _cpu_s(redis), time.process_time() - worker_before
    # RQ keeps its job hashes for a minute.
    while redis.exists(*(Job.key_for(job_id) for job_id in ids)):
        time.sleep(1)
    return {
        "jobs": jobs,
        "Redis_ms_a_submit": (submitted - idle) / jobs * 1e3,
        "Redis_ms_from_claim_to_end": (ended - before) / jobs * 1e3,
        "worker_ms_from_claim_to_end": spent / jobs * 1e3,
        "bytes_of_an_ended_job": (_memory(redis) - empty) / jobs,
    }


def _work(redis: Redis, queue: JobQueue, store: MemoryStore) -> None:
    """Run a worker until no job is left."""

    def stop() -> None:
        while queue.job_store.active_ids():
            time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop)
    thread.start()
    models = FixedModels({CARD.name: SimpleNamespace(card=CARD)})
    BatchWorker(redis, store, NoOpRunner(), models, lease_s=20).serve(lambda: True)  # type: ignore[arg-type]
    thread.join()


def _memory(redis: Redis) -> int:
    return int(redis.info("memory")["used_memory"])


def _cpu_s(redis: Redis) -> float:
    cpu = redis.info("cpu")
    return float(cpu["used_cpu_user"] + cpu["used_cpu_sys"])


if __name__ == "__main__":
    main()
