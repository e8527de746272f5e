"""LoRAs of transformer models: pixels equal those of the stock pipelines, alone and batched with other LoRAs."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from img2img.domain.conditioning import Lora
from img2img.domain.model_config import ComponentSource, ModelConfig
from img2img.domain.parameters import Task
from img2img.domain.spec import JobSpec
from img2img.worker.engine.engine import Engine
from img2img.worker.errors import StartupError
from img2img.worker.images.inputs import Inputs, to_tensor
from img2img.worker.pipelines.model import Model, load_model
from tests.engine.test_families import (
    FLUX,
    HEIGHT,
    WIDTH,
    flux_arguments,
    job,
    klein_arguments,
    kontext_arguments,
    largest_difference,
    sd3_arguments,
    z_image_arguments,
)
from tests.support.engines import run_on, run_together
from tests.support.models.tiny_adapters import tiny_ip_adapter, tiny_lora
from tests.support.models.tiny_families import tiny_flux, tiny_klein, tiny_kontext, tiny_sd3, tiny_z_image
from tests.support.models.tiny_models import tiny_sd


@dataclass
class Case:
    """A family with its stock pipelines and their arguments."""

    make: Callable[[Path], Path]
    stock: dict[Task, type]
    arguments: Callable[[JobSpec], dict[str, Any]]


CASES = {
    "flux": Case(tiny_flux, FLUX, flux_arguments),
    "sd3": Case(tiny_sd3, {Task.IMG2IMG: diffusers.StableDiffusion3Img2ImgPipeline}, sd3_arguments),
    "kontext": Case(tiny_kontext, {Task.EDIT: diffusers.FluxKontextPipeline}, kontext_arguments),
    "z-image": Case(tiny_z_image, {Task.IMG2IMG: diffusers.ZImageImg2ImgPipeline}, z_image_arguments),
    "klein": Case(tiny_klein, {Task.EDIT: diffusers.Flux2KleinPipeline}, klein_arguments),
}


class Served:
    """A tiny model with two LoRAs, and the stock pipelines."""

    def __init__(self, case: Case, folder: Path) -> None:
        self.case = case
        self.folder = case.make(folder / "model")
        self.loras = {
            "ink": tiny_lora(self.folder, folder / "ink.safetensors", seed=1),
            "clay": tiny_lora(self.folder, folder / "clay.safetensors", seed=2, rank=2, text=False),
        }
        loras = {name: ComponentSource(source=str(file)) for name, file in self.loras.items()}
        config = ModelConfig(name="tiny", source=str(self.folder), loras=loras)
        self.model: Model = load_model(config, device="cpu")
        self.plain: Model = load_model(ModelConfig(name="tiny", source=str(self.folder)), device="cpu")
        rng = np.random.default_rng(2)
        self.image = Image.fromarray(rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8))
        self.mask = Image.new("L", (WIDTH, HEIGHT))
        self.mask.paste(255, (8, 12, 40, 40))

    def run(self, *specs: JobSpec, model: Model | None = None) -> list[np.ndarray]:
        return run_together(model or self.model, [(spec, self.inputs(spec)) for spec in specs])

    def inputs(self, spec: JobSpec) -> Inputs:
        return Inputs(to_tensor(self.image), to_tensor(self.mask) if spec.task is Task.INPAINT else None)

    def reference(self, spec: JobSpec) -> np.ndarray:
        pipeline = self.case.stock[spec.task].from_pretrained(self.folder)
        pipeline.set_progress_bar_config(disable=True)
        for index, lora in enumerate(spec.loras):
            pipeline.load_lora_weights(self.loras[lora.name], adapter_name=f"a{index}")
        if spec.loras:
            pipeline.set_adapters([f"a{i}" for i in range(len(spec.loras))], [lora.scale for lora in spec.loras])
        masked = {"mask_image": self.mask} if spec.task is Task.INPAINT else {}
        image = pipeline(
            prompt=spec.prompt,
            image=self.image,
            num_inference_steps=spec.num_inference_steps,
            generator=torch.Generator().manual_seed(spec.seed),
            **self.case.arguments(spec),
            **masked,
        ).images[0]
        return np.asarray(image)

    def specs(self) -> list[JobSpec]:
        task = next(iter(self.case.stock))
        lora_sets = [{}, {"ink": 1.0}, {"ink": 0.4}, {"clay": -0.7}, {"clay": 1.5, "ink": 0.8}]
        specs = [lora_job(loras, task=task) for loras in lora_sets]
        return specs + [lora_job({"ink": 0.6}, task=other) for other in list(self.case.stock)[1:]]


def lora_job(scales: dict[str, float], **changes: Any) -> JobSpec:
    loras = tuple(Lora(name=name, scale=scale) for name, scale in scales.items())
    return job(**{"num_inference_steps": 3, "strength": 0.8, "loras": loras, **changes})


@pytest.fixture(scope="module", params=CASES, ids=list(CASES))
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Served:
    return Served(CASES[request.param], tmp_path_factory.mktemp("adapters"))


def test_loras_give_stock_pixels_alone_and_batched(served: Served) -> None:
    specs = served.specs()
    together = served.run(*specs)
    plain = served.reference(specs[0])
    for spec, batched in zip(specs, together, strict=True):
        reference = served.reference(spec)
        [alone] = served.run(spec)
        assert largest_difference(alone, reference) <= 1, spec
        assert largest_difference(batched, reference) <= 1, spec
        if spec.loras:
            assert largest_difference(reference, plain) > 1, "the LoRA must change the image"


def test_jobs_with_equal_loras_are_batched_and_others_are_unchanged(served: Served) -> None:
    task = next(iter(served.case.stock))
    same = [lora_job({"ink": 0.7, "clay": 0.2}, task=task, seed=seed, strength=1.0) for seed in range(3)]
    engine = Engine(slots=4)
    run_on(engine, served.model, [(spec, served.inputs(spec)) for spec in same])
    assert (engine.calls_run["denoise"], engine.rows_run["denoise"]) == (3, 9)
    plain = lora_job({}, task=task, prompt="a prompt that was not encoded before")
    [expected] = served.run(plain, model=served.plain)
    [result] = served.run(plain)
    assert result.tobytes() == expected.tobytes()


def test_card_lists_loras_and_their_tasks(served: Served) -> None:
    card = served.model.card
    assert card.loras == ("ink", "clay")
    assert set(served.case.stock) <= set(card.adapter_tasks)


def test_load_model_rejects_unsupported_adapters(tmp_path: Path) -> None:
    flux, klein = tiny_flux(tmp_path / "flux"), tiny_klein(tmp_path / "klein")
    adapter = tiny_ip_adapter(tiny_sd(tmp_path / "sd"), tmp_path / "ip")
    with pytest.raises(StartupError, match="IP-Adapter: not supported for Flux2Klein"):
        load_model(
            ModelConfig(name="m", source=str(klein), ip_adapter=ComponentSource(source=str(adapter))), device="cpu"
        )
    lora = tiny_lora(flux, tmp_path / "ink.safetensors", seed=1)
    sd3 = tiny_sd3(tmp_path / "sd3")
    with pytest.raises(StartupError, match="is for FLUX; the model is Stable Diffusion 3"):
        load_model(
            ModelConfig(name="m", source=str(sd3), loras={"ink": ComponentSource(source=str(lora))}), device="cpu"
        )
