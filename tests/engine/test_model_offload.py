"""`offload = "model"` on a device that stands for a GPU: which modules are on it at each call, and the pixels."""

from collections.abc import Iterator
from itertools import pairwise
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
from img2img.worker.engine.task import EngineTask
from img2img.worker.images.inputs import Inputs
from img2img.worker.pipelines.denoise import make_task_function
from img2img.worker.pipelines.loading.placement import _WholeModule
from img2img.worker.pipelines.model import Model, load_model
from img2img.worker.runner import to_pixels
from tests.support.images import largest_difference
from tests.support.models.tiny_adapters import tiny_lora
from tests.support.models.tiny_controlnets import tiny_controlnet
from tests.support.models.tiny_families import tiny_flux
from tests.support.models.tiny_models import tiny_sd, tiny_sdxl
from tests.support.pretend_device import DEVICE, pretend_device
from tests.support.specs import make_spec

SIDE = 32
IMAGE = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (1, 3, SIDE, SIDE), np.uint8)).float() / 255
Jobs = list[tuple[Model, JobSpec, Inputs]]


@pytest.fixture(autouse=True)
def device() -> Iterator[torch.device]:
    with pretend_device() as name:
        yield name
    _WholeModule._hooks.clear()


def load(folder: Path, mode: str, **keys: Any) -> Model:
    # In float32, so that pixels can be compared with those of the CPU.
    values = {"name": "photo", "source": str(folder), "offload": mode, "dtype": "float32", **keys}
    return load_model(ModelConfig.model_validate(values), device="cpu" if mode == "none" else str(DEVICE))


def job(
    model: Model, seed: int, scheduler: Scheduler = Scheduler.DDIM, **changes: Any
) -> tuple[Model, JobSpec, Inputs]:
    spec = make_spec(
        scheduler=scheduler,
        strength=0.7,
        num_inference_steps=3 + seed % 2,
        seed=seed,
        prompt=f"house {seed}",
        width=SIDE,
        height=SIDE,
        guidance_scale=3.0,
        **changes,
    )
    return model, spec, Inputs(IMAGE, controls=(IMAGE,) if "controls" in changes else ())


class Residents:
    """The kinds of modules that are on the device after each step of the engine."""

    def __init__(self) -> None:
        self.seen: list[set[tuple[int, str]]] = []

    def look(self) -> None:
        self.seen.append({hook._stage for hook in _WholeModule._hooks if hook.is_on_device})


def run(jobs: Jobs, residents: Residents | None = None) -> list[np.ndarray]:
    """Run jobs together. Inference mode, which a worker uses, cannot be combined with the device."""
    engine = Engine(slots=8)
    tasks = [EngineTask(make_task_function(model, spec, inputs, 0), lambda _task: None) for model, spec, inputs in jobs]
    engine.submit(tasks)
    with torch.no_grad():
        while engine.is_busy:
            engine.step()
            if residents is not None:
                residents.look()
    for task in tasks:
        if task.error is not None:
            raise task.error
    return [to_pixels(task.result) for task in tasks]


def on(model: Model, jobs: Jobs) -> Jobs:
    return [(model, spec, inputs) for _, spec, inputs in jobs]


@pytest.mark.parametrize(
    ("make", "scheduler"),
    [(tiny_sd, Scheduler.DDIM), (tiny_sdxl, Scheduler.DDIM), (tiny_flux, Scheduler.FLOW_EULER)],
)
def test_one_component_is_on_the_device_at_a_time(make: Any, scheduler: Scheduler, tmp_path: Path) -> None:
    plain, offloaded = load(make(tmp_path), "none"), load(tmp_path, "model")
    several = [job(offloaded, seed, scheduler) for seed in range(3)]
    residents = Residents()
    together = run(several, residents)
    assert max(len(stages) for stages in residents.seen) == 1
    kinds = {stage for stages in residents.seen for _, stage in stages}
    assert {"denoise", "text_encoder", "vae"} <= kinds
    for a, b in zip(run(on(plain, several)), together, strict=True):
        assert largest_difference(a, b) <= 1
    # A job that starts later needs the text encoder while another one is being denoised.
    assert largest_difference(run(several[:1])[0], together[0]) <= 1


def test_denoiser_controlnet_and_loras_stay_together(tmp_path: Path) -> None:
    folder = tiny_sd(tmp_path / "model")
    keys = {
        "loras": {"ink": str(tiny_lora(folder, tmp_path / "ink.safetensors", seed=1))},
        "controlnets": {"canny": str(tiny_controlnet(folder, tmp_path / "canny", seed=1))},
    }
    plain, offloaded = load(folder, "none", **keys), load(folder, "model", **keys)
    several = [
        job(offloaded, 1, controls=[Control(type=ControlType.CANNY, image="0" * 64, preprocess=False)]),
        job(offloaded, 2, loras=[Lora(name="ink", scale=0.8)]),
        job(offloaded, 3),
        # Its prompt is that of the job before: the embedding is remembered while the text encoder is away.
        job(offloaded, 3, clip_skip=1),
    ]
    together = run(several)
    for a, b in zip(run(on(plain, several)), together, strict=True):
        assert largest_difference(a, b) <= 1
    moves = count_moves(offloaded, several[:1])
    assert moves <= 4, "UNet and ControlNet must not take turns at every step"


def count_moves(model: Model, jobs: Jobs) -> int:
    """Return how often the UNet is moved to the device while jobs run."""
    unet = next(iter(model._pipelines.values())).unet
    places = []
    engine_run = Residents()
    engine_run.look = lambda: places.append(next(unet.parameters()).device)  # type: ignore[method-assign]
    run(jobs, engine_run)
    return sum(a != b for a, b in pairwise(places))


def test_models_of_a_worker_take_turns_until_they_are_closed(tmp_path: Path) -> None:
    folders = [tiny_sd(tmp_path / str(seed), seed=seed) for seed in range(2)]
    first, second = (load(folder, "model") for folder in folders)
    residents = Residents()
    together = run([job(first, 1), job(second, 1)], residents)
    assert max(len(stages) for stages in residents.seen) == 1
    assert len({model for stages in residents.seen for model, _ in stages}) == 2
    for pixels, folder in zip(together, folders, strict=True):
        assert largest_difference(run([job(load(folder, "none"), 1)])[0], pixels) <= 1
    hooks = len(_WholeModule._hooks)
    pipeline = next(iter(first._pipelines.values()))
    first.close()
    assert len(_WholeModule._hooks) == hooks / 2
    assert not any(hasattr(module, "_hf_hook") for module in (pipeline.unet, pipeline.vae, pipeline.text_encoder))
    run([job(second, 2)])
    assert second.card.tasks[0] is Task.IMG2IMG
