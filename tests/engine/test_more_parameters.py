"""Exact steps, variations, FreeU, PAG, tiling and soft inpainting, against stock pipelines.

Each is compared alone, to the last bit, and together with jobs that do not have it.
"""

import inspect
import math
import sys
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers.utils import torch_utils
from PIL import Image
from torch.nn.functional import interpolate

from img2img.domain.conditioning import FreeU
from img2img.domain.model_config import ModelConfig
from img2img.domain.parameters import MAX_SCHEDULE, Scheduler, Task
from img2img.domain.spec import JobSpec
from img2img.worker.engine.engine import Engine
from img2img.worker.images.inputs import Inputs, to_tensor
from img2img.worker.pipelines.job_noise import mix_noise
from img2img.worker.pipelines.model import load_model
from tests.engine.test_families import sd3_arguments
from tests.support.engines import random_tensor, run_tasks
from tests.support.models.tiny_families import tiny_sd3
from tests.support.models.tiny_models import tiny_sd, tiny_sdxl
from tests.support.pages import names, page
from tests.support.parameter_models import BATCH_TOLERANCE, REGION, SIDE, STOCK, Served, job

SOFT = REGION.model_copy(update={"is_soft": True})
FREEU = FreeU(b1=1.3, b2=1.4, s1=0.9, s2=0.2)
PAG = {
    tiny_sd: {
        Task.IMG2IMG: diffusers.StableDiffusionPAGImg2ImgPipeline,
        Task.INPAINT: diffusers.StableDiffusionPAGInpaintPipeline,
    },
    tiny_sdxl: {
        Task.IMG2IMG: diffusers.StableDiffusionXLPAGImg2ImgPipeline,
        Task.INPAINT: diffusers.StableDiffusionXLPAGInpaintPipeline,
    },
}


class Models(Served):
    """A tiny model, with the stock pipelines for perturbed-attention guidance."""

    def __init__(self, make: Any, folder: Any) -> None:
        super().__init__(make(folder), STOCK[make])
        self.pag = {task: kind.from_pretrained(folder) for task, kind in PAG[make].items()}


