"""GGUF files give the pixels of diffusers with the same files."""

from pathlib import Path

import diffusers
import gguf
import pytest
import torch
from diffusers import DiffusionPipeline, GGUFQuantizationConfig
from diffusers.loaders import single_file_utils
from gguf import GGMLQuantizationType as Type

from img2img.domain.conditioning import Lora
from img2img.worker.pipelines.loading.checkpoint_layouts import LAYOUTS
from tests.engine.test_transformer_files import CASES, check, flux, sized
from tests.support.models.load_failures import load_failure
from tests.support.models.model_files import layout_of, load, part, write
from tests.support.models.single_files import text_encoder_file_weights, vae_weights
from tests.support.models.tiny_adapters import tiny_lora
from tests.support.models.tiny_families import tiny_flux
from tests.support.models.transformer_files import Weights


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def write_gguf(weights: Weights, file: Path, kind: Type, architecture: str) -> Path:
    """Write weights as converters do: large tensors in blocks of 32 values, the others in 32 bits."""
    writer = gguf.GGUFWriter(file, architecture)
    for key, tensor in weights.items():
        values = tensor.float().contiguous().numpy()
        is_quantised = values.ndim == 2 and values.shape[0] > 1 and values.shape[1] % 32 == 0
        chosen = kind if is_quantised else Type.F32
        writer.add_tensor(key, gguf.quants.quantize(values, chosen), raw_dtype=chosen)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def transformer_of(stock: DiffusionPipeline, file: Path, folder: Path) -> torch.nn.Module:
    """Load the transformer of a stock pipeline from a GGUF file."""
    return type(stock.transformer).from_single_file(  # type: ignore[no-any-return]
        str(file),
        config=str(folder),
        subfolder="transformer",
        quantization_config=GGUFQuantizationConfig(compute_dtype=torch.float32),
        dtype=torch.float32,
        local_files_only=True,
    )


@pytest.mark.parametrize("kind", [Type.Q8_0, Type.Q4_0, Type.Q5_1])
@pytest.mark.parametrize(("family", "architecture"), [("z-image", "lumina2"), ("qwen-image", "qwen_image")])
def test_gguf_with_config(family: str, architecture: str, kind: Type, tmp_path: Path) -> None:
    case = CASES[family]
    folder = case.make(tmp_path / "whole")
    stock = case.stock.from_pretrained(folder)
    file = write_gguf(case.weights(stock.transformer), tmp_path / f"{family}-{kind.name}.gguf", kind, architecture)
    model = load(file, config=part(folder))
    quantised = transformer_of(stock, file, folder)
    assert any(parameter.dtype is torch.uint8 for parameter in quantised.parameters())
    check(model, case.stock(**{**stock.components, "transformer": quantised}), case.arguments)


def test_gguf_with_files_of_the_other_components(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FLUX.1 as user interfaces have it: the transformer in GGUF, CLIP, T5 and the VAE in safetensors files."""
    pipeline = flux(is_tiny=True)
    monkeypatch.setattr(single_file_utils, "infer_diffusers_model_type", lambda _weights: "flux-dev")
    layout = layout_of(pipeline, "flux-dev")
    monkeypatch.setitem(LAYOUTS, "flux-dev", layout)
    file = write_gguf(pipeline.transformer.state_dict(), tmp_path / "flux1-dev-Q8_0.gguf", Type.Q8_0, "flux")
    message = load_failure(lambda: load(file))
    assert "has no weights of the vae and text_encoder and text_encoder_2; set `text_encoders` and `vae`" in message
    encoders = [
        part(write(text_encoder_file_weights(encoder), tmp_path / name))
        for name, encoder in (
            ("clip_l.safetensors", pipeline.text_encoder),
            ("t5xxl.safetensors", pipeline.text_encoder_2),
        )
    ]
    model = load(file, text_encoders=encoders, vae=part(write(vae_weights(pipeline.vae), tmp_path / "ae.safetensors")))
    layout.write(tmp_path / "configs", in_channels=0)
    pipeline.register_modules(
        transformer=transformer_of(pipeline, file, tmp_path / "configs"),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler.from_config(layout.scheduler),
    )
    pipeline.text_encoder_2.eval()
    check(model, pipeline, sized)


def test_lora_on_gguf(tmp_path: Path) -> None:
    folder = tiny_flux(tmp_path / "whole")
    stock = diffusers.FluxImg2ImgPipeline.from_pretrained(folder)
    file = write_gguf(stock.transformer.state_dict(), tmp_path / "flux.gguf", Type.Q8_0, "flux")
    lora = tiny_lora(folder, tmp_path / "ink.safetensors", seed=1)
    stock.register_modules(transformer=transformer_of(stock, file, folder))
    model = load(file, config=part(folder), loras={"ink": part(lora)})
    check(model, stock, sized)
    stock.load_lora_weights(lora)
    check(model, stock, sized, loras=(Lora(name="ink", scale=1.0),))


def test_gguf_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES["z-image"]
    folder = case.make(tmp_path / "whole")
    weights = case.weights(case.stock.from_pretrained(folder).transformer)
    file = write_gguf(weights, tmp_path / "z.gguf", Type.Q8_0, "lumina2")
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    assert "z.gguf cannot be read as GGUF: it is damaged or incomplete" in load_failure(
        lambda: load(file, config=part(folder))
    )
    kept = {key: tensor for key, tensor in weights.items() if "layers.0.feed_forward.w1" not in key}
    file = write_gguf(kept, tmp_path / "z.gguf", Type.Q8_0, "lumina2")
    assert "z.gguf lacks some weights of a component" in load_failure(lambda: load(file, config=part(folder)))


def test_gguf_is_not_quantised_again(tmp_path: Path) -> None:
    case = CASES["z-image"]
    folder = case.make(tmp_path / "whole")
    weights = case.weights(case.stock.from_pretrained(folder).transformer)
    file = write_gguf(weights, tmp_path / "z.gguf", Type.Q8_0, "lumina2")
    message = load_failure(lambda: load(file, config=part(folder), quantize="int8"))
    assert "`quantize`: the weights of z.gguf are quantised already; remove it" in message
    assert load(file, config=part(folder), quantize={"text_encoder": "int8"}).card.dtype == "float32"
