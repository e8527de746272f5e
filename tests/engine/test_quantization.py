"""Quantised models give the pixels of the stock pipelines with the same quantisation, alone and in company."""

import inspect
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
import transformers
from diffusers import DiffusionPipeline
from diffusers.quantizers import PipelineQuantizationConfig

from img2img.domain.conditioning import Lora
from img2img.domain.model_config import ComponentSource, ModelConfig
from img2img.domain.parameters import Scheduler
from img2img.domain.spec import JobSpec
from img2img.worker.engine.engine import Engine
from img2img.worker.errors import StartupError
from img2img.worker.images.inputs import Inputs
from img2img.worker.pipelines.loading import quantization
from img2img.worker.pipelines.loading.quantization import Quantizer
from img2img.worker.pipelines.model import Model, load_model
from img2img.worker.runtime.model_loader import ModelLoader
from tests.support.engines import run_on, run_together, running_engine
from tests.support.images import largest_difference
from tests.support.models.load_failures import load_failure
from tests.support.models.single_files import write_checkpoint
from tests.support.models.tiny_adapters import tiny_ip_adapter, tiny_lora
from tests.support.models.tiny_families import tiny_flux, tiny_sd3, tiny_z_image
from tests.support.models.tiny_models import tiny_sd, tiny_sdxl
from tests.support.specs import make_spec
from tests.support.stock import call_stock

torchao = pytest.importorskip("torchao.quantization")

SIDE = 32
FAMILIES = {
    "sd": (tiny_sd, diffusers.StableDiffusionImg2ImgPipeline, Scheduler.DDIM),
    "sdxl": (tiny_sdxl, diffusers.StableDiffusionXLImg2ImgPipeline, Scheduler.EULER),
    "sd3": (tiny_sd3, diffusers.StableDiffusion3Img2ImgPipeline, Scheduler.FLOW_EULER),
    "flux": (tiny_flux, diffusers.FluxImg2ImgPipeline, Scheduler.FLOW_EULER),
    "z-image": (tiny_z_image, diffusers.ZImageImg2ImgPipeline, Scheduler.FLOW_EULER),
}
IMAGE = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (1, 3, SIDE, SIDE), np.uint8)).float() / 255


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, type, Scheduler]:
    make, kind, scheduler = FAMILIES[request.param]
    return make(tmp_path_factory.mktemp("model")), kind, scheduler


@pytest.fixture(scope="module")
def sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sd(tmp_path_factory.mktemp("sd"))


def load(source: Path, **keys: Any) -> Model:
    return load_model(ModelConfig.model_validate({"name": "photo", "source": str(source), **keys}), device="cpu")


def specs(scheduler: Scheduler = Scheduler.DDIM, **changes: Any) -> list[JobSpec]:
    return [
        make_spec(
            scheduler=scheduler,
            strength=0.7,
            num_inference_steps=4 + i,
            seed=i,
            prompt=f"house {i}",
            width=SIDE,
            height=SIDE,
            **changes,
        )
        for i in range(4)
    ]


def stock_pixels(pipeline: DiffusionPipeline, spec: JobSpec) -> np.ndarray:
    pipeline.set_progress_bar_config(disable=True)
    return call_stock(
        pipeline,
        spec,
        prompt=spec.prompt,
        image=diffusers.image_processor.VaeImageProcessor.numpy_to_pil(IMAGE.permute(0, 2, 3, 1).numpy()),
        strength=spec.strength,
        **({"width": SIDE, "height": SIDE} if "width" in inspect.signature(pipeline.__call__).parameters else {}),
    )


def stock_configuration(pipeline_folder: Path, config: Any) -> PipelineQuantizationConfig:
    """Return diffusers' configuration that quantises the denoiser and the text encoders."""
    index = DiffusionPipeline.load_config(pipeline_folder)
    libraries = {"diffusers": diffusers, "transformers": transformers}
    return PipelineQuantizationConfig(
        quant_mapping={
            name: libraries[value[0]].TorchAoConfig(config)
            for name, value in index.items()
            if quantization.is_quantisable(name) and isinstance(value, list | tuple) and value[0]
        }
    )


