"""Folders that lack a scheduler, are sharded or quantised give the pixels of diffusers with the same folder."""

import json
import shutil
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers import DiffusionPipeline

from tests.engine.test_transformer_files import check, sized
from tests.support.models.model_files import load
from tests.support.models.tiny_families import tiny_flux, tiny_schnell, tiny_sd3, tiny_z_image
from tests.support.models.tiny_models import tiny_sd, tiny_sdxl

FLUX = diffusers.FluxImg2ImgPipeline


@pytest.mark.parametrize(
    ("make", "scheduler", "settings"),
    [
        (tiny_sd, "PNDMScheduler", {"beta_start": 0.00085, "steps_offset": 1, "prediction_type": "epsilon"}),
        (tiny_sdxl, "EulerDiscreteScheduler", {"timestep_spacing": "leading", "steps_offset": 1}),
        (tiny_sd3, "FlowMatchEulerDiscreteScheduler", {"shift": 3.0, "use_dynamic_shifting": False}),
        (tiny_flux, "FlowMatchEulerDiscreteScheduler", {"shift": 3.0, "use_dynamic_shifting": True}),
        (tiny_schnell, "FlowMatchEulerDiscreteScheduler", {"shift": 1.0, "use_dynamic_shifting": False}),
        (tiny_z_image, "FlowMatchEulerDiscreteScheduler", {"shift": 3.0, "use_dynamic_shifting": False}),
    ],
)
def test_folder_without_a_scheduler(
    make: object, scheduler: str, settings: dict[str, object], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = make(tmp_path / "photo")  # type: ignore[operator]
    shutil.rmtree(folder / "scheduler")
    model = load(folder)
    assert f"has no scheduler_config.json; it gets the scheduler of its family, {scheduler}" in caplog.text
    [task, *_] = model.card.tasks
    config = model.pipeline(task, model.card.default_scheduler).scheduler.config
    assert {key: config[key] for key in settings} == settings


def test_sharded_folder(tmp_path: Path) -> None:
    folder = tiny_flux(tmp_path / "photo")
    stock = FLUX.from_pretrained(folder)
    shutil.rmtree(folder)
    stock.save_pretrained(folder, max_shard_size="20KB")
    for component in ("transformer", "text_encoder", "text_encoder_2"):
        assert len(list((folder / component).glob("*-of-*.safetensors"))) > 1
        assert len(list((folder / component).glob("*.safetensors.index.json"))) == 1
    check(load(folder), FLUX.from_pretrained(folder), sized)


@pytest.mark.parametrize("library", ["torchao", "optimum.quanto"])
def test_quantised_folder(library: str, tmp_path: Path) -> None:
    pytest.importorskip(library)
    folder = tiny_flux(tmp_path / "photo")
    for name in ("transformer", "text_encoder_2"):
        quantise(folder, name, library)
    config = json.loads((folder / "transformer/config.json").read_text())["quantization_config"]
    assert config["quant_method"] == library.removeprefix("optimum.")
    stock = FLUX.from_pretrained(folder, dtype=torch.float32)
    check(load(folder), stock, sized)


def quantise(folder: Path, name: str, library: str) -> None:
    """Replace a component by its quantised weights."""
    whole = DiffusionPipeline.from_pretrained(folder)
    kind, part = type(whole.components[name]), folder / name
    if library == "torchao":
        from torchao.quantization import Int8WeightOnlyConfig

        source = diffusers if name == "transformer" else __import__("transformers")
        config = source.TorchAoConfig(Int8WeightOnlyConfig())
    elif name == "transformer":
        config = diffusers.QuantoConfig(weights_dtype="int8")
    else:
        return
    quantised = kind.from_pretrained(part, quantization_config=config, dtype=torch.float32)
    shutil.rmtree(part)
    quantised.save_pretrained(part)
