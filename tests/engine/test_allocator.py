"""Memory of the worker: malloc settings, and no reference cycles in ended jobs."""

import subprocess
import sys
import weakref
from pathlib import Path

import pytest

from img2img.domain.job import JobStatus
from img2img.worker.engine.engine import Engine
from img2img.worker.pipelines.loading.served_models import config_for
from img2img.worker.pipelines.model import load_model
from img2img.worker.queue.batch_worker import BatchWorker
from img2img.worker.queue.execution import ExecutionState, JobExecution
from img2img.worker.runner import JobRunner
from tests.support.fixed_models import FixedModels
from tests.support.processes import MODEL, Service, wait_for

FREE_MOST_ALLOCATIONS = """
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
def test_trim_returns_scattered_pages() -> None:
    process = subprocess.run([sys.executable, "-c", FREE_MOST_ALLOCATIONS], capture_output=True, text=True, check=True)
    full, freed, trimmed = map(float, process.stdout.split())
    assert full > 350
    assert freed > 350
    assert trimmed < 50


def wait_until_running(execution: JobExecution) -> None:
    wait_for(lambda: execution.is_running)


@pytest.mark.parametrize("end", [JobStatus.SUCCEEDED, JobStatus.CANCELLED])
def test_ended_job_is_freed_without_garbage_collector(
    end: JobStatus, idle_service: Service, model_folder: Path, no_collector: None
) -> None:
    engine = Engine(slots=2)
    models = FixedModels({MODEL: load_model(config_for(str(model_folder)), device="cpu")})
    worker = BatchWorker(idle_service.redis, idle_service.store, JobRunner(engine), models, lease_s=20)
    job_id = idle_service.submit(num_images=2)
    assert worker._fetcher.fetch_one()
    [execution] = worker._in_flight.values()
    wait_until_running(execution)
    rendering = execution._rendering
    assert rendering is not None
    parts = [execution, rendering, rendering._inputs.image, *rendering.tasks]
    if end is JobStatus.CANCELLED:
        execution.stop()
    engine.shut_down()
    engine.run()
    assert execution.state is ExecutionState.RENDERED
    parts += [task.result for task in rendering.tasks if task.result is not None]
    refs = [weakref.ref(part) for part in parts]
    worker._finisher.close()
    worker._finisher.run()
    worker._loaders.shutdown()
    assert idle_service.record(job_id).status is end
    assert models.leases == 0
    del execution, rendering, parts
    assert [ref() for ref in refs if ref() is not None] == []
