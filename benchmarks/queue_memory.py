"""Memory of queued jobs in Redis, and speed of a long queue: a real redis-server, no worker.

    python -m benchmarks.queue_memory

The first jobs are queued one by one as the API server does; the others are copied in Redis, with the same keys. Every
job has another image. The jobs belong to a hundred API keys and have all priorities.
"""

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from random import Random
from statistics import median
from tempfile import TemporaryDirectory

from redis import Redis

from benchmarks.api_server import SPEC
from img2img.app.supervisor.embedded_redis import is_redis_ready, redis_command
from img2img.app.supervisor.process import ManagedProcess
from img2img.domain.blob_keys import input_key
from img2img.domain.job import JobOptions, Priority
from img2img.domain.spec import Img2ImgSpec
from img2img.redis import scripts
from img2img.redis.job_queue import JobQueue
from img2img.redis.keys import JOBS
from img2img.redis.rq_adapter import rq_job_key, rq_queue
from img2img.settings import embedded_redis_socket
from img2img.worker.queue.reaper import Reaper

OWNERS = 100
PRIORITIES = (Priority.HIGH, Priority.NORMAL, Priority.NORMAL, Priority.NORMAL, Priority.LOW)
ONE_BY_ONE = 1_000
AT_A_TIME = 500
SAMPLES = 200
COPY_JOBS = Path(__file__).with_name("copy_jobs.lua")
PROMPT = "a watercolor painting of a red house by a lake at sunset, soft light, reflections on the water, distant hills"

Row = dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--json", type=Path, help="write all results to this file")
    options = parser.parse_args()
    # SIGTERM raises, so that Redis is stopped.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with TemporaryDirectory(prefix="i2i-") as folder:
        child = ManagedProcess("redis", redis_command(Path(folder)), os.environ, stop_within_s=20)
        url = f"unix://{embedded_redis_socket(Path(folder))}"
        try:
            while not is_redis_ready(url):
                if child.exit_code is not None:
                    raise SystemExit("redis-server did not start")
            with Redis.from_url(url, socket_timeout=600) as redis:
                # The append-only file does not matter for memory.
                redis.config_set("appendonly", "no")
                rows = [_measure(redis, size) for size in sorted(options.sizes)]
                version = redis.info("server")["redis_version"]
        finally:
            child.kill()
    print(_markdown(rows, version))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


class Filler:
    """Creates jobs, the same ones in every run."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._queue = JobQueue(redis)
        self._copies = redis.register_script(scripts.compile_source(COPY_JOBS.read_text()))
        self._random = Random(1)

    def spec(self) -> Img2ImgSpec:
        image = sha256(self._random.randbytes(8)).hexdigest()
        return SPEC.model_copy(update={"image": image, "prompt": PROMPT, "seed": self._random.getrandbits(31)})

    def terms(self) -> JobOptions:
        return JobOptions(owner=f"{self._random.randrange(OWNERS):012x}", priority=self._random.choice(PRIORITIES))

    def submit(self) -> str:
        """Queue a job as the API server does after decoding the image."""
        spec, terms = self.spec(), self.terms()
        generations = self._queue.input_images.retain({input_key(spec.inputs[0]): 1_000_000}, terms.owner)
        return self._queue.submit(spec, terms, generations).id

    def fill(self, queued: int) -> None:
        """Queue jobs until `queued` jobs wait."""
        depth = self._queue.depth(SPEC.model)
        for _ in range(min(queued, ONE_BY_ONE) - depth):
            self.submit()
        template = self._queue.job_store.find(self.submit())
        keys = [rq_job_key(template.id), rq_queue(SPEC.model, self._redis).key]
        while (missing := queued - self._queue.depth(SPEC.model)) > 0:
            salt = self._random.randbytes(8).hex()
            args = [min(missing, AT_A_TIME), salt, time.time(), template.id, template.spec.image or "", OWNERS]
            self._copies(keys=keys, args=[*args, SPEC.model, template.spec.cost, *PRIORITIES])


def _measure(redis: Redis, queued: int) -> Row:
    """Fill the queue up to `queued` jobs and measure operations on it."""
    _log(f"filling up to {queued:,} queued jobs")
    filler, queue = Filler(redis), JobQueue(redis)
    if queued > redis.zcard(JOBS):
        filler.fill(queued)
    row: Row = {"queued": queue.depth(SPEC.model), "bytes": redis.info("memory")["used_memory"]}
    _log("measuring operations")
    ids = list(map(str, map(bytes.decode, redis.zrange(JOBS, 0, -1))))
    some = Random(2).sample(ids, min(SAMPLES, len(ids)))
    records = [queue.job_store.find(job_id) for job_id in some]
    row |= _spread("submit", [_ms(filler.submit) for _ in range(SAMPLES)])
    row |= _spread("position", [_ms(lambda r=record: queue.job_store.fair_queue.positions([r])) for record in records])
    row |= _spread("claim", [_ms(lambda: queue.claim(SPEC.model)) for _ in range(SAMPLES)])
    row["sweep_ms"] = _ms(lambda: Reaper(redis, lease_s=20).reap())
    return row


def _spread(name: str, times: list[float]) -> Row:
    return {f"{name}_ms": median(times), f"{name}_p99_ms": sorted(times)[int(len(times) * 0.99)]}


def _ms(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return (time.perf_counter() - start) * 1000


def _markdown(rows: list[Row], version: str) -> str:
    lines = ["| jobs queued | Redis | per job | submit | p99 | position | p99 | claim | p99 | sweep of a worker |"]
    lines.append("|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
    for row in rows:
        cells = [f"{row['queued']:,.0f}", f"{row['bytes'] / 1e6:,.0f} MB", f"{row['bytes'] / row['queued']:,.0f} B"]
        for name in ("submit", "position", "claim"):
            cells += [f"{row[f'{name}_ms']:.2f} ms", f"{row[f'{name}_p99_ms']:.2f} ms"]
        cells.append(f"{row['sweep_ms']:,.0f} ms")
        lines.append(f"| {' | '.join(cells)} |")
    cores = len(os.sched_getaffinity(0))
    lines += ["", f"redis-server {version} without an append-only file, on a unix socket; {cores} CPU cores."]
    return "\n".join(lines)


def _log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
