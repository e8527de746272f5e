"""A refiner runs the last steps: pixels of the two stock pipelines called one after another, alone and in company."""

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from img2img.domain.conditioning import InpaintRegion, Padding
from img2img.domain.model_config import ModelConfig
from img2img.domain.parameters import Scheduler, Task
from img2img.domain.spec import JobSpec
from img2img.errors import JobError
from img2img.worker.engine.engine import Engine
from img2img.worker.engine.task import EngineTask
from img2img.worker.errors import StartupError
from img2img.worker.images.inpaint_canvas import InpaintCanvas
from img2img.worker.images.inputs import Inputs, to_tensor
from img2img.worker.pipelines.denoise import make_task_function
from img2img.worker.pipelines.model import Model, load_model
from img2img.worker.runtime.model_loader import warm_up
from tests.engine.test_pixels import STOCK_SCHEDULERS, largest_difference
from tests.support.engines import run_on, running_engine
from tests.support.models.tiny_adapters import tiny_lora
from tests.support.models.tiny_families import tiny_refiner
from tests.support.models.tiny_models import tiny_sd, tiny_sdxl, tiny_unet
from tests.support.specs import make_spec

SIDE = 64
IMAGE = Image.fromarray(np.random.default_rng(6).integers(0, 256, (SIDE, SIDE, 3), np.uint8))
MASK = Image.new("L", (SIDE, SIDE))
MASK.paste(255, (8, 16, 48, 56))
STOCK = {
    Task.IMG2IMG: diffusers.StableDiffusionXLImg2ImgPipeline,
    Task.INPAINT: diffusers.StableDiffusionXLInpaintPipeline,
}
REGION = InpaintRegion(mask="1" * 64, blur=0, margins=Padding(), canvas=(SIDE, SIDE), box=(0, 0, SIDE, SIDE))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return a base model, and a refiner with the same second text encoder, VAE and scheduler."""
    folder = tmp_path_factory.mktemp("models")
    base = diffusers.StableDiffusionXLPipeline.from_pretrained(tiny_sdxl(folder / "base"))
    common = {name: base.components[name] for name in ("text_encoder_2", "vae", "scheduler")}
    refiner = diffusers.StableDiffusionXLImg2ImgPipeline.from_pretrained(
        tiny_refiner(folder / "refiner", seed=9), **common
    )
    refiner.save_pretrained(folder / "refiner")
    return folder / "base", folder / "refiner"


class Served:
    """A base model with its refiner, and the stock pipelines of both."""

    def __init__(self, base: Path, refiner: Path, **changes: Any) -> None:
        config = {"name": "tiny", "source": str(base), "refiner": str(refiner), **changes}
        self.model: Model = load_model(ModelConfig.model_validate(config), device="cpu")
        self.stock = {task: (load_stock(kind, base), load_stock(kind, refiner)) for task, kind in STOCK.items()}
        self.configs = [pipeline.scheduler.config for pipeline in self.stock[Task.IMG2IMG]]

    def reference(self, spec: JobSpec, *, stages: tuple[bool, bool] = (True, True)) -> np.ndarray:
        """Return the pixels of the stock pipelines.

        Args:
            stages: whether the base and the refiner run.
        """
        base, refiner = self.stock[spec.task]
        for pipeline, config in zip((base, refiner), self.configs, strict=True):
            pipeline.scheduler = STOCK_SCHEDULERS[spec.scheduler.value](config)
        common: dict[str, Any] = {
            "prompt": spec.prompt,
            "negative_prompt": spec.negative_prompt or None,
            "num_inference_steps": spec.num_inference_steps,
            "guidance_scale": spec.guidance_scale,
            "generator": torch.Generator().manual_seed(spec.seed),
        }
        if spec.task is Task.INPAINT:
            common |= {"mask_image": MASK, "width": SIDE, "height": SIDE}
        start = {"strength": spec.strength}
        if spec.task is Task.IMG2IMG and spec.denoising_start is not None:
            start = {"denoising_start": spec.denoising_start}
        if stages == (True, True):
            until = {"denoising_end": spec.denoising_end, "output_type": "latent"}
            latents = base(image=IMAGE, **until, **start, **common).images
            return np.asarray(refiner(image=latents, denoising_start=spec.denoising_end, **common).images[0])
        [pipeline] = [each for each, runs in zip((base, refiner), stages, strict=True) if runs]
        return np.asarray(pipeline(image=IMAGE, **start, **common).images[0])

    def inputs(self, spec: JobSpec) -> Inputs:
        if spec.task is Task.IMG2IMG:
            return Inputs(to_tensor(IMAGE))
        canvas = InpaintCanvas(IMAGE, MASK, spec.region)
        view, mask = canvas.model_input((spec.width, spec.height))
        return Inputs(to_tensor(view), to_tensor(mask), canvas)

    def run(self, specs: list[JobSpec], slots: int = 16) -> list[np.ndarray]:
        self.engine = Engine(slots=slots)
        return run_on(self.engine, self.model, [(spec, self.inputs(spec)) for spec in specs])


def load_stock(kind: type[diffusers.DiffusionPipeline], folder: Path) -> diffusers.DiffusionPipeline:
    parts = diffusers.DiffusionPipeline.from_pretrained(folder)
    pipeline = kind(**parts.components, **({"requires_aesthetics_score": True} if "refiner" in folder.name else {}))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def served(folders: tuple[Path, Path]) -> Served:
    return Served(*folders)


def job(task: Task = Task.IMG2IMG, **changes: object) -> JobSpec:
    defaults = {
        "width": SIDE,
        "height": SIDE,
        "strength": 0.7,
        "num_inference_steps": 10,
        "scheduler": Scheduler.EULER,
        "denoising_end": 0.8,
        "region": REGION,
    }
    return make_spec(task, **{**defaults, **changes})


JOBS = [
    job(seed=1),
    job(seed=2, strength=1.0, denoising_end=0.5, negative_prompt="blurry"),
    job(seed=3, scheduler=Scheduler.HEUN, num_inference_steps=12),
    job(seed=4, scheduler=Scheduler.EULER_A, strength=0.9),
    job(seed=5, scheduler=Scheduler.DPMPP_2M_KARRAS, guidance_scale=1.0),
    job(seed=6, denoising_start=0.4, strength=1.0, scheduler=Scheduler.DDIM),
    job(Task.INPAINT, seed=7, strength=1.0),
    job(Task.INPAINT, seed=8, strength=0.6, scheduler=Scheduler.DDIM),
]


def test_base_and_refiner_give_the_pixels_of_the_chained_stock_pipelines(served: Served) -> None:
    references = [served.reference(spec) for spec in JOBS]
    for spec, reference, together in zip(JOBS, references, served.run(JOBS), strict=True):
        [alone] = served.run([spec])
        assert largest_difference(alone, reference) <= 1, spec
        assert largest_difference(together, reference) <= 1, spec
    unrefined = served.run([spec.model_copy(update={"denoising_end": None}) for spec in JOBS])
    for plain, reference in zip(unrefined, references, strict=True):
        assert largest_difference(plain, reference) > 1


def test_jobs_share_calls_of_the_refiner(served: Served) -> None:
    specs = [job(seed=seed, strength=1.0, denoising_end=0.5) for seed in range(4)]
    served.run(specs)
    assert served.engine.rows_run["denoise"] == 4 * 2 * 10
    assert served.engine.calls_run["denoise"] <= 10 + 2


@pytest.mark.parametrize("task", STOCK)
@pytest.mark.parametrize(
    ("changes", "stages"),
    [
        # The strength begins after the base's last step.
        ({"strength": 0.1}, (False, True)),
        ({"strength": 0.2, "num_inference_steps": 5}, (False, True)),
        # No step is left for the refiner.
        ({"denoising_end": 0.999}, (True, False)),
    ],
)
def test_stage_without_a_step_is_left_out(
    served: Served, task: Task, changes: dict[str, Any], stages: tuple[bool, bool]
) -> None:
    spec = job(task, **changes)
    [pixels] = served.run([spec])
    assert largest_difference(pixels, served.reference(spec, stages=stages)) <= 1


def test_denoising_start_after_denoising_end_runs_the_refiner_alone(served: Served) -> None:
    spec = job(denoising_start=0.8, denoising_end=0.6, strength=1.0)
    [pixels] = served.run([spec])
    assert largest_difference(pixels, served.reference(spec, stages=(False, True))) <= 1


@pytest.mark.parametrize("spec", [*JOBS, job(strength=0.1)], ids=str)
def test_steps_count_up_to_those_of_the_job(served: Served, spec: JobSpec) -> None:
    steps: list[int] = []

    class Recording(EngineTask):
        def __setattr__(self, name: str, value: Any) -> None:
            if name == "step":
                steps.append(value)
            super().__setattr__(name, value)

    engine = Engine(slots=1)
    function = make_task_function(served.model, spec, served.inputs(spec), 0)
    task = Recording(function, lambda _task: None)
    engine.submit([task])
    while engine.is_busy:
        engine.step()
    assert task.error is None
    assert steps == sorted(steps)
    assert set(steps) == set(range(spec.steps_run + 1))


def test_equal_components_are_shared(served: Served, folders: tuple[Path, Path]) -> None:
    base = served.model._pipelines[Task.IMG2IMG]
    refiner = served.model.refiner(Task.INPAINT, Scheduler.DDIM)
    assert (refiner.vae, refiner.text_encoder_2, refiner.text_encoder) == (base.vae, base.text_encoder_2, None)
    assert refiner.unet is not base.unet
    assert refiner.config.requires_aesthetics_score


def test_other_components_are_the_refiners_own(folders: tuple[Path, Path], tmp_path: Path) -> None:
    other = Served(folders[0], tiny_refiner(tmp_path / "other-refiner", seed=21))
    refiner = other.model.refiner(Task.IMG2IMG, Scheduler.EULER)
    assert refiner.vae is not other.model.vae
    spec = JOBS[0]
    [pixels] = other.run([spec])
    assert largest_difference(pixels, other.reference(spec)) <= 1
    replaced = Served(folders[0], tmp_path / "other-refiner", vae=str(folders[0] / "vae"))
    assert replaced.model.refiner(Task.IMG2IMG, Scheduler.EULER).vae is replaced.model.vae


def test_inpainting_unet_is_refined(folders: tuple[Path, Path], tmp_path: Path) -> None:
    tiny_unet(in_channels=9, xl=True).save_pretrained(tmp_path / "inpaint")
    served = Served(*folders, inpaint=str(tmp_path / "inpaint"))
    stock, _ = served.stock[Task.INPAINT]
    stock.register_modules(unet=diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "inpaint"))
    spec = JOBS[6]
    [pixels] = served.run([spec])
    assert largest_difference(pixels, served.reference(spec)) <= 1


def test_lora_changes_the_steps_of_the_base_only(folders: tuple[Path, Path], tmp_path: Path) -> None:
    tiny_lora(folders[0], tmp_path / "ink.safetensors", seed=1)
    served = Served(*folders, loras={"ink": str(tmp_path / "ink.safetensors")})
    plain, inked = job(), job(loras=[{"name": "ink", "scale": 1.0}])
    pixels = served.run([plain, inked])
    assert largest_difference(*pixels) > 1
    assert largest_difference(pixels[0], served.reference(plain)) <= 1


def test_lora_of_a_job_without_steps_of_the_base_is_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    tiny_lora(folders[0], tmp_path / "ink.safetensors", seed=1)
    served = Served(*folders, loras={"ink": str(tmp_path / "ink.safetensors")})
    # The strength would reach into the steps of the base, but gives one step only, which is after them.
    late = {"num_inference_steps": 4, "strength": 0.49, "denoising_end": 0.7}
    with pytest.raises(JobError, match="the refiner that runs them takes no LoRAs"):
        served.run([job(**late, loras=[{"name": "ink", "scale": 1.0}])])
    served.run([job(**late, loras=[{"name": "ink", "scale": 0.0}])])


def test_card_has_the_default_of_the_refiner(served: Served, folders: tuple[Path, Path]) -> None:
    assert (served.model.card.refiner, served.model.card.default_denoising_end) == (True, 0.8)
    assert Served(*folders, denoising_end=0.6).model.card.default_denoising_end == 0.6
    plain = load_model(ModelConfig(name="tiny", source=str(folders[0])), device="cpu").card
    assert (plain.refiner, plain.default_denoising_end) == (False, None)


def test_refiner_is_warmed_up(served: Served) -> None:
    calls: list[str] = []
    pipelines = {"base": served.model._pipelines, "refiner": served.model._refiners}
    for name, by_task in pipelines.items():
        by_task[Task.IMG2IMG].unet.conv_in.register_forward_hook(lambda *_args, name=name: calls.append(name))
    with running_engine() as engine:
        warm_up(served.model, engine)
    assert calls == ["base", "refiner"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"refiner": None, "denoising_end": 0.8}, r"`denoising_end` is where a `refiner` takes over; set `refiner`"),
        ({"refiner": "sd"}, r"`refiner`: .* is a StableDiffusionPipeline, not a Stable Diffusion XL model"),
        ({"refiner": {"source": "refiner", "subfolder": "unet"}}, r"`refiner`: `subfolder` and `weight_name` are not"),
        ({"refiner": "none"}, r"`refiner`: "),
        ({"source": "sd"}, r"`refiner` is for image-to-image of Stable Diffusion XL, not for stable-diffusion"),
    ],
)
def test_refiner_that_does_not_fit_is_refused(
    folders: tuple[Path, Path], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    places = {"sd": tiny_sd(tmp_path / "sd"), "refiner": folders[1], "none": tmp_path / "none"}

    def place(value: Any) -> Any:
        if isinstance(value, dict):
            return {**value, "source": str(places[value["source"]])}
        return str(places[value]) if isinstance(value, str) else value

    config = {"name": "tiny", "source": str(folders[0]), "refiner": str(folders[1])}
    config |= {name: place(value) for name, value in changes.items()}
    with pytest.raises(StartupError, match=message):
        load_model(ModelConfig.model_validate(config), device="cpu")


def test_offloaded_refiner_gives_the_same_pixels(folders: tuple[Path, Path], tmp_path: Path) -> None:
    served = Served(*folders, offload="layers", offload_folder=str(tmp_path / "offload"))
    spec = JOBS[0]
    [pixels] = served.run([spec])
    served.model.close()
    assert largest_difference(pixels, served.reference(spec)) <= 1


def test_embedding_needs_the_text_encoder_of_the_model(folders: tuple[Path, Path], tmp_path: Path) -> None:
    save_file({"clip_l": torch.ones(1, 32), "clip_g": torch.ones(1, 32)}, tmp_path / "soft.safetensors")
    embeddings = {"soft": str(tmp_path / "soft.safetensors")}
    served = Served(*folders, embeddings=embeddings)
    refiner = served.model.refiner(Task.IMG2IMG, Scheduler.EULER)
    assert refiner.tokenizer_2 is served.model._pipelines[Task.IMG2IMG].tokenizer_2
    plain, soft = job(strength=0.1), job(strength=0.1, prompt="a red house, soft")
    assert largest_difference(*served.run([plain, soft])) > 0
    with pytest.raises(StartupError, match=r"text_encoder_2 is not that of the model, so `embeddings` do not work"):
        Served(folders[0], tiny_refiner(tmp_path / "other-refiner", seed=21), embeddings=embeddings)
