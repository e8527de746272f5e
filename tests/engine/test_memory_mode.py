"""IMG2IMG_MODE: what a worker does for a model that does not fit."""

from pathlib import Path

import pytest

from img2img.domain.model_config import ControlNetSource, ModelConfig
from img2img.worker.runtime.memory_mode import MemoryMode, configure_memory
from img2img.worker.runtime.model_loader import ModelLoader
from img2img.worker.runtime.model_memory import MemoryBudget
from tests.support.engines import running_engine
from tests.support.models.tiny_controlnets import tiny_controlnet
from tests.support.models.tiny_models import tiny_sd

GB = 10**9


def chosen(config: ModelConfig, mode: MemoryMode, device: str, free: int | None = 10 * GB) -> dict[str, object]:
    """Return the keys that are set for a model with 12 GB of weights, of which the largest part has 7 GB."""
    configured = configure_memory(config, mode, device, 12 * GB, 7 * GB, free)
    return {key: value for key, value in configured.model_dump().items() if value != config.model_dump()[key]}


PLAIN = ModelConfig(name="photo", source="org/photo")
LESS = {"vae_tiling": "auto", "vae_slicing": True}


@pytest.mark.parametrize(
    ("mode", "device", "free", "expected"),
    [
        ("auto", "cuda", 24 * GB, {}),
        ("auto", "cuda", 10 * GB, {"offload": "model", **LESS}),
        ("auto", "cuda:1", 6 * GB, {"offload": "group", **LESS}),
        ("auto", "xpu", 6 * GB, {"offload": "group", **LESS}),
        ("auto", "cuda", None, {}),
        # Main memory is the memory of these devices.
        ("auto", "cpu", 6 * GB, {}),
        ("auto", "mps", 6 * GB, {}),
        ("speed", "cuda", 6 * GB, {}),
        ("memory", "cuda", 80 * GB, {"offload": "model", **LESS}),
        ("memory", "cuda", 6 * GB, {"offload": "group", **LESS}),
        ("memory", "cpu", 80 * GB, LESS),
        ("memory", "mps", None, LESS),
    ],
)
def test_choice(mode: MemoryMode, device: str, free: int | None, expected: dict[str, object]) -> None:
    assert chosen(PLAIN, mode, device, free) == expected


def test_keys_of_the_model_file_are_kept() -> None:
    config = ModelConfig(source="org/photo", offload="none", vae_tiling=False)
    assert chosen(config, "memory", "cuda") == {"vae_slicing": True}


def test_what_does_not_work_with_quantised_weights_is_not_chosen() -> None:
    nf4 = PLAIN.model_copy(update={"quantize": {"transformer": "nf4"}})
    assert chosen(nf4, "auto", "cuda", 6 * GB)["offload"] == "model"
    int4 = PLAIN.model_copy(update={"quantize": {"transformer": "int4"}})
    assert "offload" not in chosen(int4, "auto", "cuda", 6 * GB)


@pytest.mark.parametrize(("mode", "tiles"), [("speed", False), ("auto", False), ("memory", True)])
def test_model_is_loaded_as_chosen(mode: MemoryMode, tiles: bool, tmp_path: Path) -> None:
    config = ModelConfig(name="tiny", source=str(tiny_sd(tmp_path)))
    with running_engine() as engine:
        loader = ModelLoader(engine, "cpu", lambda _stage: None, mode=mode)
        description = loader.describe(config)
        assert 0 < description.largest_bytes < description.memory_bytes
        budget = MemoryBudget(None, lambda: 10 * GB, 24 * GB)
        changed = loader.with_mode(config, description.memory_bytes, description.largest_bytes, budget)
        card = loader.describe(changed).card
        assert (card.fingerprint == description.card.fingerprint) == (changed == config)
        assert card.model_copy(update={"fingerprint": description.card.fingerprint}) == description.card
    assert bool(changed.vae_tiling) == changed.vae_slicing == tiles


def test_controlnets_count_with_the_denoiser(tmp_path: Path) -> None:
    folder = tiny_sd(tmp_path / "sd")
    net = tiny_controlnet(folder, tmp_path / "net", seed=1)
    plain = ModelConfig(name="tiny", source=str(folder))
    with_net = plain.model_copy(update={"controlnets": {"canny": ControlNetSource(source=str(net))}})
    with running_engine() as engine:
        loader = ModelLoader(engine, "cpu", lambda _stage: None)
        assert loader.describe(with_net).largest_bytes > loader.describe(plain).largest_bytes
