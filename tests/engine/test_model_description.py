"""The card and the size of a model without its weights are those of the loaded model."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from diffusers import DiffusionPipeline

from img2img.domain.model_config import ModelConfig
from img2img.worker.errors import StartupError
from img2img.worker.pipelines.loading import components
from img2img.worker.pipelines.loading.weightless import WeightFiles, counting
from img2img.worker.pipelines.memory import memory_by_device
from img2img.worker.pipelines.model import ModelDescription, describe_model, load_model
from tests.support.model_hub import model_hub
from tests.support.models import tiny_families, tiny_models
from tests.support.models.single_files import write_checkpoint
from tests.support.models.tiny_adapters import tiny_ip_adapter, tiny_lora
from tests.support.models.tiny_annotators import tiny_depth, tiny_pose, tiny_segmentation
from tests.support.models.tiny_controlnets import tiny_controlnet

MODELS: list[Callable[[Path], object]] = [
    tiny_models.tiny_sd,
    tiny_models.tiny_sdxl,
    tiny_families.tiny_flux,
    tiny_families.tiny_schnell,
    tiny_families.tiny_kontext,
    tiny_families.tiny_fill,
    tiny_families.tiny_sd3,
    tiny_families.tiny_refiner,
    tiny_families.tiny_lcm,
    tiny_families.tiny_z_image,
    tiny_families.tiny_klein,
    tiny_families.tiny_flux2,
    tiny_families.tiny_qwen_image,
    tiny_families.tiny_qwen_edit,
    tiny_families.tiny_qwen_edit_plus,
]


def compare(config: ModelConfig, *, tolerance: float = 0.01) -> ModelDescription:
    """Assert that the description of a model is true, and return it."""
    described = describe_model(config, device="cpu")
    model = load_model(config, device="cpu")
    assert described.card == model.card
    memory = memory_by_device(model.modules())
    assert memory.keys() == {"cpu"}
    # Buffers that are computed when weights are loaded, and the alignment of adapters, are small.
    assert memory["cpu"] == pytest.approx(described.memory_bytes, rel=tolerance)
    return described


@pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__.removeprefix("tiny_"))
@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_description_of_each_family(make: Callable[[Path], object], dtype: str | None, tmp_path: Path) -> None:
    make(tmp_path)
    described = compare(ModelConfig(name="tiny", source=str(tmp_path), dtype=dtype))  # type: ignore[arg-type]
    files = tmp_path.glob("*/*.safetensors")
    assert described.disk_bytes == sum(file.stat().st_size for file in files)


def test_description_with_all_components(tmp_path: Path) -> None:
    base = tiny_models.tiny_sd(tmp_path / "base")
    tiny_models.tiny_unet(in_channels=9).save_pretrained(tmp_path / "inpaint")
    tiny_models.tiny_unet(in_channels=8).save_pretrained(tmp_path / "edit")
    tiny_ip_adapter(base, tmp_path / "ip")
    compare(
        ModelConfig(
            name="tiny",
            source=str(base),
            controlnets={"canny": str(tiny_controlnet(base, tmp_path / "canny", seed=1))},  # type: ignore[dict-item]
            preprocessors={
                "depth": str(tiny_depth(tmp_path / "depth")),
                "segmentation": str(tiny_segmentation(tmp_path / "segmentation")),
                "pose": str(tiny_pose(tmp_path / "pose")),
            },  # type: ignore[dict-item]
            ip_adapter=str(tmp_path / "ip" / "ip-adapter.safetensors"),  # type: ignore[arg-type]
            loras={"oil.v1": str(tiny_lora(base, tmp_path / "oil.safetensors", seed=3))},  # type: ignore[dict-item]
            inpaint=str(tmp_path / "inpaint"),  # type: ignore[arg-type]
            edit=str(tmp_path / "edit"),  # type: ignore[arg-type]
            upscale={
                2: str(tiny_models.tiny_x2_upscaler(tmp_path / "x2")),
                4: str(tiny_models.tiny_x4_upscaler(tmp_path / "x4")),
            },  # type: ignore[dict-item]
            steps=7,
            scheduler="euler",  # type: ignore[arg-type]
        ),
        tolerance=0.3,
    )


@pytest.mark.parametrize("keys", [{}, {"prediction_type": "v_prediction"}])
def test_description_of_a_single_file(keys: dict[str, str], tmp_path: Path) -> None:
    pipeline = DiffusionPipeline.from_pretrained(tiny_models.tiny_sd(tmp_path / "folder"))
    file = write_checkpoint(pipeline, tmp_path / "photo.safetensors")
    described = compare(ModelConfig(name="photo", source=str(file), config=str(tmp_path / "folder"), **keys))  # type: ignore[arg-type]
    assert described.disk_bytes == file.stat().st_size


def test_missing_files_are_found_without_reading_weights(tmp_path: Path) -> None:
    folder = tiny_models.tiny_sd(tmp_path)
    with pytest.raises(StartupError, match=r"LoRA 'oil': .*oil\.safetensors"):
        describe_model(
            ModelConfig(name="m", source=str(folder), loras={"oil": str(tmp_path / "oil.safetensors")}),  # type: ignore[dict-item]
            device="cpu",
        )
    next(folder.rglob("unet/*.safetensors")).write_bytes(b"broken")
    with pytest.raises(StartupError, match="cannot be read as safetensors"):
        describe_model(ModelConfig(name="m", source=str(folder)), device="cpu")


def test_progress_of_a_load_is_that_of_its_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = ModelConfig(name="tiny", source=str(tiny_models.tiny_sd(tmp_path)))
    files = WeightFiles(describe_model(config, device="cpu").disk_bytes)
    seen: list[tuple[int | None, int]] = []
    check = components.check_folder

    def observed(folder: Path, variant: str | None) -> str | None:
        seen.append((files.percent, files.size))
        return check(folder, variant)

    monkeypatch.setattr(components, "check_folder", observed)
    with counting(files):
        load_model(config, device="cpu")
    assert [size for _, size in seen] == sorted({size for _, size in seen}), "each component adds its files"
    assert [percent for percent, _ in seen] == [100 * size // (files.total or 0) for _, size in seen]
    assert files.size == files.total


DESCRIBE = """
import sys
from pathlib import Path
from img2img.domain.model_config import ModelConfig
from img2img.worker.pipelines.model import describe_model, load_model
cache, config = Path(sys.argv[1]), ModelConfig(name="m", source="org/tiny")
described = describe_model(config, device="cpu")
assert described.disk_bytes is None, described
assert not list(cache.rglob("*.safetensors")), "weights were downloaded"
assert load_model(config, device="cpu").card == described.card
again = describe_model(config, device="cpu")
assert again.disk_bytes == sum(file.stat().st_size for file in cache.rglob("snapshots/**/*.safetensors"))
assert (again.card, again.memory_bytes) == (described.card, described.memory_bytes)
"""


def test_description_of_a_model_on_the_hub_downloads_no_weights(tmp_path: Path) -> None:
    folder = tiny_models.tiny_sd(tmp_path / "model")
    with model_hub("org/tiny", folder) as hub:
        environment = {**os.environ, "HF_HOME": str(tmp_path / "cache"), "HF_ENDPOINT": hub}
        command = [sys.executable, "-c", DESCRIBE, str(tmp_path / "cache")]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("quantize", ["int8", {"text_encoder": "int8"}])
def test_description_of_a_quantised_model(quantize: object, tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    tiny_models.tiny_sd(tmp_path)
    config = {"name": "tiny", "source": str(tmp_path), "dtype": "bfloat16", "quantize": quantize}
    compare(ModelConfig.model_validate(config), tolerance=0.1)


def test_description_of_a_model_with_a_small_vae(tmp_path: Path) -> None:
    fast = tiny_models.tiny_fast_vae(tmp_path / "fast")
    compare(ModelConfig(name="tiny", source=str(tiny_models.tiny_sd(tmp_path / "tiny")), fast_vae=str(fast)))


def test_description_of_an_offloaded_model(tmp_path: Path) -> None:
    config = {"name": "tiny", "source": str(tiny_models.tiny_sd(tmp_path / "tiny")), "offload": "layers"}
    config["offload_folder"] = str(tmp_path / "offload")
    described = describe_model(ModelConfig.model_validate(config), device="cpu")
    assert not (tmp_path / "offload").exists()
    model = load_model(ModelConfig.model_validate(config), device="cpu")
    assert model.card == described.card
    assert memory_by_device(model.modules()).get("cpu", 0) < 0.1 * described.memory_bytes
    model.close()