@pytest.mark.parametrize(
    ("kind", "config"),
    [("int8", torchao.Int8WeightOnlyConfig()), ("fp8", torchao.Float8WeightOnlyConfig())],
    ids=["int8", "fp8"],
)
def test_pixels_are_those_of_stock_diffusers_alone_and_in_company(
    family: tuple[Path, Any, Scheduler], kind: str, config: Any
) -> None:
    folder, pipeline_class, scheduler = family
    model = load(folder, quantize=kind)
    stock = pipeline_class.from_pretrained(
        folder, quantization_config=stock_configuration(folder, config), dtype=torch.float32
    )
    jobs = [(spec, Inputs(IMAGE)) for spec in specs(scheduler, guidance_scale=3.0)]
    engine = Engine(slots=4)
    together = run_on(engine, model, jobs)
    for job, pixels in zip(jobs, together, strict=True):
        expected = stock_pixels(stock, job[0])
        [alone] = run_together(model, [job])
        assert largest_difference(alone, expected) <= 1
        assert largest_difference(pixels, expected) <= 1
    assert engine.rows_run["denoise"] > engine.calls_run["denoise"] * 2, "jobs share calls of quantised modules"


def quantised_bytes(module: torch.nn.Module) -> int:
    """Return the bytes of the weights of the linear layers, with their scales."""
    layers = (layer for layer in module.modules() if isinstance(layer, torch.nn.Linear))
    weights = (layer.weight for layer in layers)
    return sum(
        sum(getattr(w, name).nbytes for name in ("qdata", "scale")) if hasattr(w, "qdata") else w.nbytes
        for w in weights
    )


def test_weights_take_a_quarter_of_float32(sd: Path) -> None:
    plain, small = load(sd), load(sd, quantize="int8")
    for name in ("unet", "text_encoder"):
        before, after = (
            quantised_bytes(getattr(next(iter(model._pipelines.values())), name)) for model in (plain, small)
        )
        # Scales take another 4 bytes per row of weights.
        assert 0.25 < after / before < 0.4, name


def test_table_quantises_the_components_that_it_names(sd: Path) -> None:
    model = load(sd, quantize={"text_encoder": "int8"})
    pipeline = next(iter(model._pipelines.values()))
    types = {
        name: {type(layer.weight).__name__ for layer in module.modules() if isinstance(layer, torch.nn.Linear)}
        for name, module in (("unet", pipeline.unet), ("text", pipeline.text_encoder), ("vae", pipeline.vae))
    }
    assert types == {"unet": {"Parameter"}, "text": {"Int8Tensor"}, "vae": {"Parameter"}}


@pytest.mark.parametrize("xl", [False, True])
def test_single_file_gives_the_pixels_of_its_folder(tmp_path: Path, xl: bool) -> None:
    folder = tiny_sdxl(tmp_path / "m", second_width=64) if xl else tiny_sd(tmp_path / "m")
    file = write_checkpoint(DiffusionPipeline.from_pretrained(folder), tmp_path / "m.safetensors")
    jobs = [(spec, Inputs(IMAGE)) for spec in specs(Scheduler.EULER)]
    of_folder = run_together(load(folder, quantize="int8"), jobs)
    of_file = run_together(load(file, quantize="int8", config=str(folder)), jobs)
    for expected, pixels in zip(of_folder, of_file, strict=True):
        assert largest_difference(pixels, expected) == 0
    plain = run_together(load(folder), jobs)
    assert any(largest_difference(a, b) for a, b in zip(plain, of_file, strict=True)), "the file was not quantised"


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_loras_work_on_quantised_modules(sd: Path, tmp_path: Path, kind: str) -> None:
    lora = tiny_lora(sd, tmp_path / "ink.safetensors", seed=1)
    model, plain = load(sd, quantize=kind, loras={"ink": str(lora)}), load(sd, quantize=kind)
    with_lora = specs(loras=[Lora(name="ink", scale=0.8)])
    without = specs()
    both = [(spec, Inputs(IMAGE)) for spec in (*with_lora, *without)]
    together = run_together(model, both)
    for job, pixels in zip(both, together, strict=True):
        [alone] = run_together(model, [job])
        assert largest_difference(alone, pixels) <= 1
    expected = run_together(plain, both[4:])
    for a, b, c in zip(together[:4], together[4:], expected, strict=True):
        assert largest_difference(b, c) <= 1, "jobs without LoRA are not affected"
        assert largest_difference(a, b) > 1, "the LoRA has an effect"


