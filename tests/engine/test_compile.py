"""Compiled denoisers: fixed numbers of rows, pixels within 1/255, and no compilation once a model is ready."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch._dynamo.utils import counters

from img2img.domain.conditioning import Lora
from img2img.domain.model_config import ModelConfig
from img2img.domain.model_status import Batching
from img2img.domain.spec import JobSpec
from img2img.worker.engine.engine import Engine
from img2img.worker.engine.gate import Gate
from img2img.worker.engine.row_buckets import ROW_BUCKETS, bucket_of, buckets_up_to, largest_bucket
from img2img.worker.errors import StartupError
from img2img.worker.images.inputs import Inputs
from img2img.worker.pipelines.loading import compilation
from img2img.worker.pipelines.loading.compilation import has_cpp_compiler
from img2img.worker.pipelines.model import Model, load_model
from img2img.worker.runtime.model_loader import warm_up
from img2img.worker.runtime.torch_options import configure_cuda, configure_environment
from tests.support.engines import one_thread, random_tensor, run_functions, run_tasks, running_engine  # noqa: F401
from tests.support.models.tiny_adapters import tiny_lora
from tests.support.models.tiny_families import tiny_qwen_image, tiny_sd3
from tests.support.models.tiny_models import tiny_sd
from tests.support.specs import make_spec

SIDE = 64
needs_compiler = pytest.mark.skipif(not has_cpp_compiler(), reason="torch.compile needs a C++ compiler")


def job(**changes: Any) -> JobSpec:
    return make_spec(**{"width": SIDE, "height": SIDE, "num_inference_steps": 3, **changes})


def run(model: Model, engine: Engine, *specs: JobSpec) -> list[torch.Tensor]:
    images = [Inputs(random_tensor(spec.seed, spec.width, spec.height)) for spec in specs]
    return run_tasks(model, list(zip(specs, images, strict=True)), engine)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with the smallest UNet, because compilers are slow."""
    folder = tiny_sd(tmp_path_factory.mktemp("model") / "base")
    torch.manual_seed(0)
    UNet2DConditionModel(
        block_out_channels=(32,),
        layers_per_block=1,
        sample_size=32,
        down_block_types=("CrossAttnDownBlock2D",),
        mid_block_type=None,
        up_block_types=("CrossAttnUpBlock2D",),
        cross_attention_dim=32,
        attention_head_dim=8,
    ).save_pretrained(folder / "unet")
    return folder


def load(folder: Path, **config: Any) -> Model:
    lora = tiny_lora(folder, folder.parent / "ink.safetensors", seed=1)
    entry = {"name": "tiny", "source": str(folder), "loras": {"ink": str(lora)}, **config}
    return load_model(ModelConfig.model_validate(entry), device="cpu")


def warm(model: Model, slots: int) -> list[str]:
    reports: list[str] = []
    with running_engine(slots=slots) as engine:
        warm_up(model, engine, reports.append)
    return reports


@needs_compiler
@pytest.mark.timeout(1200)  # compilers are slow on a busy machine
@pytest.mark.parametrize("mode", ["regional", "full"])
def test_compiled_model_gives_the_pixels_of_the_eager_one(
    mode: str, folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    counters.clear()
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(cache))
    model, eager = load(folder, compile=mode), load(folder)
    assert warm(model, 1) == [f"compiling tiny at 64x64 for {rows} rows, up to 2" for rows in (1, 2)]
    assert list(cache.rglob("*.so"))
    graphs = counters["stats"]["unique_graphs"]
    assert graphs >= 2
    specs = [job(seed=1), job(seed=2, guidance_scale=1.0), job(seed=3, loras=(Lora(name="ink"),)), job(width=32)]
    engine = Engine(slots=8)
    together = run(model, engine, *specs)
    assert engine.rows_padded["denoise"] == 3, "two rows and one row get a fourth, in three steps"
    for spec, found, expected in zip(specs, together, run(eager, Engine(slots=8), *specs), strict=True):
        assert (found - expected).abs().max() <= 0.5 / 255
        [alone] = run(model, Engine(slots=1), spec)
        assert (alone - expected).abs().max() <= 0.5 / 255
    # Other sizes, other numbers of rows and LoRAs are not compiled.
    assert counters["stats"]["unique_graphs"] == graphs


