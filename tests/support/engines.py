"""Run jobs in an engine until it has finished them."""

import gc
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from img2img.domain.spec import JobSpec
from img2img.worker.engine.engine import Engine
from img2img.worker.engine.task import EngineTask, TaskFunction
from img2img.worker.images.inputs import Inputs
from img2img.worker.pipelines.denoise import make_task_function
from img2img.worker.pipelines.model import Model
from img2img.worker.runner import to_pixels
from img2img.worker.runtime.engine_thread import start_engine


def random_tensor(seed: int, width: int, height: int) -> torch.Tensor:
    """Return a random image: (1, 3, height, width) in [0, 1]."""
    pixels = np.random.default_rng(seed).integers(0, 256, (1, 3, height, width), np.uint8)
    return torch.from_numpy(pixels).float() / 255


def run_together(model: Model, jobs: Sequence[tuple[JobSpec, Inputs]], slots: int = 16) -> list[np.ndarray]:
    """Return the pixels of each job, all run in one engine at the same time. Raises the first error of a job."""
    return run_on(Engine(slots=slots), model, jobs)


def run_on(engine: Engine, model: Model, jobs: Sequence[tuple[JobSpec, Inputs]]) -> list[np.ndarray]:
    """Return the pixels of each job, run in a new engine that the caller can inspect afterwards."""
    return [to_pixels(result) for result in run_tasks(model, jobs, engine)]


def run_tasks(model: Model, jobs: Sequence[tuple[JobSpec, Inputs]], engine: Engine | None = None) -> list[torch.Tensor]:
    """Return the results before rounding: (1, 3, height, width) in [0, 1]."""
    functions = [make_task_function(model, spec, inputs, 0) for spec, inputs in jobs]
    return run_functions(functions, engine or Engine(slots=16))


def run_functions(functions: Sequence[TaskFunction], engine: Engine) -> list[torch.Tensor]:
    """Return the results of the functions, run in one engine. Raises the first error."""
    tasks = [EngineTask(function, lambda _task: None) for function in functions]
    engine.submit(tasks)
    engine.shut_down()
    loop = threading.Thread(target=engine.run)
    loop.start()
    loop.join()
    for task in tasks:
        if task.error is not None:
            raise task.error
    return [task.result for task in tasks]


@contextmanager
def running_engine(slots: int = 1) -> Iterator[Engine]:
    """Yield an engine that runs on its own thread."""
    engine = Engine(slots=slots)
    thread = start_engine(engine)
    yield engine
    engine.shut_down()
    thread.join()


@pytest.fixture
def no_grad() -> Iterator[None]:
    """Run modules without gradients, as the engine does."""
    with torch.no_grad():
        yield


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Run torch on one thread in the importing module: the small models of the tests are slower with more threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Turn off the garbage collector, so that memory is freed only when its last reference is dropped."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()