def test_what_cannot_be_quantised_is_refused(sd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failure(**keys: Any) -> str:
        return load_failure(lambda: load(sd, **keys))

    lora, adapter = tiny_lora(sd, tmp_path / "ink.safetensors", seed=1), tiny_ip_adapter(sd, tmp_path / "ip")
    named = "the components of this model that can be quantised are text_encoder, unet"
    assert named in failure(quantize={"vae": "int8"})
    assert named in failure(quantize={"transformer": "int8"})
    assert "int4 does not run on cpu; choose int8" in failure(quantize="int4")
    assert "nf4 does not run on cpu; choose int8" in failure(quantize={"unet": "nf4"})
    assert "an IP-Adapter needs a UNet that is not quantised" in failure(quantize="int8", ip_adapter=str(adapter))
    load(sd, quantize={"text_encoder": "int8"}, ip_adapter=str(adapter))
    load(sd, quantize={}, loras={"ink": str(lora)})
    monkeypatch.setattr(quantization, "find_spec", lambda _name: None)
    assert 'int8 needs the package torchao; run `pip install "img2img-server[quantize]"`' in failure(quantize="int8")


@pytest.mark.parametrize(
    ("device", "dtype", "kind", "reason"),
    [
        ("cuda", torch.float16, "int4", "int4 computes in bfloat16"),
        ("cuda:1", torch.bfloat16, "int4", None),
        ("cuda", torch.float16, "nf4", None),
        ("mps", torch.float16, "fp8", "fp8 does not run on mps"),
        ("mps", torch.float16, "nf4", "nf4 does not run on mps"),
        ("mps", torch.float16, "int8", None),
        ("cpu", torch.float32, "fp8", None),
    ],
)
def test_devices_and_dtypes_of_each_kind(device: str, dtype: torch.dtype, kind: Any, reason: str | None) -> None:
    found = Quantizer(device, "cpu", dtype, {"*": kind})._why_not(kind)
    assert (found is None) if reason is None else (found is not None and reason in found)


def test_4_bits_refuse_loras(sd: Path, tmp_path: Path) -> None:
    config = ModelConfig(name="a", source="x", loras={"ink": ComponentSource(source="ink.safetensors")})
    pytest.importorskip("bitsandbytes")
    quantizer = Quantizer("cuda", "cuda", torch.bfloat16, {"*": "nf4"})
    with pytest.raises(StartupError, match="nf4 weights take no LoRAs; choose int8 or fp8"):
        quantizer.check(["unet", "text_encoder"], config)


def test_nf4_weights_are_those_of_stock_diffusers(sd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the weights: diffusers refuses to run them on a CPU, and bitsandbytes runs other widths there."""
    pytest.importorskip("bitsandbytes")
    from diffusers.quantizers.bitsandbytes.bnb_quantizer import BnB4BitDiffusersQuantizer

    monkeypatch.setattr(BnB4BitDiffusersQuantizer, "validate_environment", lambda *_args, **_kwargs: None)
    monkeypatch.setattr(Quantizer, "_why_not", lambda *_args: None)
    unet = next(iter(load(sd, quantize="nf4")._pipelines.values())).unet
    config = diffusers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    stock = diffusers.UNet2DConditionModel.from_pretrained(
        sd, subfolder="unet", quantization_config=config, device_map={"": "cpu"}, dtype=torch.float32
    )
    expected = dict(stock.named_parameters())
    quantised = [name for name, weight in unet.named_parameters() if weight.dtype is torch.uint8]
    assert len(quantised) > 20
    assert all(torch.equal(unet.get_parameter(name), expected[name]) for name in quantised)


def test_loras_are_not_added_later_to_weights_that_take_none(sd: Path, tmp_path: Path) -> None:
    lora = ComponentSource(source=str(tiny_lora(sd, tmp_path / "ink.safetensors", seed=1)))
    config = ModelConfig(name="photo", source=str(sd), quantize={"unet": "nf4"}, loras={"ink": lora})
    # nf4 does not run on a CPU: the weights are plain, the configuration is that of a GPU.
    model = load(sd)
    with running_engine() as engine:
        loader = ModelLoader(engine, "cpu", lambda _stage: None)
        with pytest.raises(StartupError, match="nf4 weights take no LoRAs"):
            loader.set_loras(model, config)
    assert model.card.loras == ()
