"""The engine's thread does not wait for the device between the steps of a job."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from img2img.domain.model_config import ModelConfig
from img2img.domain.parameters import DIFFUSION_SCHEDULERS, Scheduler
from img2img.domain.spec import JobSpec
from img2img.worker.engine.engine import Engine
from img2img.worker.engine.task import EngineTask
from img2img.worker.images.inputs import Inputs
from img2img.worker.pipelines.denoise import make_task_function
from img2img.worker.pipelines.model import Model, load_model
from tests.support.engines import random_tensor
from tests.support.models.tiny_families import tiny_flux, tiny_sd3, tiny_z_image
from tests.support.models.tiny_models import tiny_sd, tiny_sdxl
from tests.support.pretend_device import counting_syncs, pretend_device
from tests.support.specs import make_spec

SIDE = 32
IMAGE = random_tensor(1, SIDE, SIDE)
FLOW = (Scheduler.FLOW_EULER,)


@pytest.fixture
def device() -> Iterator[str]:
    with pretend_device() as device:
        yield str(device)


def load(folder: Path, device: str) -> Model:
    return load_model(ModelConfig(name="tiny", source=str(folder), dtype="float32"), device=device)


def jobs(schedulers: tuple[Scheduler, ...], steps: int, first: int = 0) -> list[JobSpec]:
    return [
        make_spec(
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
        for seed, scheduler in enumerate(schedulers, first)
    ]


def run(model: Model, specs: list[JobSpec]) -> tuple[list[torch.Tensor], int]:
    """Run jobs together. Return their results, and the denoising steps of all."""
    engine = Engine(slots=len(specs))
    tasks = [EngineTask(make_task_function(model, spec, Inputs(IMAGE), 0), lambda _task: None) for spec in specs]
    engine.submit(tasks)
    # Inference mode, which a worker uses, cannot be combined with the pretend device.
    with torch.no_grad():
        while engine.is_busy:
            engine.step()
    for task in tasks:
        if task.error is not None:
            raise task.error
    return [task.result for task in tasks], sum(task.step for task in tasks)


def test_pretend_device_counts_what_waits(device: str) -> None:
    values, indices = torch.rand(4).to(device), torch.tensor([1, 2])
    waits: list[Callable[[], object]] = [
        lambda: values.sum().item(),
        lambda: bool(values[0] > 0),
        lambda: values.cpu(),
        lambda: values[indices],
        lambda: values[[1, 2]],
        lambda: values[values > 0.5],
        lambda: torch.rand(2).to(device),
        lambda: torch.rand(4).copy_(values),
    ]
    for wait in waits:
        with counting_syncs() as syncs:
            wait()
        assert sum(syncs.values()) == 1
    with counting_syncs() as syncs:
        _ = (values * 2 + torch.tensor(3.0))[1:].to(torch.float64), indices.to(device, non_blocking=True)
    assert not syncs


# Not the one whose noise torchsde draws on the device: a pretend device has no generator of random numbers.
COUNTED = tuple(scheduler for scheduler in DIFFUSION_SCHEDULERS if scheduler is not Scheduler.DPMPP_SDE)


@pytest.mark.parametrize("make", [tiny_sd, tiny_sdxl])
def test_no_scheduler_waits_for_the_device(make: Callable[[Path], Path], device: str, tmp_path: Path) -> None:
    on_device, on_cpu = load(make(tmp_path), device), load(tmp_path, "cpu")
    # The engine compares rows when it merges calls for the first time.
    run(on_device, jobs(COUNTED[:2], 1))
    specs = jobs(COUNTED, 6, first=1)
    with counting_syncs() as syncs:
        results, steps = run(on_device, specs)
    assert steps == sum(spec.steps_run for spec in specs)
    assert not syncs
    for result, expected in zip(results, run(on_cpu, specs)[0], strict=True):
        assert float((result.cpu() - expected).abs().max()) < 1e-4


@pytest.mark.parametrize("make", [tiny_flux, tiny_sd3, tiny_z_image])
def test_steps_of_other_families_do_not_wait(make: Callable[[Path], Path], device: str, tmp_path: Path) -> None:
    model = load(make(tmp_path), device)
    run(model, jobs(FLOW, 1))
    counts = []
    for steps in (3, 6):
        with counting_syncs() as syncs:
            run(model, jobs(FLOW, steps, first=steps))
        counts.append(syncs)
    assert counts[0] == counts[1], "waiting must not depend on the number of steps"
    # Each job of FLUX and Z-Image reads position ids or masks of its prompt once.
    assert sum(counts[0].values()) <= 6


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("make", [tiny_sd, tiny_sdxl])
def test_no_scheduler_waits_for_a_gpu(make: Callable[[Path], Path], tmp_path: Path) -> None:
    model = load(make(tmp_path), "cuda")
    specs = jobs(COUNTED, 6)
    # Kernels are chosen, and the engine compares rows.
    run(model, specs)
    torch.cuda.set_sync_debug_mode("error")
    try:
        results, _ = run(model, specs)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(bool(result.isfinite().all()) for result in results)
