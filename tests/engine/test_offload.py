"""Offloaded models give the pixels of models that are not, alone and in company, and take less memory."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from img2img.domain.conditioning import Control, ControlType, Lora
from img2img.domain.model_config import ModelConfig
from img2img.domain.parameters import Scheduler, Task
from img2img.domain.spec import JobSpec
from img2img.worker.engine.engine import Engine
from img2img.worker.errors import StartupError
from img2img.worker.images.inputs import Inputs
from img2img.worker.pipelines.loading.placement import Placement
from img2img.worker.pipelines.model import Model, load_model
from tests.support.engines import run_on, run_together
from tests.support.images import largest_difference
from tests.support.models.load_failures import load_failure
from tests.support.models.tiny_adapters import tiny_lora
from tests.support.models.tiny_controlnets import tiny_controlnet
from tests.support.models.tiny_families import tiny_flux, tiny_klein, tiny_qwen_image, tiny_sd3, tiny_z_image
from tests.support.models.tiny_models import tiny_sd, tiny_sdxl
from tests.support.processes import wait_for
from tests.support.specs import make_spec

SIDE = 64
IMAGE = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (1, 3, SIDE, SIDE), np.uint8)).float() / 255
FAMILIES: dict[str, tuple[Callable[[Path], Path], Scheduler, Task]] = {
    "sd": (tiny_sd, Scheduler.DDIM, Task.IMG2IMG),
    "sdxl": (tiny_sdxl, Scheduler.EULER, Task.IMG2IMG),
    "sd3": (tiny_sd3, Scheduler.FLOW_EULER, Task.IMG2IMG),
    "flux": (tiny_flux, Scheduler.FLOW_EULER, Task.IMG2IMG),
    "flux-2-klein": (tiny_klein, Scheduler.FLOW_EULER, Task.EDIT),
    "qwen-image": (tiny_qwen_image, Scheduler.FLOW_EULER, Task.IMG2IMG),
    "z-image": (tiny_z_image, Scheduler.FLOW_EULER, Task.IMG2IMG),
}


@pytest.fixture(scope="module")
def sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sd(tmp_path_factory.mktemp("sd"))


@pytest.fixture
def load(tmp_path: Path) -> Iterator[Callable[..., Model]]:
    """Return a function that loads a model with `offload_folder`; models are closed at the end."""
    loaded: list[Model] = []

    def load_offloaded(source: Path, mode: str = "none", **keys: Any) -> Model:
        folder = {} if mode == "none" else {"offload_folder": str(tmp_path / "offloaded")}
        values = {"name": "photo", "source": str(source), "offload": mode, **folder, **keys}
        loaded.append(load_model(ModelConfig.model_validate(values), device="cpu"))
        return loaded[-1]

    yield load_offloaded
    for model in loaded:
        model.close()


def jobs(
    scheduler: Scheduler = Scheduler.DDIM, task: Task = Task.IMG2IMG, **changes: Any
) -> list[tuple[JobSpec, Inputs]]:
    strength = {} if task is Task.EDIT else {"strength": 0.7}
    return [
        (
            make_spec(
                task,
                scheduler=scheduler,
                num_inference_steps=3 + i % 2,
                seed=i,
                prompt=f"house {i}",
                width=SIDE,
                height=SIDE,
                guidance_scale=1.0 if task is Task.EDIT else 3.0,
                **strength,
                **changes,
            ),
            Inputs(IMAGE, controls=(IMAGE,) if "controls" in changes else ()),
        )
        for i in range(3)
    ]


@pytest.mark.parametrize("mode", ["group", "layers"])
@pytest.mark.parametrize("family", FAMILIES)
def test_pixels_are_those_without_offload(family: str, mode: str, tmp_path: Path, load: Callable[..., Model]) -> None:
    make, scheduler, task = FAMILIES[family]
    folder = make(tmp_path / "model")
    plain, offloaded = load(folder), load(folder, mode)
    several = jobs(scheduler, task)
    engine = Engine(slots=4)
    together = run_on(engine, offloaded, several)
    assert engine.rows_run["denoise"] > engine.calls_run["denoise"], "jobs share calls of offloaded modules"
    for job, expected, pixels in zip(several, run_together(plain, several), together, strict=True):
        assert largest_difference(pixels, expected) == 0
        [alone] = run_together(offloaded, [job])
        assert largest_difference(alone, pixels) <= 1


def test_weights_are_on_disk_until_they_are_used(sd: Path, tmp_path: Path, load: Callable[..., Model]) -> None:
    model = load(sd, "layers")
    pipeline = next(iter(model._pipelines.values()))
    modules = {name: getattr(pipeline, name) for name in ("unet", "text_encoder", "vae")}

    def on_meta() -> set[bool]:
        return {p.device.type == "meta" for module in modules.values() for p in module.parameters()}

    assert on_meta() == {True}
    run_together(model, jobs())
    assert on_meta() == {True}
    size = sum(file.stat().st_size for file in (tmp_path / "offloaded").rglob("*") if file.is_file())
    assert size >= sum(p.nbytes for module in modules.values() for p in module.parameters())


def test_loras_controlnets_and_long_prompts_work_with_layers(
    sd: Path, tmp_path: Path, load: Callable[..., Model]
) -> None:
    keys = {
        "loras": {"ink": str(tiny_lora(sd, tmp_path / "ink.safetensors", seed=1))},
        "controlnets": {"canny": str(tiny_controlnet(sd, tmp_path / "canny", seed=1))},
    }
    plain, offloaded = load(sd, **keys), load(sd, "layers", **keys)
    several = [
        *jobs(loras=[Lora(name="ink", scale=0.8)]),
        *jobs(controls=[Control(type=ControlType.CANNY, image="0" * 64, preprocess=False)]),
        *jobs(prompt_weighting=True),
        *((spec.model_copy(update={"prompt": "a house " * 60, "clip_skip": 1}), inputs) for spec, inputs in jobs()),
    ]
    expected = run_together(plain, several)
    for a, b in zip(expected, run_together(offloaded, several), strict=True):
        assert largest_difference(a, b) == 0
    assert len({pixels.tobytes() for pixels in expected}) == len(several)


def test_several_models_and_a_closed_one(sd: Path, tmp_path: Path, load: Callable[..., Model]) -> None:
    plain, first, second = load(sd), load(sd, "group"), load(sd, "layers")
    expected = run_together(plain, jobs())
    pipeline = next(iter(first._pipelines.values()))
    folders = set((tmp_path / "offloaded").iterdir())
    first.close()
    assert not hasattr(pipeline.text_encoder, "_hf_hook")
    assert all(not registry.hooks for registry in registries(pipeline.unet))
    assert len(folders - set((tmp_path / "offloaded").iterdir())) == 1
    for a, b in zip(expected, run_together(second, jobs()), strict=True):
        assert largest_difference(a, b) == 0


def registries(module: torch.nn.Module) -> list[Any]:
    return [each._diffusers_hook for each in module.modules() if hasattr(each, "_diffusers_hook")]


LOADS_AND_DIES = """
import os, sys
from img2img.domain.model_config import ModelConfig
from img2img.worker.pipelines.model import load_model
config = ModelConfig(name="a", source=sys.argv[1], offload="layers", offload_folder=sys.argv[2])
model = load_model(config, device="cpu")
print("loaded", flush=True)
if sys.argv[3] == "wait":
    sys.stdin.read()
