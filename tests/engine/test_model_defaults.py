"""Defaults and descriptions of models: what the card has, and what is refused at the start."""

from pathlib import Path
from typing import Any

import pytest

from img2img.domain.model_card import ModelCard
from img2img.domain.model_config import ModelConfig
from img2img.worker.errors import StartupError
from img2img.worker.pipelines.model import load_model
from tests.support.models.tiny_families import tiny_schnell
from tests.support.models.tiny_models import tiny_sd


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {"sd": tiny_sd(folder / "sd"), "schnell": tiny_schnell(folder / "schnell")}


def card(folder: Path, **keys: Any) -> ModelCard:
    config = ModelConfig.model_validate({"name": "tiny", "source": str(folder), **keys})
    return load_model(config, device="cpu").card


def test_card_has_the_configured_defaults_and_description(folders: dict[str, Path]) -> None:
    configured = card(folders["sd"], steps=7, guidance_scale=3.5, scheduler="euler", description="Small houses.")
    assert (configured.default_steps, configured.default_guidance_scale) == (7, 3.5)
    assert (configured.default_scheduler, configured.description) == ("euler", "Small houses.")
    plain = card(folders["sd"])
    assert (plain.default_steps, plain.default_guidance_scale, plain.default_scheduler) == (30, 7.5, "ddim")
    assert (plain.guidance, plain.negative_prompt, plain.description) == (True, True, "")


def test_model_without_guidance_takes_no_negative_prompt(folders: dict[str, Path]) -> None:
    for unguided in (card(folders["sd"], guidance=False), card(folders["schnell"])):
        assert (unguided.guidance, unguided.negative_prompt, unguided.default_guidance_scale) == (False, False, 1.0)
    assert card(folders["sd"], guidance=True, guidance_scale=2).default_guidance_scale == 2
    assert card(folders["schnell"], guidance=False, guidance_scale=1).default_guidance_scale == 1


@pytest.mark.parametrize(
    ("model", "keys", "message"),
    [
        ("sd", {"guidance": False, "guidance_scale": 5}, "`guidance_scale` has no effect with `guidance = false`"),
        ("schnell", {"guidance": True}, "made to run without guidance; remove `guidance`"),
        ("schnell", {"guidance_scale": 3}, "made to run without guidance; remove `guidance_scale`"),
        ("schnell", {"scheduler": "ddim"}, "`scheduler` ddim is not for flux models; choose one of: flow_euler"),
        ("sd", {"scheduler": "lcm", "steps": 100}, "`steps` is at most 50 with the scheduler lcm"),
        (
            "sd",
            {"preprocessors": {"depth": {"source": "./depth", "weight_name": "a.safetensors"}}},
            "remove `weight_name`",
        ),
    ],
)
def test_defaults_that_no_request_could_have_are_refused(
    folders: dict[str, Path], model: str, keys: dict[str, Any], message: str
) -> None:
    with pytest.raises(StartupError) as caught:
        card(folders[model], **keys)
    assert message in str(caught.value)
