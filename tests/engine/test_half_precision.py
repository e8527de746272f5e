"""16-bit numbers: alone as in the stock pipelines, and in company bit for bit as alone."""

from collections.abc import Callable, Iterator
from pathlib import Path

import diffusers
import pytest
import torch

from img2img.domain.parameters import Scheduler, Task
from img2img.worker.engine.engine import Engine
from img2img.worker.engine.exact_rows import exact_rows, keep_rows_exact
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


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


CALLS = (2, 1, 2, 2, 1, 2, 2)


@torch.inference_mode()
def differing(module: Callable[..., torch.Tensor], *args: torch.Tensor) -> list[int]:
    """Return the indices of calls that get another result in a merged call than alone."""
    with exact_rows(CALLS):
        merged = module(*args).split(CALLS)
    alone = [module(*parts) for parts in zip(*(arg.split(CALLS) for arg in args), strict=True)]
    return [i for i, (one, other) in enumerate(zip(alone, merged, strict=True)) if not torch.equal(one, other)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("size", "tokens"), [((768, 192), 64), ((1280, 320), 16), ((128, 512), 0), ((321, 64), 2)])
def test_linear_layer_rounds_as_alone(
    size: tuple[int, int],
    tokens: int,
    dtype: torch.dtype,
    threads: int,
) -> None:
    layer = torch.nn.Linear(*size, dtype=dtype)
    keep_rows_exact([layer])
    shape = (sum(CALLS), tokens, size[0]) if tokens else (sum(CALLS), size[0])
    for seed in range(5):
        torch.manual_seed(seed)
        # Half of the products cancel the other half, so that rounding shows.
        half = torch.randn(*shape[:-1], size[0] // 2)
        vectors = torch.cat([half, half, half[..., : size[0] % 2]], dim=-1).to(dtype)
        weights = torch.randn(size[1], size[0] // 2)
        layer.weight.data = torch.cat([weights, -weights, weights[:, : size[0] % 2]], dim=-1).to(dtype)
        assert differing(layer, vectors) == []


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("side", [8, 32])
def test_group_norm_rounds_as_alone(side: int, layout: torch.memory_format, threads: int) -> None:
    layer = torch.nn.GroupNorm(4, 16, dtype=torch.bfloat16)
    keep_rows_exact([layer])
    pixels = 256 + 8 * torch.rand(sum(CALLS), 16, side, side)
    assert differing(layer, pixels.bfloat16().to(memory_format=layout)) == []


def test_wide_unet_rounds_as_alone(threads: int) -> None:
    """Layers as wide as those of Stable Diffusion: narrow ones have fewer ways to add."""
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(64, 640),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=64,
    ).to(torch.bfloat16)
    keep_rows_exact([unet])
    rows = sum(CALLS)
    latents = torch.randn(rows, 4, 32, 32).bfloat16().to(memory_format=torch.channels_last)
    arguments = (latents, torch.randint(1, 999, (rows,)).float(), torch.randn(rows, 77, 64).bfloat16())
    assert differing(lambda *args: unet(*args).sample, *arguments) == []