@pytest.fixture(scope="module", params=[tiny_sd, tiny_sdxl], ids=["sd", "sdxl"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(request.param, tmp_path_factory.mktemp("model"))


def check(served: Served, jobs: list[tuple[JobSpec, torch.Tensor]]) -> Engine:
    """Assert that jobs have the expected pixels, alone and in company. Return the engine of the company."""
    plain = [job(task=task, region=REGION) for task in served.stock]
    specs = [spec for spec, _ in jobs]
    inputs = [inputs_of(served, spec) for spec in (*specs, *plain)]
    engine = Engine(slots=16)
    batch = run_tasks(served.model, list(zip((*specs, *plain), inputs, strict=True)), engine)
    for (spec, expected), batched in zip(jobs, batch, strict=False):
        [alone] = run_tasks(served.model, [(spec, inputs_of(served, spec))])
        assert torch.equal(alone, expected), spec
        torch.testing.assert_close(batched, expected, rtol=0, atol=BATCH_TOLERANCE)
    for spec, batched in zip(plain, batch[len(jobs) :], strict=True):
        torch.testing.assert_close(batched, served.reference(spec), rtol=0, atol=BATCH_TOLERANCE)
    assert len({image.numpy().tobytes() for image in batch}) == len(batch), "every value has an effect"
    return engine


def inputs_of(served: Served, spec: JobSpec) -> Inputs:
    mask = to_tensor(served.mask) if spec.task is Task.INPAINT else None
    return Inputs(to_tensor(served.image), mask)


def test_exact_steps_run_the_end_of_a_longer_schedule(served: Models) -> None:
    specs = [job(task=task, region=REGION, exact_steps=True, num_inference_steps=4) for task in served.stock]
    assert {(spec.schedule_steps, spec.steps_run) for spec in specs} == {(7, 4)}
    check(served, [(spec, served.reference(spec, num_inference_steps=7)) for spec in specs])


@pytest.mark.parametrize("scheduler", [Scheduler.DDIM, Scheduler.FLOW_EULER])
@pytest.mark.parametrize("steps", [1, 2, 7, 20, 150])
def test_exact_steps_are_those_of_the_pipelines(steps: int, scheduler: Scheduler) -> None:
    for percent in (1, 7, 29, 30, 50, 58, 75, 99, 100):
        spec = job(exact_steps=True, num_inference_steps=steps, strength=percent / 100, scheduler=scheduler)
        # The formulas of the stock pipelines.
        total = spec.schedule_steps
        if total > MAX_SCHEDULE:
            assert int(MAX_SCHEDULE * spec.strength) < steps
            continue
        begin = min(total * spec.strength, total)
        if scheduler is Scheduler.DDIM:
            begin = int(begin)
        assert total - int(max(total - begin, 0)) == steps == spec.steps_run
    assert job(exact_steps=True, strength=0.0).steps_run == 0


def column_arc(noise: torch.Tensor, other: torch.Tensor, share: float) -> torch.Tensor:
    """Interpolate each column of latents on a sphere, one by one."""
    mixed = torch.empty_like(noise)
    for channel in range(noise.shape[1]):
        for x in range(noise.shape[3]):
            a, b = (each[0, channel, :, x].double() for each in (noise, other))
            angle = math.acos(float(a @ b / (a.norm() * b.norm())))
            mixed[0, channel, :, x] = (math.sin((1 - share) * angle) * a + math.sin(share * angle) * b) / math.sin(
                angle
            )
    return mixed


def test_variations_have_noise_between_two_seeds(served: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    shares, subseed = (0.3, 1.0), 77
    jobs = []
    # The noise of the VAE and of the scheduler is drawn by other modules.
    modules = {task: sys.modules[type(pipeline).__module__] for task, pipeline in served.stock.items()}
    for task, module in modules.items():
        for share in shares:
            spec = job(task=task, region=REGION, subseed=subseed, subseed_strength=share, scheduler=Scheduler.EULER_A)

            def varied(shape: Any, share: float = share, **kwargs: Any) -> torch.Tensor:
                other = torch.randn(shape, generator=torch.Generator().manual_seed(subseed))
                return mix_noise(torch_utils.randn_tensor(shape, **kwargs), other, share)

            with monkeypatch.context() as patch:
                patch.setattr(module, "randn_tensor", varied)
                jobs.append((spec, served.reference(spec)))
    check(served, jobs)
    first, second = torch.randn(2, 1, 4, 8, 8)
    for share in (0.0, 0.3, 1.0):
        torch.testing.assert_close(mix_noise(first, second, share), column_arc(first, second, share))
    torch.testing.assert_close(mix_noise(first, first, 0.5), first)


def test_images_of_a_variation_have_one_seed() -> None:
    spec = job(seed=5, subseed=8, subseed_strength=0.1, num_images=2)
    assert [(spec.image_seed(i), spec.image_subseed(i)) for i in range(2)] == [(5, 8), (5, 9)]
    assert [(job(seed=5).image_seed(i), job(seed=5).image_subseed(i)) for i in range(2)] == [(5, None), (6, None)]


def test_freeu_is_exact_and_shares_passes(served: Models) -> None:
    jobs = []
    for task, pipeline in served.stock.items():
        assert task in served.model.card.parameters["freeu"]
        for changes in ({}, {"prompt": "a boat"}):
            spec = job(task=task, region=REGION, freeu=FREEU, **changes)
            pipeline.enable_freeu(**FREEU.model_dump())
            jobs.append((spec, served.reference(spec)))
            pipeline.disable_freeu()
    engine = check(served, jobs)
    assert engine.batches_run["denoise", 8], "the four jobs with FreeU run together"


def test_pag_is_exact_and_shares_no_pass(served: Models) -> None:
    jobs = []
    for task, pipeline in served.pag.items():
        assert task in served.model.card.parameters["pag_scale"]
        for changes in ({}, {"pag_adaptive_scale": 0.002}, {"guidance_scale": 1.0}, {"freeu": FREEU}):
            spec = job(task=task, region=REGION, pag_scale=2.0, **changes)
            if spec.freeu:
                pipeline.enable_freeu(**FREEU.model_dump())
            values = {"pag_scale": 2.0, "pag_adaptive_scale": spec.pag_adaptive_scale}
            jobs.append((spec, served.reference(spec, pipeline, **values)))
            pipeline.disable_freeu()
    engine = check(served, jobs)
    assert engine.batches_run["denoise", 3] == 6 * 4
    assert engine.batches_run["denoise", 2] == 2 * 4


def test_tiling_is_that_of_circular_convolutions(served: Models) -> None:
    assert served.model.card.parameters["seamless_tiling"] == (Task.IMG2IMG,)
    specs = [
        job(seamless_tiling=True),
        job(seamless_tiling=True, fast_vae=True),
        job(seamless_tiling=True, freeu=FREEU),
    ]
    pipeline = served.stock[Task.IMG2IMG]
    parts = (pipeline.unet, pipeline.vae, served.fast_vae)
    layers = [layer for part in parts for layer in part.modules() if isinstance(layer, torch.nn.Conv2d)]
    jobs = []
    for spec in specs:
        for layer in layers:
            layer.padding_mode = "circular"
        if spec.freeu:
            pipeline.enable_freeu(**FREEU.model_dump())
        jobs.append((spec, served.reference(spec)))
        pipeline.disable_freeu()
        for layer in layers:
            layer.padding_mode = "zeros"
    check(served, jobs)
    image = served.image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    plain, tiled = (job(strength=0.0, seamless_tiling=tiling) for tiling in (False, True))
    results = run_tasks(served.model, [(spec, Inputs(to_tensor(image))) for spec in (plain, tiled)])
    assert not torch.equal(*results)


def differential_reference(served: Models, spec: JobSpec) -> torch.Tensor:
    """Differential diffusion: https://arxiv.org/abs/2306.00950, algorithm 1, on the stock image-to-image pipeline."""
    pipeline = served.stock[Task.IMG2IMG]
    vae, image = pipeline.vae, 2 * to_tensor(served.image) - 1
    generator = torch.Generator().manual_seed(spec.seed)
    with torch.inference_mode():
        original = vae.config.scaling_factor * vae.encode(image).latent_dist.sample(generator)
    noise = torch.randn(original.shape, generator=generator)
    change = interpolate(to_tensor(served.mask), scale_factor=1 / pipeline.vae_scale_factor, mode="area")

    def blend(pipeline: Any, i: int, _t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        steps = pipeline.scheduler.timesteps[-4:]
        if i + 1 == len(steps):
            return {}
        noised = pipeline.scheduler.add_noise(original, noise, steps[i + 1].reshape(1))
        keep = (1 - change > (i + 1) / len(steps)).float()
        return {"latents": noised * keep + tensors["latents"] * (1 - keep)}

    return served.reference(spec, pipeline, callback_on_step_end=blend)


def test_soft_inpainting_is_differential_diffusion(served: Models) -> None:
    assert served.model.card.parameters["soft_inpainting"] == (Task.INPAINT,)
    hard = served.mask.copy()
    served.mask.paste(100, (8, 8, 16, 24))
    served.mask.paste(200, (16, 8, 20, 24))
    try:
        spec = job(task=Task.INPAINT, region=SOFT)
        assert spec.steps_run == 4
        soft = differential_reference(served, spec)
        [result] = run_tasks(served.model, [(spec, inputs_of(served, spec))])
        assert torch.equal(result, soft)
        [_, together] = run_tasks(
            served.model, [(job(), inputs_of(served, job())), (spec, inputs_of(served, spec))], Engine(slots=4)
        )
        torch.testing.assert_close(together, soft, rtol=0, atol=BATCH_TOLERANCE)
    finally:
        served.mask.paste(hard)
    assert not torch.equal(run_tasks(served.model, [(spec, inputs_of(served, spec))])[0], soft)


def test_pag_and_variations_of_stable_diffusion_3(tmp_path: Path) -> None:
    folder = tiny_sd3(tmp_path / "model")
    model = load_model(ModelConfig(name="tiny", source=str(folder)), device="cpu")
    stock = diffusers.StableDiffusion3PAGImg2ImgPipeline.from_pretrained(folder)
    stock.set_progress_bar_config(disable=True)
    assert model.card.parameters["pag_scale"] == (Task.IMG2IMG,)
    assert model.card.parameters["soft_inpainting"] == (Task.INPAINT,)
    assert "freeu" not in model.card.parameters
    image = random_tensor(1, SIDE, SIDE)
    common = {"scheduler": Scheduler.FLOW_EULER, "num_inference_steps": 4}
    specs = [job(**common, pag_scale=2.0), job(**common, pag_scale=2.0, guidance_scale=1.0), job(**common)]
    together = run_tasks(model, [(spec, Inputs(image)) for spec in specs])
    for spec, batched in zip(specs, together, strict=True):
        stock.scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_config(stock.scheduler.config)
        arguments = {"pag_scale": spec.pag_scale, "output_type": "pt", "image": image, "prompt": spec.prompt}
        expected = stock(
            num_inference_steps=4,
            generator=torch.Generator().manual_seed(spec.seed),
            **sd3_arguments(spec),
            **arguments,
        ).images
        [alone] = run_tasks(model, [(spec, Inputs(image))])
        assert torch.equal(alone, expected)
        torch.testing.assert_close(batched, expected, rtol=0, atol=BATCH_TOLERANCE)
    varied = [job(**common, subseed=5, subseed_strength=share) for share in (0.1, 0.9)]
    soft = job(**common, task=Task.INPAINT, region=SOFT)
    mask = torch.full((1, 1, SIDE, SIDE), 0.6)
    results = run_tasks(model, [*((spec, Inputs(image)) for spec in varied), (soft, Inputs(image, mask))])
    assert len({result.numpy().tobytes() for result in (*results, together[2])}) == 4


def test_page_of_parameters_has_every_argument_of_the_pipelines() -> None:
    kinds = (*STOCK[tiny_sd].values(), *STOCK[tiny_sdxl].values(), *PAG[tiny_sdxl].values())
    kinds += (diffusers.StableDiffusionXLControlNetInpaintPipeline, diffusers.StableDiffusion3Img2ImgPipeline)
    kinds += (diffusers.FluxImg2ImgPipeline, diffusers.QwenImageImg2ImgPipeline)
    arguments = {name for kind in kinds for name in inspect.signature(kind.__call__).parameters}
    assert arguments - {"self", "kwargs"} - set(names(page("docs/parameters.md"))) == set()
