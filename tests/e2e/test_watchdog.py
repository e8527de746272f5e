"""A worker whose engine hangs ends, and its jobs go on in the next one."""

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
def no_timer_left() -> Iterator[None]:
    yield
    faulthandler.cancel_dump_traceback_later()


def run_worker_that_hangs(environment: dict[str, str], log: str) -> None:
    """A worker whose denoiser never answers a call with a row beyond timestep 900."""
    import torch

    import img2img.worker.__main__
    from img2img.domain.spec import Scheduler, Task

    load_model = img2img.worker.__main__.load_model

    def load(*args: Any, **kwargs: Any) -> Any:
        model = load_model(*args, **kwargs)
        gate = model.pipeline(Task.IMG2IMG, Scheduler.DDIM).unet.forward
        denoise = gate.run

        def hangs(sample: torch.Tensor, timestep: torch.Tensor, *more: Any, **named: Any) -> Any:
            if ready.is_set() and (torch.as_tensor(timestep) > 900).any():
                threading.Event().wait()
            return denoise(sample, timestep, *more, **named)

        gate.run = hangs
        return model

    ready = threading.Event()
    warm_up = img2img.worker.__main__.warm_up
    img2img.worker.__main__.load_model = load
    img2img.worker.__main__.warm_up = lambda model: (warm_up(model), ready.set())  # type: ignore[assignment]
    run_worker(environment, log)


def test_a_hung_worker_ends_and_its_jobs_go_on_at_once(service: Service) -> None:
    hanging = service.start_worker(slots=4, lease_s=60, run=run_worker_that_hangs, IMG2IMG_STALL_S="2")
    innocent = service.submit(seed=1, strength=0.5, num_inference_steps=150)
    service.wait_until_running(innocent, hanging)
    guilty = service.submit(strength=1.0)
    assert hanging.exit_code(60) == 1
    ended_at = time.monotonic()
    assert [record.status for record in service.all([guilty, innocent])] == [JobStatus.QUEUED] * 2
    said = (service.folder / "workers.log").read_text()
    assert "the engine has made no step for 2 s (IMG2IMG_STALL_S)" in said
    assert "in hangs" in said, "where it hangs"

    heir = service.start_worker(slots=4, lease_s=60)
    records = service.wait_until_ended([guilty, innocent])
    assert time.monotonic() - ended_at < 60, "no lease had to run out"
    service.assert_finished_once(records)
    assert all(heir.owns(record) for record in records)


def test_only_a_busy_engine_that_makes_no_step_is_given_up() -> None:
    engine = SimpleNamespace(iteration=0, is_busy=True)
    watchdog = Watchdog(engine, stall_s=1.5)
    for _ in range(40):  # slow steps
        engine.iteration += 1
        watchdog.look()
        time.sleep(0.05)
    engine.is_busy = False
    for _ in range(40):  # nothing to do
        watchdog.look()
        time.sleep(0.05)
    engine.is_busy = True
    watchdog.look()
    time.sleep(3 * CHECK_INTERVAL_S)  # the process was stopped, or waited for Redis
    watchdog.look()
    with pytest.raises(WorkerDied, match=r"no step for 1\.5 s"):
        wait_for(watchdog.look, 10)


HOLDS_THE_LOCK = """
import ctypes
from types import SimpleNamespace
from img2img.worker.runtime.watchdog import Watchdog

Watchdog(SimpleNamespace(iteration=0, is_busy=True), stall_s=900, deaf_s=2).look()
ctypes.PyDLL(None).sleep(120)  # PyDLL: with the lock of Python held, so that no other thread can do anything
"""


def test_a_process_in_which_no_python_runs_any_more_ends() -> None:
    ended = subprocess.run([sys.executable, "-c", HOLDS_THE_LOCK], capture_output=True, text=True, timeout=100)
    assert ended.returncode == 1
    assert "Timeout" in ended.stderr
