"""Every family gives the pixels of its stock pipelines, alone and batched with its other tasks.

The reference is a second copy of a tiny random model, called through diffusers directly, with schedulers built here.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from transformers.utils import is_torchvision_available

from img2img.domain.conditioning import InpaintRegion, Padding, ReferenceImage
from img2img.domain.model_config import ModelConfig
from img2img.domain.parameters import NOISY_SCHEDULERS, Scheduler, Speed, Task
from img2img.domain.spec import JobSpec
from img2img.worker.engine.engine import Engine
from img2img.worker.errors import StartupError
from img2img.worker.images.inputs import Inputs, to_tensor
from img2img.worker.pipelines.image_processors import image_only_processor
from img2img.worker.pipelines.model import Model, load_model
from img2img.worker.pipelines.step_cache import TOLERANCES, Tolerance
from tests.support.engines import run_on, run_together
from tests.support.family_matrix import small_images
from tests.support.images import largest_difference
from tests.support.models.tiny_families import (
    tiny_fill,
    tiny_flux,
    tiny_flux2,
    tiny_klein,
    tiny_kontext,
    tiny_lcm,
    tiny_qwen_edit,
    tiny_qwen_edit_plus,
    tiny_qwen_image,
    tiny_refiner,
    tiny_schnell,
    tiny_sd3,
    tiny_z_image,
)
from tests.support.models.tiny_models import tiny_sd, tiny_sdxl
from tests.support.specs import make_spec

WIDTH, HEIGHT = 96, 64
EULER = diffusers.FlowMatchEulerDiscreteScheduler
SCHEDULERS: dict[Scheduler, Callable[[Any], Any]] = {
    Scheduler.FLOW_EULER: EULER.from_config,
    Scheduler.FLOW_EULER_BETA: lambda config: EULER.from_config(config, use_beta_sigmas=True),
    Scheduler.FLOW_HEUN: diffusers.FlowMatchHeunDiscreteScheduler.from_config,
    Scheduler.DDIM: lambda config: diffusers.DDIMScheduler.from_config(config, clip_sample=False),
    Scheduler.EULER: diffusers.EulerDiscreteScheduler.from_config,
    Scheduler.LCM: diffusers.LCMScheduler.from_config,
}


@dataclass
class Case:
    """A family: a function that makes a tiny model, its stock pipelines and their arguments."""

    make: Callable[[Path], Path]
    stock: dict[Task, type]
    arguments: Callable[[JobSpec], dict[str, Any]]
    scheduler: Scheduler = Scheduler.FLOW_EULER
    # Supported besides `scheduler`.
    schedulers: tuple[Scheduler, ...] = ()
    # A negative prompt, if the family supports one.
    negative: str = ""
    config: dict[str, Any] | None = None
    # Components to pass to `from_pretrained`.
    components: Callable[[str], dict[str, Any]] = lambda _folder: {}
    # How the pipeline takes several images.
    join: Callable[[Sequence[Image.Image]], Any] = list


def sizes(spec: JobSpec) -> dict[str, Any]:
    return {"width": spec.width, "height": spec.height}


def strength_and_guidance(spec: JobSpec) -> dict[str, Any]:
    return {"strength": spec.strength, "guidance_scale": spec.guidance_scale}


def sd3_arguments(spec: JobSpec) -> dict[str, Any]:
    return {**strength_and_guidance(spec), **sizes(spec), "negative_prompt": spec.negative_prompt or None}


def flux_arguments(spec: JobSpec) -> dict[str, Any]:
    return {**strength_and_guidance(spec), **sizes(spec)}


def kontext_arguments(spec: JobSpec) -> dict[str, Any]:
    size = {"max_area": spec.width * spec.height, "_auto_resize": False}
    strength = {} if spec.task is Task.EDIT else {"strength": spec.strength}
    return {"guidance_scale": spec.guidance_scale, **strength, **sizes(spec), **size}


def sd_arguments(spec: JobSpec) -> dict[str, Any]:
    return {**strength_and_guidance(spec), "negative_prompt": spec.negative_prompt or None}


def klein_arguments(spec: JobSpec) -> dict[str, Any]:
    return {"guidance_scale": spec.guidance_scale, **sizes(spec)}


def qwen_edit_arguments(spec: JobSpec) -> dict[str, Any]:
    guided = {"true_cfg_scale": spec.guidance_scale, "negative_prompt": spec.negative_prompt or " "}
    return {**sizes(spec), **(guided if spec.guidance_scale > 1 else {})}


def qwen_arguments(spec: JobSpec) -> dict[str, Any]:
    return {"strength": spec.strength, **qwen_edit_arguments(spec)}


def z_image_arguments(spec: JobSpec) -> dict[str, Any]:
    scale = spec.guidance_scale if spec.guidance_scale > 1 else 0
    return {"strength": spec.strength, "guidance_scale": scale, "negative_prompt": spec.negative_prompt or None}


def side_by_side(images: Sequence[Image.Image]) -> Image.Image:
    """Return images of the height of the first one, with widths that are multiples of 16."""
    height = images[0].height
    widths = [16 * round(image.width * height / image.height / 16) for image in images]
    parts = [np.asarray(image.resize((width, height), 1)) for image, width in zip(images, widths, strict=True)]
    return Image.fromarray(np.hstack(parts))


def photo(seed: int, width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


FLUX = {Task.IMG2IMG: diffusers.FluxImg2ImgPipeline, Task.INPAINT: diffusers.FluxInpaintPipeline}
CASES = {
    "flux": Case(tiny_flux, FLUX, flux_arguments, schedulers=(Scheduler.FLOW_EULER_BETA,)),
    "flux-schnell": Case(tiny_schnell, FLUX, flux_arguments),
    "flux-kontext": Case(
        tiny_kontext,
        {Task.EDIT: diffusers.FluxKontextPipeline, Task.INPAINT: diffusers.FluxKontextInpaintPipeline},
        kontext_arguments,
        join=side_by_side,
    ),
    "flux-fill": Case(tiny_fill, {Task.INPAINT: diffusers.FluxFillPipeline}, flux_arguments),
    "sd3": Case(
        tiny_sd3,
        {
            Task.IMG2IMG: diffusers.StableDiffusion3Img2ImgPipeline,
            Task.INPAINT: diffusers.StableDiffusion3InpaintPipeline,
        },
        sd3_arguments,
        schedulers=(Scheduler.FLOW_EULER_BETA, Scheduler.FLOW_HEUN),
        negative="blurry",
    ),
    "sdxl-refiner": Case(
        tiny_refiner,
        {Task.IMG2IMG: diffusers.StableDiffusionXLImg2ImgPipeline},
        sd_arguments,
        Scheduler.EULER,
        negative="blurry",
    ),
    "flux-2": Case(tiny_flux2, {Task.EDIT: diffusers.Flux2Pipeline}, klein_arguments),
    "flux-2-klein": Case(
        tiny_klein,
        {Task.EDIT: diffusers.Flux2KleinPipeline, Task.INPAINT: diffusers.Flux2KleinInpaintPipeline},
        lambda spec: {**klein_arguments(spec), **({"strength": spec.strength} if spec.task is Task.INPAINT else {})},
    ),
    "qwen-image": Case(
        tiny_qwen_image,
        {Task.IMG2IMG: diffusers.QwenImageImg2ImgPipeline, Task.INPAINT: diffusers.QwenImageInpaintPipeline},
        qwen_arguments,
        negative="blurry",
    ),
    "qwen-image-edit": Case(
        tiny_qwen_edit,
        {Task.EDIT: diffusers.QwenImageEditPipeline},
        qwen_edit_arguments,
        negative="blurry",
        components=image_only_processor,
    ),
    "qwen-image-edit-plus": Case(
        tiny_qwen_edit_plus,
        {Task.EDIT: diffusers.QwenImageEditPlusPipeline},
        qwen_edit_arguments,
        negative="blurry",
        components=image_only_processor,
    ),
    "z-image": Case(
        tiny_z_image,
        {Task.IMG2IMG: diffusers.ZImageImg2ImgPipeline, Task.INPAINT: diffusers.ZImageInpaintPipeline},
        z_image_arguments,
        negative="blur",
    ),
    "sd-turbo": Case(
        tiny_sd,
        {Task.IMG2IMG: diffusers.StableDiffusionImg2ImgPipeline},
        sd_arguments,
        Scheduler.EULER,
        config={"guidance": False, "steps": 2, "scheduler": "euler"},
    ),
    "lcm": Case(tiny_lcm, {Task.IMG2IMG: diffusers.StableDiffusionImg2ImgPipeline}, sd_arguments, Scheduler.LCM),
}


class Served:
    """A tiny model in the engine, and its stock pipelines."""

    def __init__(self, case: Case, folder: Path) -> None:
        self.case = case
        case.make(folder)
        self.model: Model = load_model(ModelConfig(name="tiny", source=str(folder), **case.config or {}), device="cpu")
        self.stock = {
            task: kind.from_pretrained(folder, **case.components(str(folder))) for task, kind in case.stock.items()
        }
        # Not those of the schedulers that replace it, which keep each other's options.
        self.scheduler_configs = {task: pipeline.scheduler.config for task, pipeline in self.stock.items()}
        rng = np.random.default_rng(2)
        self.image = Image.fromarray(rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8))
        self.mask = Image.new("L", (WIDTH, HEIGHT))
        self.mask.paste(255, (8, 12, 40, 40))

    def reference(self, spec: JobSpec, images: Sequence[Image.Image] = (), **more: Any) -> np.ndarray:
        pipeline = self.stock[spec.task]
        pipeline.set_progress_bar_config(disable=True)
        pipeline.scheduler = SCHEDULERS[spec.scheduler](self.scheduler_configs[spec.task])
        masked = {"mask_image": self.rotated(self.mask, spec), **sizes(spec)} if spec.task is Task.INPAINT else {}
        image = pipeline(
            prompt=spec.prompt,
            image=self.case.join(images) if images else self.rotated(self.image, spec),
            num_inference_steps=spec.num_inference_steps,
            generator=torch.Generator().manual_seed(spec.seed),
            **{**self.case.arguments(spec), **masked, **more},
        ).images[0]
        return np.asarray(image)

    def inputs(self, spec: JobSpec) -> Inputs:
        mask = to_tensor(self.rotated(self.mask, spec)) if spec.task is Task.INPAINT else None
        return Inputs(to_tensor(self.rotated(self.image, spec)), mask)

    def rotated(self, image: Image.Image, spec: JobSpec) -> Image.Image:
        return image if image.size == (spec.width, spec.height) else image.transpose(Image.Transpose.ROTATE_90)

    def jobs(self, specs: list[JobSpec]) -> list[tuple[JobSpec, Inputs]]:
        return [(spec, self.inputs(spec)) for spec in specs]

    def specs(self) -> list[JobSpec]:
        """Return jobs of all tasks with different strengths, steps, guidance scales and schedulers."""
        case, specs = self.case, []
        scales = (1.0, 5.0) if self.model.card.guidance else (1.0,)
        for task in case.stock:
            strengths = (1.0,) if task is Task.EDIT else (0.05, 0.55, 1.0)
            for i, (strength, scale) in enumerate((s, g) for s in strengths for g in scales):
                steps, prompt = 4 + i % 2, f"house {i % 2}"
                specs.append(
                    job(
                        task=task,
                        strength=strength if case.scheduler in FLOW else max(strength, 0.3),
                        guidance_scale=scale,
                        num_inference_steps=steps,
                        seed=i,
                        prompt=prompt,
                        scheduler=case.scheduler,
                        negative_prompt=case.negative if i % 2 else "",
                    )
                )
            specs += [specs[-1].model_copy(update={"scheduler": other}) for other in case.schedulers]
            # The same number of tokens in another shape has other position ids.
            specs.append(specs[-1].model_copy(update={"width": HEIGHT, "height": WIDTH}))
        return specs


FLOW = (Scheduler.FLOW_EULER, Scheduler.FLOW_EULER_BETA, Scheduler.FLOW_HEUN)
REGION = InpaintRegion(mask="1" * 64, blur=0, margins=Padding(), canvas=(WIDTH, HEIGHT), box=(0, 0, WIDTH, HEIGHT))


def job(**changes: Any) -> JobSpec:
    defaults = {
        "strength": 0.6,
        "guidance_scale": 1.0,
        "num_inference_steps": 4,
        "scheduler": Scheduler.FLOW_EULER,
        "width": WIDTH,
        "height": HEIGHT,
        "region": REGION if changes.get("task") is Task.INPAINT else None,
    }
    return make_spec(**{**defaults, **changes})


@pytest.fixture(scope="module", params=CASES, ids=list(CASES))
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Served:
    return Served(CASES[request.param], tmp_path_factory.mktemp("model"))


def test_family_gives_stock_pixels_alone_and_batched(served: Served) -> None:
    specs = served.specs()
    engine = Engine(slots=16)
    together = run_on(engine, served.model, served.jobs(specs))
    for spec, batched in zip(specs, together, strict=True):
        reference = served.reference(spec)
        [alone] = run_together(served.model, served.jobs([spec]))
        assert largest_difference(alone, reference) == 0, spec
        assert largest_difference(batched, reference) <= 1, spec
    assert len({result.tobytes() for result in together}) == len(specs), "every parameter must change the pixels"


def test_guidance_until_gives_stock_pixels(served: Served) -> None:
    if not served.model.card.guidance_until:
        assert served.model.family.conditional is None or not served.model.card.guidance
        return
    # Rows without the prompt stay, because the callback cannot take all of them away. Their weight becomes 0.
    off = 0.0 if served.model.family.conditional == "first" else 1 + 1e-12

    def turn_off(pipeline: Any, index: int, _timestep: Any, _tensors: Any) -> dict[str, Any]:
        pipeline._guidance_scale = off if index == 1 else pipeline._guidance_scale
        return {}

    specs = [
        job(
            task=task,
            strength=1.0,
            guidance_scale=60.0,
            negative_prompt=served.case.negative,
            scheduler=served.case.scheduler,
            guidance_until=0.5,
        )
        for task in served.case.stock
    ]
    for spec in specs:
        # Such a high guidance scale would increase the rounding of a batch.
        [found] = run_together(served.model, served.jobs([spec]))
        reference = served.reference(spec, callback_on_step_end=turn_off)
        assert largest_difference(found, reference) <= 1, spec
        assert largest_difference(reference, served.reference(spec)) >= 1


def test_jobs_of_one_size_share_every_denoiser_call(served: Served) -> None:
    task = next(iter(served.case.stock))
    specs = [job(task=task, strength=1.0, seed=seed, scheduler=served.case.scheduler) for seed in range(4)]
    engine = Engine(slots=4)
    run_on(engine, served.model, served.jobs(specs))
    assert engine.rows_run["denoise"] == 4 * 4
    assert engine.calls_run["denoise"] == 4


def test_speed_skips_calls_of_every_task(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler, card = served.case.scheduler, served.model.card
    if scheduler in NOISY_SCHEDULERS:
        assert card.scheduler_parameters["speed"] == ()
        return
    common = {"strength": 1.0, "guidance_scale": 5.0 if card.guidance else 1.0, "num_inference_steps": 11}
    for task in served.case.stock:
        exact, turbo = (job(task=task, scheduler=scheduler, **common, speed=speed) for speed in ("exact", "turbo"))
        every = Engine(slots=1)
        [expected] = run_on(every, served.model, served.jobs([exact]))
        # Of 11 calls, 0, 1, 2, 5, 8 and 10 are made.
        monkeypatch.setitem(TOLERANCES, Speed.TURBO, Tolerance(math.inf, 2))
        engine = Engine(slots=1)
        [predicted] = run_on(engine, served.model, served.jobs([turbo]))
        assert engine.calls_run["denoise"] == every.calls_run["denoise"] * 6 // 11
        assert largest_difference(predicted, expected) > 0
        monkeypatch.setitem(TOLERANCES, Speed.TURBO, Tolerance(-1.0, 2))
        [without] = run_on(Engine(slots=1), served.model, served.jobs([turbo]))
        assert without.tobytes() == expected.tobytes()


def test_card_lists_capabilities_of_the_family(served: Served) -> None:
    card = served.model.card
    assert set(served.case.stock) <= set(card.tasks)
    assert card.default_scheduler is served.case.scheduler
    assert {served.case.scheduler, *served.case.schedulers} <= set(card.schedulers)
    assert card.negative_prompt == bool(served.case.negative)
    assert all(width % card.size_multiple == 0 == height % card.size_multiple for width, height in card.sizes)


def test_several_reference_images_give_stock_pixels_alone_and_batched(served: Served) -> None:
    if served.model.card.max_images == 1:
        pytest.skip("takes one image")
    sizes = [((64, 64),), ((64, 64),), ((64, 64), (64, 96)), ((64, 96),)]
    specs = [job(task=Task.EDIT, seed=i, scheduler=served.case.scheduler) for i in range(len(sizes))]
    specs = [
        spec.model_copy(
            update={"references": tuple(ReferenceImage(image="2" * 64, width=w, height=h) for w, h in each)}
        )
        for spec, each in zip(specs, sizes, strict=True)
    ]
    references = [tuple(photo(10 * i + j, *size) for j, size in enumerate(each)) for i, each in enumerate(sizes)]
    jobs = [
        (spec, replace(served.inputs(spec), references=images)) for spec, images in zip(specs, references, strict=True)
    ]
    engine = Engine(slots=8)
    with small_images():
        together = run_on(engine, served.model, jobs)
        for one, result in zip(jobs, together, strict=True):
            expected = served.reference(one[0], [served.image, *one[1].references])
            assert largest_difference(run_together(served.model, [one])[0], expected) == 0, one[0]
            assert largest_difference(result, expected) <= 1, one[0]
    assert len({result.tobytes() for result in together}) == len(jobs)
    steps = sum(spec.steps_run for spec in specs)
    assert engine.calls_run["denoise"] < steps, "jobs whose references have equal shapes share their calls"


@pytest.mark.parametrize("make", [tiny_sdxl, tiny_refiner])
def test_denoising_start_gives_stock_pixels(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    def arguments(spec: JobSpec) -> dict[str, Any]:
        return {"denoising_start": spec.denoising_start, "guidance_scale": spec.guidance_scale}

    case = Case(make, {Task.IMG2IMG: diffusers.StableDiffusionXLImg2ImgPipeline}, arguments, Scheduler.EULER)
    served = Served(case, tmp_path)
    assert served.model.card.parameters["denoising_start"] == (Task.IMG2IMG,)
    common = {"strength": 1.0, "scheduler": Scheduler.EULER}
    late = job(denoising_start=0.8, num_inference_steps=15, guidance_scale=5.0, **common)
    early = job(denoising_start=0.5, num_inference_steps=4, **{**common, "scheduler": Scheduler.DDIM})
    engine = Engine(slots=4)
    together = run_on(engine, served.model, served.jobs([late, early, job(scheduler=Scheduler.EULER)]))
    assert (late.steps_run, early.steps_run) == (3, 2)
    assert engine.calls_run["denoise"] <= 4, "jobs with a strength share the calls"
    for spec, result in zip([late, early], together, strict=False):
        assert largest_difference(result, served.reference(spec)) <= 1, spec


def test_denoiser_runs_steps_run_of_the_spec(served: Served) -> None:
    for task in served.case.stock:
        for strength, steps in [(0.29, 7), (0.5, 5), (1e-6, 3), (1.0, 2)]:
            if task is Task.EDIT and strength < 1:
                continue
            spec = job(task=task, strength=strength, num_inference_steps=steps, scheduler=served.case.scheduler)
            engine = Engine(slots=1)
            run_on(engine, served.model, served.jobs([spec]))
            assert engine.calls_run["denoise"] == spec.steps_run, spec


def test_strength_0_encodes_and_decodes_without_denoiser(served: Served) -> None:
    if Task.IMG2IMG not in served.case.stock:
        pytest.skip("edits have no strength")
    engine = Engine(slots=1)
    [result] = run_on(engine, served.model, served.jobs([job(strength=0, scheduler=served.case.scheduler)]))
    assert engine.calls_run["denoise"] == 0
    vae, pixels = served.stock[Task.IMG2IMG].vae, 2 * to_tensor(served.image) - 1
    with torch.no_grad():
        if pixels.dim() < 5 and hasattr(vae, "temperal_downsample"):
            decoded = vae.decode(vae.encode(pixels[:, :, None]).latent_dist.mode()).sample[:, :, 0]
        else:
            decoded = vae.decode(vae.encode(pixels).latent_dist.mode()).sample
    expected = ((decoded / 2 + 0.5).clamp(0, 1)[0].permute(1, 2, 0).numpy() * 255).round()
    assert largest_difference(result, expected) <= 1


def test_load_model_rejects_unsupported_family_before_reading_weights(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "AuraFlowPipeline", "unet": ["diffusers", "UNet"]}')
    with pytest.raises(StartupError, match="AuraFlowPipeline is not supported: its call takes no image"):
        load_model(ModelConfig(name="tiny", source=str(tmp_path)), device="cpu")


@pytest.mark.skipif(is_torchvision_available(), reason="transformers can load the processor")
def test_load_model_reports_missing_torchvision(tmp_path: Path) -> None:
    index = {"_class_name": "Flux2Pipeline", "tokenizer": ["transformers", "PixtralProcessor"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(StartupError, match="PixtralProcessor requires torchvision"):
        load_model(ModelConfig(name="tiny", source=str(tmp_path)), device="cpu")


def test_card_of_model_without_guidance(tmp_path: Path) -> None:
    config = ModelConfig(name="tiny", source=str(tiny_sd(tmp_path)), guidance=False, steps=2)
    card = load_model(config, device="cpu").card
    assert (card.guidance, card.negative_prompt, card.default_guidance_scale, card.default_steps) == (
        False,
        False,
        1,
        2,
    )
