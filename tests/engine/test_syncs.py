"""The engine's thread does not wait for the device between the steps of a job."""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from img2img.domain.model_config import ModelConfig
from img2img.domain.parameters import DIFFUSION_SCHEDULERS, Scheduler, Task
from img2img.domain.spec import JobSpec
from img2img.worker.engine.engine import Engine
from img2img.worker.engine.task import EngineTask
from img2img.worker.images.inputs import Inputs
from img2img.worker.pipelines.denoise import make_task_function
from img2img.worker.pipelines.model import Model, load_model
from tests.support.engines import random_tensor
from tests.support.models.tiny_models import tiny_sd
from tests.support.pretend_device import DEVICE, counting_syncs, pretend_device
from tests.support.specs import make_spec

SIDE = 32
IMAGE = random_tensor(1, SIDE, SIDE)


@pytest.fixture(autouse=True)
def device() -> Iterator[None]:
    with pretend_device():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sd(tmp_path_factory.mktemp("model"))


def load(folder: Path, device: str) -> Model:
    return load_model(ModelConfig(name="tiny", source=str(folder), dtype="float32"), device=device)


def job(scheduler: Scheduler, steps: int, seed: int) -> JobSpec:
    return make_spec(
        Task.IMG2IMG,
        scheduler=scheduler,
        num_inference_steps=steps,
        strength=0.8,
        guidance_scale=3.0,
        prompt=f"house {seed}",
        negative_prompt="blurry",
        seed=seed,
        width=SIDE,
        height=SIDE,
    )


def run(model: Model, specs: list[JobSpec]) -> tuple[list[torch.Tensor], Counter[tuple[str, str]]]:
    """Run jobs together. Inference mode, which a worker uses, cannot be combined with the device."""
    engine = Engine(slots=len(specs))
    tasks = [EngineTask(make_task_function(model, spec, Inputs(IMAGE), 0), lambda _task: None) for spec in specs]
    engine.submit(tasks)
    with torch.no_grad(), counting_syncs() as syncs:
        while engine.is_busy:
            engine.step()
    for task in tasks:
        if task.error is not None:
            raise task.error
    return [task.result.cpu() for task in tasks], syncs


def test_all(folder: Path) -> None:
    on_cpu, on_device = load(folder, "cpu"), load(folder, str(DEVICE))
    for scheduler in DIFFUSION_SCHEDULERS:
        specs = lambda steps, first: [job(scheduler, steps, first), job(scheduler, steps, first + 1)]
        run(on_device, specs(5, 0))
        _, short = run(on_device, specs(5, 10))
        results, long = run(on_device, specs(15, 20))
        expected, _ = run(on_cpu, specs(15, 20))
        print(scheduler, sum(short.values()), sum(long.values()), max(float((a-b).abs().max()) for a, b in zip(results, expected)))
        for k, v in sorted(long.items(), key=lambda kv: -kv[1]): print("    ", v, short[k], k)
