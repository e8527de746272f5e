"""The LoRAs of a loaded model change while jobs run: pixels equal those of a model that was loaded with them."""

import shutil
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch

from img2img.domain.conditioning import ImagePrompt, Lora
from img2img.domain.model_config import ComponentSource, ModelConfig
from img2img.domain.parameters import Scheduler, Task
from img2img.domain.spec import JobSpec
from img2img.errors import JobError
from img2img.worker.engine.engine import Engine
from img2img.worker.engine.task import EngineTask
from img2img.worker.errors import StartupError
from img2img.worker.images.inputs import Inputs, to_pixels
from img2img.worker.pipelines.conditioning.loras import lora_files
from img2img.worker.pipelines.denoise import make_task_function
from img2img.worker.pipelines.model import Model, load_model
from tests.support.engines import run_functions, run_together
from tests.support.images import gradient
from tests.support.models.tiny_adapters import tiny_ip_adapter, tiny_lora
from tests.support.models.tiny_families import tiny_flux
from tests.support.models.tiny_models import tiny_sd
from tests.support.specs import make_spec

Sources = dict[str, ComponentSource]


class Served:
    """A tiny model with an IP-Adapter, and three LoRAs for it."""

    def __init__(self, folder: Path) -> None:
        self.folder = tiny_sd(folder / "model")
        files = {
            "ink": tiny_lora(self.folder, folder / "ink.safetensors", seed=1),
            "clay": tiny_lora(self.folder, folder / "clay.safetensors", seed=2, kohya=True),
            "unet-only": tiny_lora(self.folder, folder / "unet.safetensors", seed=3, text=False),
        }
        self.all = {name: ComponentSource(source=str(file)) for name, file in files.items()}
        self.ip_adapter = ComponentSource(source=str(tiny_ip_adapter(self.folder, folder / "ip")))
        self.image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        self.style = gradient(40, 60)

    def load(self, *loras: str) -> Model:
        config = ModelConfig(
            name="tiny", source=str(self.folder), loras=self.sources(*loras), ip_adapter=self.ip_adapter
        )
        return load_model(config, device="cpu")

    def sources(self, *loras: str) -> Sources:
        return {name: self.all[name] for name in loras}

    def inputs(self, spec: JobSpec) -> Inputs:
        return Inputs(self.image, image_prompts=tuple(self.style for _ in spec.image_prompts))

    def run(self, model: Model, *specs: JobSpec) -> list[np.ndarray]:
        return run_together(model, [(spec, self.inputs(spec)) for spec in specs])


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    return Served(tmp_path_factory.mktemp("loras"))


def job(*loras: str, image_prompt: bool = False, **changes: object) -> JobSpec:
    prompts = (ImagePrompt(image="1" * 64, scale=0.7),) if image_prompt else ()
    scaled = tuple(Lora(name=name, scale=0.8) for name in loras)
    return make_spec(**{"num_inference_steps": 4, "loras": scaled, "image_prompts": prompts, **changes})


def jobs(*loras: str) -> list[JobSpec]:
    return [job(), job(image_prompt=True), *(job(name, image_prompt=prompt) for name in loras for prompt in (0, 1))]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((), ("ink", "clay")),
        (("ink", "clay"), ("clay", "unet-only")),
        (("unet-only",), ("ink",)),
        (("ink", "clay"), ()),
    ],
)
def test_set_loras_gives_the_pixels_of_a_model_loaded_with_them(
    served: Served, before: tuple[str, ...], after: tuple[str, ...]
) -> None:
    changed, expected = served.load(*before), served.load(*after)
    served.run(changed, *jobs(*before))
    changed.set_loras(served.sources(*after), fingerprint=expected.card.fingerprint)
    assert changed.card == expected.card
    for result, reference in zip(served.run(changed, *jobs(*after)), served.run(expected, *jobs(*after)), strict=True):
        assert result.tobytes() == reference.tobytes()


def test_jobs_in_flight_keep_a_removed_lora_and_a_replaced_file(served: Served, tmp_path: Path) -> None:
    model = served.load("ink", "clay")
    file = shutil.copy(served.all["ink"].source, tmp_path / "ink.safetensors")
    model.set_loras({"ink": ComponentSource(source=str(file)), "clay": served.all["clay"]})
    specs = [job("ink", "clay"), job("ink"), job("clay", image_prompt=True)]
    expected = served.run(model, *specs)
    started, prepared = (
        [EngineTask(make_task_function(model, spec, served.inputs(spec), 0), lambda _task: None) for spec in specs]
        for _ in range(2)
    )
    engine = Engine(slots=8)
    engine.submit(started)
    with torch.inference_mode():
        for _ in range(20):
            engine.step()
        shutil.copy(served.all["unet-only"].source, file)
        model.set_loras({"ink": ComponentSource(source=str(file))})
        engine.submit(prepared)
        while engine.is_busy:
            engine.step()
    for task, reference in zip([*started, *prepared], expected * 2, strict=True):
        assert task.error is None
        assert np.abs(to_pixels(task.result).astype(int) - reference.astype(int)).max() <= 1
    [replaced] = served.run(model, job("ink"))
    [reference] = served.run(served.load("unet-only"), job("unet-only"))
    assert replaced.tobytes() == reference.tobytes()


def test_a_job_that_names_a_removed_lora_fails_with_its_name(served: Served) -> None:
    model = served.load("ink")
    model.set_loras({})
    with pytest.raises(JobError, match=r"LoRA 'ink' was removed from the model 'tiny'"):
        served.run(model, job("ink"))


def test_a_failed_change_leaves_the_model_as_it_was(served: Served, tmp_path: Path) -> None:
    model = served.load("ink")
    [expected] = served.run(model, job("ink"))
    card = model.card
    wrong = tiny_lora(tiny_flux(tmp_path / "flux"), tmp_path / "flux.safetensors", seed=1)
    for source in (wrong, tmp_path / "missing.safetensors"):
        with pytest.raises(StartupError, match="LoRA 'other'"):
            model.set_loras({"ink": served.all["ink"], "other": ComponentSource(source=str(source))})
        assert model.card == card
        assert served.run(model, job("ink"))[0].tobytes() == expected.tobytes()


def test_unchanged_loras_are_not_read_again_and_share_their_weights(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = served.load("ink", "clay")
    weights = _storages(model)
    read: list[str] = []
    load = type(model.pipeline(Task.IMG2IMG, Scheduler.DDIM)).load_lora_weights
    monkeypatch.setattr(
        "diffusers.StableDiffusionImg2ImgPipeline.load_lora_weights",
        lambda self, *args, **kwargs: (read.append(kwargs["adapter_name"]), load(self, *args, **kwargs)),
    )
    files = lora_files(served.sources("clay", "unet-only"))
    model.set_loras(served.sources("clay", "unet-only"), files)
    assert len(read) == 1
    added = _storages(model) - weights
    tensors = [tensor for module in model.adapters.modules for tensor in module.module.parameters()]
    size = sum({t.data_ptr(): t.nbytes for t in tensors if t.data_ptr() in added}.values())
    assert size <= Path(served.all["unet-only"].source).stat().st_size


@pytest.mark.usefixtures("no_collector")
def test_modules_of_removed_loras_are_freed(served: Served) -> None:
    model = served.load("ink")
    function = make_task_function(model, job("ink"), served.inputs(job()), 0)
    old = weakref.ref(model.adapters)
    model.set_loras(served.sources("clay"))
    run_functions([function], Engine(slots=1))
    del function
    assert old() is None


def _storages(model: Model) -> set[int]:
    return {tensor.data_ptr() for module in model.adapters.modules for tensor in module.module.parameters()}