def test_padding_is_dropped_and_counted() -> None:
    shapes = []

    def double(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        shapes.append((tuple(x.shape), tuple(t.shape), t.dtype))
        return x * t.reshape(-1, 1)

    gate = Gate("denoise", double)
    gate.use_buckets(double)
    engine = Engine(slots=8, max_rows=8)
    tasks = [lambda _, i=i: gate(torch.full((3, 2), float(i)), torch.tensor(2)) for i in range(3)]
    results = run_functions(tasks, engine)
    assert [(result.shape, result[0, 0].item()) for result in results] == [((3, 2), 2.0 * i) for i in range(3)]
    # The first two fit into 8 rows; the probe of rows runs one and two.
    assert [shape for shape in shapes if shape[0][0] > 2] == [((rows, 2), (rows,), torch.float32) for rows in (6, 4)]
    assert (engine.rows_run["denoise"], engine.rows_padded["denoise"]) == (9, 1)


def test_buckets() -> None:
    assert [bucket_of(rows) for rows in (1, 3, 5, 13, 64, 65, 80)] == [1, 4, 6, 16, 64, 80, 80]
    assert [largest_bucket(limit) for limit in (1, 3, 31, 64, 79)] == [1, 2, 28, 64, 64]
    assert buckets_up_to(32) == list(ROW_BUCKETS[:11])
    assert buckets_up_to(70)[-2:] == [64, 80]


@pytest.mark.parametrize(
    ("make", "config", "message"),
    [
        (tiny_qwen_image, {"compile": "regional"}, "another shape for each length of a prompt"),
        (tiny_sd3, {"compile": "regional"}, 'SD3Transformer2DModel has no repeated blocks; set `compile = "full"`'),
        (tiny_sd, {"compile_sizes": [(64, 20)]}, "`compile_sizes`: 20 is not a multiple of 8 from 32 to 128"),
        (tiny_sd, {"attention": "flash"}, "`attention` does not work with a UNet2DConditionModel"),
        (tiny_sd, {"attention": "fast"}, "`attention`: 'fast' is unknown; choose one such as native"),
        (tiny_sd, {"attention": "flash_hub"}, "`attention`: 'flash_hub' is unknown"),
        (tiny_qwen_image, {"attention": "flash"}, "`attention`: Flash Attention backend 'flash' is not usable"),
    ],
)
def test_options_that_do_not_fit_are_refused(make: Any, config: dict[str, str], message: str, tmp_path: Path) -> None:
    make(tmp_path / "model")
    with pytest.raises(StartupError, match=message):
        load_model(ModelConfig(name="m", source=str(tmp_path / "model"), **config), device="cpu")


def test_compile_without_a_compiler_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation, "has_cpp_compiler", lambda: False)
    with pytest.raises(StartupError, match="needs a C\\+\\+ compiler on the CPU: install g\\+\\+"):
        load(folder, compile="full")


def test_model_reports_how_calls_are_merged(folder: Path) -> None:
    model = load(folder)
    alone = {"text_encoder": Batching.ALONE, "vae": Batching.ALONE}
    assert model.batching == {"unet": Batching.UNKNOWN, **alone}
    run(model, Engine(slots=4), job(seed=1), job(seed=2))
    assert model.batching["unet"] in (Batching.EXACT, Batching.ROUNDING)


def test_channels_last_changes_rounding_only(folder: Path) -> None:
    model, other = load(folder, channels_last=True), load(folder)
    [found], [expected] = run(model, Engine(slots=1), job()), run(other, Engine(slots=1), job())
    weight = model.vae.decoder.conv_in.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert 0 < (found - expected).abs().max() <= 0.5 / 255


def test_attention_backend_that_is_available_is_used(tmp_path: Path) -> None:
    tiny_qwen_image(tmp_path)
    model = load_model(ModelConfig(name="m", source=str(tmp_path), attention="_native_math"), device="cpu")
    transformer = next(module for module in model.modules() if "Transformer2DModel" in type(module).__name__)
    backends = {
        getattr(m.processor, "_attention_backend", None) for m in transformer.modules() if hasattr(m, "processor")
    }
    assert [backend.value for backend in backends] == ["_native_math"]


def test_process_wide_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TORCHINDUCTOR_CACHE_DIR", "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    configure_environment(tmp_path)
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "compiled")
    assert os.environ["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32
    try:
        configure_cuda(allow_tf32=None, benchmark=False)
        assert (cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32) == (False, *before[1:])
        configure_cuda(allow_tf32=True, benchmark=True)
        assert (cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32) == (True, True, True)
    finally:
        cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32 = before
