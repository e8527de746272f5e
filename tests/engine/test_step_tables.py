"""With `step_tables`, steps are calculated from tables that are read off the stock schedulers."""

import inspect
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from img2img.domain.model_config import ModelConfig
from img2img.domain.parameters import DIFFUSION_SCHEDULERS, FLOW_SCHEDULERS, Scheduler
from img2img.worker.engine.deferred import Repeated, Sum, add_up, add_up_together
from img2img.worker.images.inputs import Inputs
from img2img.worker.pipelines.host_schedulers import on_host, unused_copy, with_tables
from img2img.worker.pipelines.job_noise import JobGenerator, use_job_noise
from img2img.worker.pipelines.model import load_model
from img2img.worker.pipelines.schedulers import make_scheduler
from tests.support.engines import random_tensor, run_together
from tests.support.images import largest_difference
from tests.support.models.tiny_models import tiny_sd
from tests.support.specs import make_spec

STEPS = 12
DDIM = diffusers.DDIMScheduler(
    beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
)


def denoise(scheduler: Any, generator: torch.Generator, start: int, **changes: Any) -> torch.Tensor:
    """Run a schedule from a step on, with a denoiser that is not linear."""
    scheduler.set_timesteps(STEPS)
    first = start * scheduler.order
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)
    sample = 3 * torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(5))
    given = {"generator": generator, "eta": 0.5, **changes}
    known = inspect.signature(scheduler.step).parameters
    given = {name: value for name, value in given.items() if name in known}
    for timestep in scheduler.timesteps[first:]:
        scaled = scheduler.scale_model_input(sample, timestep) if hasattr(scheduler, "scale_model_input") else sample
        prediction = torch.tanh(0.7 * scaled + 0.001 * timestep)
        sample = scheduler.step(prediction, timestep, sample, return_dict=False, **given)[0]
    return sample


# Draws its noise by itself.
WITHOUT_TABLE = Scheduler.DPMPP_SDE


@pytest.mark.parametrize("name", [name for name in (*DIFFUSION_SCHEDULERS, *FLOW_SCHEDULERS) if name != WITHOUT_TABLE])
def test_schedulers_are_tables(name: Scheduler) -> None:
    use_job_noise()
    base = diffusers.FlowMatchEulerDiscreteScheduler() if name in FLOW_SCHEDULERS else DDIM
    template = with_tables(on_host(make_scheduler(name, base)))
    for start in (0, 5):
        expected = denoise(make_scheduler(name, base), torch.Generator().manual_seed(1), start)
        first, second = (denoise(unused_copy(template), JobGenerator(1), start) for _ in range(2))
        assert torch.allclose(first, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
        assert torch.equal(first, second), "a table that exists already must not change the result"
    assert len(template.tables) == 2
    assert all(template.tables.values())


@pytest.mark.parametrize("settings", [{"clip_sample": True}, {"thresholding": True}])
def test_scheduler_that_is_not_linear_stays_as_it_is(settings: dict[str, bool]) -> None:
    stock = diffusers.DDIMScheduler.from_config(DDIM.config, **settings)
    template = with_tables(on_host(diffusers.DDIMScheduler.from_config(DDIM.config, **settings)))
    expected = denoise(stock, torch.Generator().manual_seed(1), 3)
    assert torch.equal(denoise(unused_copy(template), JobGenerator(1), 3), expected)
    assert list(template.tables.values()) == [None]


def test_pixels_are_those_of_stock_and_do_not_depend_on_other_jobs(tmp_path: Path) -> None:
    folder, image = tiny_sd(tmp_path), Inputs(random_tensor(1, 32, 32))
    plain, tables = (
        load_model(ModelConfig(name="tiny", source=str(folder), step_tables=on), device="cpu") for on in (False, True)
    )
    specs = [
        make_spec(scheduler=scheduler, strength=0.7, seed=seed, prompt=f"house {seed}")
        for seed, scheduler in enumerate(DIFFUSION_SCHEDULERS)
    ]
    jobs = [(spec, image) for spec in specs]
    for expected, together, job in zip(run_together(plain, jobs), run_together(tables, jobs), jobs, strict=True):
        [alone] = run_together(tables, [job])
        assert largest_difference(together, expected) <= 1
        assert largest_difference(alone, expected) <= 1


def test_sums_are_those_of_tensors() -> None:
    first, second, third = (torch.randn(1, 4, 8, 8) for _ in range(3))
    rows = Sum.of(torch.cat([first, second]))
    without, with_prompt = rows.chunk(2)
    guided = without + 5.0 * (with_prompt - without)
    assert torch.allclose(guided.tensor(), first + 5 * (second - first), atol=1e-5)
    assert torch.equal((guided * third), guided.tensor() * third)
    assert torch.equal(third - guided, third - guided.tensor())
    assert torch.equal(guided[:, :2], guided.tensor()[:, :2])
    assert guided.shape == first.shape
    doubled = torch.cat([guided] * 2) * 0.5
    assert isinstance(doubled, Repeated)
    assert torch.equal(doubled.tensor(), torch.cat([guided.tensor()] * 2) * 0.5)
    assert torch.equal(torch.cat([doubled, third]), torch.cat([doubled.tensor(), third]))


def test_sums_calculated_together_are_those_of_each_alone() -> None:
    tensors = [torch.randn(1, 4, size, size) for size in (8, 8, 16)]
    sums = [[(tensor, 0.5 + i)] * (i + 1) for i, tensor in enumerate(tensors)]
    together = add_up_together(sums)
    for total, terms, expected in zip(together, sums, add_up(sums), strict=True):
        assert torch.equal(total, add_up_together([terms])[0])
        assert torch.allclose(total, expected, atol=1e-5)
