"""Predicted outputs of the denoiser: exact where the noise is linear in the step, and without effect on other jobs."""

import math
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from img2img.domain.model_config import ModelConfig
from img2img.domain.parameters import SPEED_SCHEDULERS, Scheduler, Speed
from img2img.domain.spec import JobSpec
from img2img.worker.engine.engine import Engine
from img2img.worker.engine.task import EngineTask
from img2img.worker.engine.timeline import Timeline
from img2img.worker.images.inputs import Inputs
from img2img.worker.pipelines import step_cache
from img2img.worker.pipelines.denoise import make_task_function
from img2img.worker.pipelines.model import Model, load_model
from img2img.worker.pipelines.schedulers import make_scheduler
from img2img.worker.pipelines.step_cache import TOLERANCES, StepCache, Tolerance, noise_levels
from tests.support.engines import one_thread, random_tensor, run_together  # noqa: F401
from tests.support.models.tiny_models import tiny_sd
from tests.support.specs import make_spec

STEPS = 12
BASE = diffusers.DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tiny_sd(tmp_path_factory.mktemp("model"))
    return load_model(ModelConfig(name="tiny", source=str(folder), dtype="bfloat16"), device="cpu")


def job(**changes: Any) -> tuple[JobSpec, Inputs]:
    return make_spec(num_inference_steps=STEPS, **changes), Inputs(random_tensor(1, 32, 32))


def test_jobs_beside_it_are_untouched(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TOLERANCES, Speed.FAST, Tolerance(math.inf, 2))
    jobs = [
        job(seed=1),
        job(seed=2, speed=Speed.FAST),
        job(seed=3, scheduler=Scheduler.EULER_A, strength=0.6),
        job(seed=4, speed=Speed.FAST, guidance_scale=1.0, scheduler=Scheduler.HEUN, strength=0.5),
        job(seed=5, scheduler=Scheduler.DPMPP_2M),
    ]
    together = run_together(model, jobs)
    for each, in_company in zip(jobs, together, strict=True):
        [alone] = run_together(model, [each])
        assert alone.tobytes() == in_company.tobytes(), each[0]


def test_skipped_calls_are_counted_and_leave_their_rows_to_others(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TOLERANCES, Speed.FAST, Tolerance(math.inf, 2))
    tasks = [
        EngineTask(make_task_function(model, *job(seed=seed, speed=speed), 0), lambda _task: None)
        for seed, speed in enumerate((Speed.EXACT, Speed.FAST))
    ]
    engine = Engine(slots=2)
    engine.submit(tasks)
    engine.shut_down()
    engine.run()
    exact, fast = tasks
    assert exact.error is fast.error is None
    assert (exact.timeline.skipped_calls, fast.timeline.skipped_calls) == (0, 6)
    assert engine.rows_run["denoise"] == 2 * (STEPS + STEPS - 6)
    assert fast.step == exact.step == STEPS
    both = Timeline()
    both.merge(task.timeline for task in tasks)
    assert both.skipped_calls == 6
    assert "skipped_calls" not in both.seconds()


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", [name for name in SPEED_SCHEDULERS if name is not Scheduler.MODEL])
def test_what_is_linear_in_the_step_is_predicted_exactly(
    name: Scheduler, prediction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step_cache, "DAMPING", 1.0)
    flow = name.startswith("flow")
    base = diffusers.FlowMatchEulerDiscreteScheduler() if flow else BASE
    scheduler = make_scheduler(name, base)
    if not flow:
        scheduler = type(scheduler).from_config(scheduler.config, prediction_type=prediction)
    scheduler.set_timesteps(STEPS)
    task = EngineTask(lambda _task: None, lambda _task: None)
    cache = StepCache(Tolerance(math.inf, 2), 1.0, scheduler, task)
    levels = noise_levels(scheduler, scheduler.timesteps[0])
    calls = len(scheduler.timesteps)
    start, slope = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0)).unbind(0)
    made = []

    def expected(call: int, latents: torch.Tensor) -> torch.Tensor:
        noise = start + call / calls * slope
        if scheduler.order > 1:
            # The image is linear in the step: the two calls with one sigma have the same.
            image = start + (call + 1) // 2 / calls * slope
            noise = ((1 if flow else math.sqrt(1 + levels[call] ** 2)) * latents - image) / levels[call]
        if flow or prediction == "epsilon":
            return noise
        signal = 1 / math.sqrt(1 + levels[call] ** 2)
        return (noise - math.sqrt(1 - signal**2) * latents) / signal

    def forward(latents: torch.Tensor, _timestep: torch.Tensor) -> tuple[torch.Tensor]:
        made.append(call)
        return (expected(call, latents),)

    denoiser = cache.wrap_denoiser(forward)
    for call in range(calls):
        latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(call))
        [output] = denoiser(latents, scheduler.timesteps[call])
        # The compensation of errors is 0 where there are none.
        torch.testing.assert_close(output, expected(call, latents), rtol=1e-3, atol=1e-3 * max(1.0, levels[call]))
        cache.end_call()
    assert made[:3] == [0, 1, 2]
    assert made[-1] == calls - 1
    assert len(levels) == calls + 1
    assert task.timeline.skipped_calls == calls - len(made) > calls // 2 - 1


@pytest.mark.parametrize("name", [Scheduler.DDIM, Scheduler.PNDM, Scheduler.HEUN, Scheduler.DPMPP_2M_KARRAS])
def test_noise_levels_of_a_start_midway_end_with_the_schedule(name: Scheduler) -> None:
    scheduler = make_scheduler(name, BASE)
    scheduler.set_timesteps(STEPS)
    everything = noise_levels(scheduler, scheduler.timesteps[0])
    begin = 4 * getattr(scheduler, "order", 1)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(begin)
    midway = noise_levels(scheduler, scheduler.timesteps[begin])
    assert midway == everything[-len(midway) :]
    assert len(midway) == len(scheduler.timesteps) - begin + 1
    assert np.all(np.diff(everything) <= 0)


def test_large_changes_are_not_skipped() -> None:
    scheduler = make_scheduler(Scheduler.EULER, BASE)
    scheduler.set_timesteps(STEPS)
    task = EngineTask(lambda _task: None, lambda _task: None)
    cache = StepCache(TOLERANCES[Speed.TURBO], 1.0, scheduler, task)
    noise = torch.Generator().manual_seed(0)
    denoiser = cache.wrap_denoiser(lambda latents, _timestep: (torch.randn(latents.shape, generator=noise),))
    for timestep in scheduler.timesteps:
        denoiser(torch.zeros(1, 4, 8, 8), timestep)
        cache.end_call()
    # At the low noise of the last steps, other noise changes the image little.
    assert task.timeline.skipped_calls <= 2