os._exit(1)
"""


def test_folders_of_dead_processes_are_removed(sd: Path, tmp_path: Path, load: Callable[..., Model]) -> None:
    folder = tmp_path / "offloaded"

    def start(what: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", LOADS_AND_DIES, str(sd), str(folder), what],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    with start("wait") as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "loaded\n"
        [used] = folder.iterdir()
        with start("die") as dead:
            dead.wait()
        assert len(list(folder.iterdir())) == 2
        load(sd, "layers")
        assert used in folder.iterdir()
        assert len(list(folder.iterdir())) == 2
        running.communicate("")
    wait_for(lambda: running.poll() is not None)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"offload": "model"}, 'choose "layers" and set `offload_folder`'),
        ({"offload": "group"}, "on the CPU, weights are in main memory anyway; set `offload_folder`"),
        ({"offload_folder": "off"}, '`offload_folder` is for `offload = "group"` and `"layers"`; remove it'),
        ({"offload": "model", "offload_folder": "off"}, '`offload_folder` is for `offload = "group"`'),
        ({"offload": "layers", "offload_folder": "/proc/none"}, "`offload_folder`: cannot write to /proc/none"),
        (
            {"offload": "group", "offload_folder": "off", "loras": {"ink": "ink.safetensors"}},
            "`offload_folder` does not work with `loras`; choose",
        ),
    ],
)
def test_what_cannot_be_offloaded_is_refused(sd: Path, keys: dict[str, Any], message: str) -> None:
    config = ModelConfig.model_validate({"name": "photo", "source": str(sd), **keys})
    assert message in load_failure(lambda: load_model(config, device="cpu"))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"offload": "layers", "quantize": "int8"}, "does not work with `quantize`"),
        ({"offload": "group", "quantize": "nf4"}, '"group"` with nf4 does not work'),
        ({"offload": "group", "quantize": "int8", "offload_folder": "off"}, "with `offload_folder` does not work"),
        ({"offload": "model", "quantize": "int4"}, "does not work with int4 weights"),
    ],
)
def test_quantised_weights_that_cannot_be_offloaded_are_refused(keys: dict[str, Any], message: str) -> None:
    config = ModelConfig.model_validate({"name": "photo", "source": "x", **keys})
    with pytest.raises(StartupError, match=message.replace("`", "`")):
        Placement(config, "cuda:0")


def test_macs_share_their_memory() -> None:
    with pytest.raises(StartupError, match="mps shares the main memory"):
        Placement(ModelConfig(name="photo", source="x", offload="model"), "mps")
