"""Freed memory is kept for the next tensor, and given back where nothing came to use it. What is over is freed."""

import subprocess
import sys
import weakref
from pathlib import Path

import pytest

from img2img.domain.job import JobStatus
from img2img.worker.engine.engine import Engine
from img2img.worker.pipelines.loading.model_config import config_for
from img2img.worker.pipelines.model import load_model
from img2img.worker.queue.batch_worker import BatchWorker
from img2img.worker.runner import JobRunner
from tests.support.processes import MODEL, Service

KEEP_SOME_OF_MUCH = """
import psutil
from img2img.worker.runtime.allocator import configure_malloc, trim_malloc

configure_malloc()
mb = lambda: psutil.Process().memory_info().rss / 2**20
before = mb()
pieces = [bytearray(100_000) for _ in range(4_000)]
full = mb()
pieces = pieces[::100]
freed = mb()
trim_malloc()
print(full - before, freed - before, mb() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc")
def test_memory_in_pieces_is_given_back() -> None:
    said = subprocess.run([sys.executable, "-c", KEEP_SOME_OF_MUCH], capture_output=True, text=True, check=True)
    full, freed, trimmed = map(float, said.stdout.split())
    assert full > 350
    assert freed > 350
    assert trimmed < 50


@pytest.mark.parametrize("end", [JobStatus.SUCCEEDED, JobStatus.CANCELLED])
def test_a_job_leaves_nothing_to_the_collector(
    end: JobStatus, front_end: Service, model_folder: Path, no_collector: None
) -> None:
    engine = Engine(slots=2)
    runner = JobRunner(engine, {MODEL: load_model(config_for(str(model_folder)), device="cpu")})
    worker = BatchWorker(front_end.redis, front_end.store, runner, lease_s=20)
    job_id = front_end.submit(num_images=2)
    assert worker._intake.claim_one()
    [claim] = worker._claims.values()
    claim.loaded.wait()
    assert claim.running is not None
    parts = [claim, claim.running, claim.running._inputs.picture, *claim.running.tickets]
    if end is JobStatus.CANCELLED:
        claim.stop()
    engine.shut_down()
    engine.run()
    assert claim.rendered
    parts += [ticket.result for ticket in claim.running.tickets if ticket.result is not None]
    left = [weakref.ref(part) for part in parts]
    worker._ended.put(None)
    worker._finish_all()
    worker._loaders.shutdown()
    assert front_end.record(job_id).status is end
    del claim, parts
    assert [part() for part in left if part() is not None] == []
