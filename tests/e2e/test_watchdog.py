"""A worker whose engine hangs exits, and its jobs continue in another worker."""

import faulthandler
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from img2img.domain.job import JobStatus
from img2img.worker.errors import WorkerDied
from img2img.worker.runtime.watchdog import CHECK_INTERVAL_S, Watchdog
from tests.support.processes import Service, run_worker, wait_for


@pytest.fixture(autouse=True)
def cancel_timer() -> Iterator[None]:
    yield
    faulthandler.cancel_dump_traceback_later()


def run_worker_that_hangs(environment: dict[str, str], log: str) -> None:
    """Run a worker whose denoiser hangs in a call with a row above timestep 900."""
    import torch

    from img2img.domain.spec import Scheduler, Task
    from img2img.worker.runtime import model_loader

    load_model = model_loader.load_model

    def load(*args: Any, **kwargs: Any) -> Any:
        model = load_model(*args, **kwargs)
        gate = model.pipeline(Task.IMG2IMG, Scheduler.DDIM).unet.forward
        denoise = gate.run

        def hang(sample: torch.Tensor, timestep: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            if ready.is_set() and (torch.as_tensor(timestep) > 900).any():
                threading.Event().wait()
            return denoise(sample, timestep, *args, **kwargs)

        gate.run = hang
        return model

    ready = threading.Event()
    warm_up = model_loader.warm_up
    model_loader.load_model = load
    model_loader.warm_up = lambda *args: (warm_up(*args), ready.set())  # type: ignore[assignment]
    run_worker(environment, log)


def test_hung_worker_exits_and_its_jobs_are_requeued_at_once(service: Service) -> None:
    hanging = service.start_worker(slots=4, lease_s=180, run=run_worker_that_hangs, IMG2IMG_STALL_S="2")
    other = service.submit(seed=1, strength=0.5, num_inference_steps=150)
    service.wait_until_running(other, hanging)
    culprit = service.submit(strength=1.0)
    assert hanging.exit_code(60) == 1
    exited_at = time.monotonic()
    assert [record.status for record in service.all([culprit, other])] == [JobStatus.QUEUED] * 2
    log = (service.folder / "workers.log").read_text()
    assert "the engine has made no progress for 2 s (IMG2IMG_STALL_S)" in log
    assert "in hang" in log, "the traceback shows the cause"

    successor = service.start_worker(slots=4, lease_s=180)
    records = service.wait_until_ended([culprit, other])
    assert time.monotonic() - exited_at < 150, "the jobs were requeued before their leases expired"
    service.assert_finished_once(records)
    assert all(successor.owns(record) for record in records)


def test_watchdog_raises_only_for_busy_engine_without_progress() -> None:
    engine = SimpleNamespace(iteration=0, is_busy=True)
    watchdog = Watchdog(engine, stall_s=1.5)
    # An engine with slow iterations.
    for _ in range(40):
        engine.iteration += 1
        watchdog.check()
        time.sleep(0.05)
    engine.is_busy = False
    # An idle engine.
    for _ in range(40):
        watchdog.check()
        time.sleep(0.05)
    engine.is_busy = True
    watchdog.check()
    # The process was suspended, or waited for Redis.
    time.sleep(3 * CHECK_INTERVAL_S)
    watchdog.check()
    with pytest.raises(WorkerDied, match=r"no progress for 1\.5 s"):
        wait_for(watchdog.check, 10)


HOLD_THE_GIL = """
import ctypes
from types import SimpleNamespace
from img2img.worker.runtime.watchdog import Watchdog

Watchdog(SimpleNamespace(iteration=0, is_busy=True), stall_s=900, unresponsive_s=2).check()
# PyDLL calls hold the GIL, so no other thread can run.
ctypes.PyDLL(None).sleep(120)
"""


def test_process_with_held_gil_exits() -> None:
    process = subprocess.run([sys.executable, "-c", HOLD_THE_GIL], capture_output=True, text=True, timeout=100)
    assert process.returncode == 1
    assert "Timeout" in process.stderr
