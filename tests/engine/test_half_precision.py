"""16-bit numbers: alone as in the stock pipelines, and in company bit for bit as alone."""

from pathlib import Path

import diffusers
import pytest
import torch

from img2img.domain.parameters import Scheduler, Task
from img2img.worker.engine.engine import Engine
from tests.engine.test_families import (
    CASES,
    SCHEDULERS,
    Case,
    Served,
    largest_difference,
    sd_arguments,
)
from tests.support.engines import one_thread, run_on, run_together  # noqa: F401
from tests.support.models.tiny_models import tiny_sd, tiny_sdxl

SD_SCHEDULERS = (Scheduler.DDIM, Scheduler.LCM)
SD = Case(
    tiny_sd,
    {
        Task.IMG2IMG: diffusers.StableDiffusionImg2ImgPipeline,
        Task.INPAINT: diffusers.StableDiffusionInpaintPipeline,
    },
    sd_arguments,
    Scheduler.EULER,
    SD_SCHEDULERS,
    "blurry",
)
SDXL = Case(
    tiny_sdxl,
    {
        Task.IMG2IMG: diffusers.StableDiffusionXLImg2ImgPipeline,
        Task.INPAINT: diffusers.StableDiffusionXLInpaintPipeline,
    },
    sd_arguments,
    Scheduler.EULER,
    SD_SCHEDULERS,
    "blurry",
)
HALF = {"sd": SD, "sdxl": SDXL, **{name: CASES[name] for name in ("sd3", "flux", "z-image", "qwen-image")}}


def served_in(case: Case, dtype: str, folder: Path) -> Served:
    case = Case(**{**case.__dict__, "config": {**(case.config or {}), "dtype": dtype}})
    served = Served(case, folder)
    # Loaded in this dtype and not converted to it, because some text encoders keep layers in float32 then.
    served.stock = {
        task: kind.from_pretrained(folder, torch_dtype=getattr(torch, dtype), **case.components(str(folder)))
        for task, kind in case.stock.items()
    }
    return served


@pytest.mark.parametrize("name", HALF)
def test_bfloat16_is_exact_alone_and_in_company(name: str, tmp_path: Path) -> None:
    assert set(SD_SCHEDULERS) <= set(SCHEDULERS)
    served = served_in(HALF[name], "bfloat16", tmp_path)
    specs = served.specs()
    together = run_on(Engine(slots=16), served.model, served.jobs(specs))
    for spec, in_company in zip(specs, together, strict=True):
        [alone] = run_together(served.model, served.jobs([spec]))
        assert largest_difference(alone, served.reference(spec)) == 0, spec
        assert alone.tobytes() == in_company.tobytes(), spec


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_float16_is_exact_alone(name: str, tmp_path: Path) -> None:
    """The VAE of SDXL works in float32, that of Stable Diffusion does not."""
    served = served_in(HALF[name], "float16", tmp_path)
    specs = served.specs()
    together = run_on(Engine(slots=16), served.model, served.jobs(specs))
    for spec, in_company in zip(specs, together, strict=True):
        [alone] = run_together(served.model, served.jobs([spec]))
        assert largest_difference(alone, served.reference(spec)) == 0, spec
        assert largest_difference(alone, in_company) <= 1, spec
