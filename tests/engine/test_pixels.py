"""Stable Diffusion jobs give the pixels of the stock pipelines, alone and batched.

The reference is a second copy of the model, called through diffusers directly, with schedulers built here.
"""

import itertools
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from torch.utils import _pytree as pytree

from img2img.domain.parameters import DIFFUSION_SCHEDULERS, NOISY_SCHEDULERS, Scheduler, Task
from img2img.domain.spec import JobSpec
from img2img.worker.engine.engine import Engine
from img2img.worker.engine.gate import Gate
from img2img.worker.engine.priority_shares import HIGHEST
from img2img.worker.engine.task import EngineTask, Urgency
from img2img.worker.images.inputs import Inputs
from img2img.worker.pipelines import midway_schedulers
from img2img.worker.pipelines.denoise import make_task_function
from img2img.worker.pipelines.loading.served_models import config_for
from img2img.worker.pipelines.model import Model, load_model
from img2img.worker.pipelines.schedulers import make_scheduler
from img2img.worker.runner import to_pixels
from tests.support.engines import run_on
from tests.support.images import largest_difference
from tests.support.models.tiny_models import tiny_sd, tiny_sdxl
from tests.support.specs import make_spec
from tests.support.stock import call_stock

# Each test takes less than a minute of CPU time, on a busy machine many times as long.
pytestmark = pytest.mark.timeout(1200)

STEPS = 12
STRENGTHS = (0.1, 0.3, 0.6, 1.0)
# Each strength goes with one of them for one scheduler and with the other one for the next.
GUIDANCES = (1.0, 5.0, 5.0, 1.0, 5.0, 1.0, 1.0, 5.0)

DPM = diffusers.DPMSolverMultistepScheduler
SINGLE = diffusers.DPMSolverSinglestepScheduler
STOCK_SCHEDULERS = {
    "ddim": lambda config: diffusers.DDIMScheduler.from_config(config),
    "ddpm": lambda config: diffusers.DDPMScheduler.from_config(config),
    # Those of diffusers leave noise in the image below strength 1.
    "pndm": lambda config: midway_schedulers.PNDMScheduler.from_config(config, skip_prk_steps=True),
    "lms": lambda config: midway_schedulers.LMSDiscreteScheduler.from_config(config),
    "euler": lambda config: diffusers.EulerDiscreteScheduler.from_config(config),
    "euler_a": lambda config: diffusers.EulerAncestralDiscreteScheduler.from_config(config),
    "heun": lambda config: diffusers.HeunDiscreteScheduler.from_config(config),
    "dpmpp_2m": lambda config: DPM.from_config(config),
    "dpmpp_2m_karras": lambda config: DPM.from_config(config, use_karras_sigmas=True),
    "dpmpp_2m_sde": lambda config: DPM.from_config(config, algorithm_type="sde-dpmsolver++"),
    "dpmpp_2m_sde_heun": lambda config: DPM.from_config(config, algorithm_type="sde-dpmsolver++", solver_type="heun"),
    "dpmpp_3m_sde": lambda config: DPM.from_config(config, algorithm_type="sde-dpmsolver++", solver_order=3),
    "dpmpp_sde": lambda config: diffusers.DPMSolverSDEScheduler.from_config(config),
    "dpmpp_2s": lambda config: SINGLE.from_config(config, lower_order_final=True),
    "dpmpp_2s_a": lambda config: SINGLE.from_config(config, lower_order_final=True, algorithm_type="sde-dpmsolver++"),
    "dpm2": lambda config: diffusers.KDPM2DiscreteScheduler.from_config(config),
    "dpm2_a": lambda config: diffusers.KDPM2AncestralDiscreteScheduler.from_config(config),
    "unipc": lambda config: diffusers.UniPCMultistepScheduler.from_config(config),
    "deis": lambda config: diffusers.DEISMultistepScheduler.from_config(config, algorithm_type="deis"),
    "lcm": lambda config: diffusers.LCMScheduler.from_config(config),
    "tcd": lambda config: diffusers.TCDScheduler.from_config(config),
}
STOCK_SIGMAS = {
    None: {},
    "karras": {"use_karras_sigmas": True},
    "exponential": {"use_exponential_sigmas": True},
    "beta": {"use_beta_sigmas": True},
    "normal": {"timestep_spacing": "linspace"},
    "simple": {"timestep_spacing": "trailing"},
    "sgm_uniform": {"timestep_spacing": "trailing"},
    "ddim_uniform": {"timestep_spacing": "leading"},
}


class Served:
    """A tiny model in the engine, and the stock pipeline."""

    def __init__(self, folder: Path, image: torch.Tensor) -> None:
        self.folder = folder
        self.model: Model = load_model(config_for(str(folder)), device="cpu")
        self.stock = diffusers.AutoPipelineForImage2Image.from_pretrained(folder)
        self.stock.set_progress_bar_config(disable=True)
        self.config = self.stock.scheduler.config
        self.image = image

    def reference(self, spec: JobSpec, image: torch.Tensor | None = None) -> np.ndarray:
        """Return the pixels of the stock pipeline.

        Args:
            image: As a tensor, with which convolutions round as in the engine. Default: the image as a PIL image.
        """
        pil = diffusers.image_processor.VaeImageProcessor.numpy_to_pil
        scheduler = STOCK_SCHEDULERS[spec.scheduler.value](self.config)
        if spec.sigmas:
            scheduler = type(scheduler).from_config(scheduler.config, **STOCK_SIGMAS[spec.sigmas.value])
        if spec.scheduler is Scheduler.DPMPP_SDE:
            scheduler.noise_sampler_seed = spec.seed
        self.stock.scheduler = scheduler
        return call_stock(
            self.stock,
            spec,
            prompt=spec.prompt,
            negative_prompt=spec.negative_prompt or None,
            image=pil(self.image.permute(0, 2, 3, 1).numpy()) if image is None else image,
            strength=spec.strength,
        )

    def run(self, specs: list[JobSpec], slots: int) -> list[np.ndarray]:
        self.engine = Engine(slots=slots)
        return run_on(self.engine, self.model, [(spec, Inputs(self.image)) for spec in specs])


@pytest.fixture(scope="module", params=[tiny_sd, tiny_sdxl], ids=["sd", "sdxl"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Served:
    bytes_ = np.random.default_rng(1).integers(0, 256, (1, 3, 32, 32), np.uint8)
    return Served(request.param(tmp_path_factory.mktemp("model")), torch.from_numpy(bytes_).float() / 255)


def job(**changes: object) -> JobSpec:
    return make_spec(**{"strength": 0.6, "num_inference_steps": STEPS, **changes})


ALL = [
    job(
        scheduler=scheduler,
        strength=strength,
        guidance_scale=guidance,
        seed=seed,
        prompt=f"house {seed % 3}",
        negative_prompt="blurry" if seed % 2 else "",
    )
    for seed, ((scheduler, strength), guidance) in enumerate(
        zip(itertools.product(DIFFUSION_SCHEDULERS, STRENGTHS), itertools.cycle(GUIDANCES))
    )
]


# In two parts, which can run at the same time. Each has half of the schedulers.
@pytest.mark.parametrize("jobs", [ALL[: len(ALL) // 2], ALL[len(ALL) // 2 :]], ids=["first", "second"])
def test_schedulers_strengths_and_guidance_give_stock_pixels_alone_and_batched(
    served: Served, jobs: list[JobSpec]
) -> None:
    if isinstance(served.stock, diffusers.StableDiffusionXLImg2ImgPipeline):
        jobs = jobs[1::2]  # half of the strengths, because its steps take twice as long
    together = served.run(jobs, slots=16)
    rows, calls = served.engine.rows_run["denoise"], served.engine.calls_run["denoise"]
    assert rows / calls > 8, "sixteen jobs in flight must fill the batches"
    for spec, batched in zip(jobs, together, strict=True):
        reference = served.reference(spec)
        (alone,) = served.run([spec], slots=1)
        assert largest_difference(alone, reference) <= 1, spec
        assert largest_difference(batched, reference) <= 1, spec


# In parts, which can run at the same time.
@pytest.mark.parametrize("part", range(3))
@pytest.mark.parametrize("served", [tiny_sd], indirect=True)
def test_every_pair_of_scheduler_and_sigmas_gives_stock_pixels_alone_and_batched(served: Served, part: int) -> None:
    pairs = [(name, sigmas) for name, known in served.model.card.scheduler_sigmas.items() for sigmas in known]
    assert {sigmas.value for _, sigmas in pairs} == set(STOCK_SIGMAS) - {None}
    jobs = [
        job(scheduler=name, sigmas=sigmas, seed=seed, num_inference_steps=5, strength=0.6 + 0.4 * (seed % 2))
        for seed, (name, sigmas) in enumerate(pairs[part::3])
    ]
    for spec, batched in zip(jobs, served.run(jobs, slots=16), strict=True):
        reference = served.reference(spec, served.image)
        (alone,) = served.run([spec], slots=1)
        assert largest_difference(alone, reference) == 0, spec
        assert largest_difference(batched, reference) <= 1, spec


def test_job_alone_is_deterministic(served: Served) -> None:
    spec = job(scheduler=Scheduler.EULER_A)
    (first,), (second,) = served.run([spec], slots=1), served.run([spec], slots=1)
    assert first.tobytes() == second.tobytes()


def batch_dependent(run: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a module so that its output for a batch differs from its output for one row, visibly in every pixel."""

    def run_doubled(tokens: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        output = run(tokens, *args, **kwargs)
        return output if len(tokens) == 1 else pytree.tree_map_only(torch.Tensor, lambda leaf: 2 * leaf, output)

    return run_doubled


def test_cached_prompts_do_not_depend_on_earlier_batches(served: Served) -> None:
    spec = job(prompt="a house")
    batch = [spec, job(prompt="a tree", seed=1), job(prompt="a bridge", negative_prompt="blurry", seed=2)]
    sha256s = []
    for others in ([], batch):
        # A new model has an empty prompt cache.
        model = load_model(config_for(str(served.folder)), device="cpu")
        for name, module in model.pipeline(spec.task, spec.scheduler).components.items():
            if name.startswith("text_encoder"):
                assert isinstance(module.forward, Gate)
                module.forward.run = batch_dependent(module.forward.run)
        if others:
            run_on(Engine(slots=4), model, [(other, Inputs(served.image)) for other in others])
        [pixels] = run_on(Engine(slots=1), model, [(spec, Inputs(served.image))])
        sha256s.append(sha256(pixels.tobytes()).hexdigest())
    assert sha256s[0] == sha256s[1]


def test_strength_0_encodes_and_decodes_without_unet(served: Served) -> None:
    (result,) = served.run([job(strength=0)], slots=1)
    assert served.engine.calls_run["denoise"] == 0
    with torch.no_grad():
        latents = served.stock.vae.encode(2 * served.image - 1).latent_dist.mode()
        decoded = (served.stock.vae.decode(latents).sample / 2 + 0.5).clamp(0, 1)
    assert largest_difference(result, to_pixels(decoded)) <= 1


@pytest.mark.parametrize("steps", [1, 2, 30, 49, 150])
@pytest.mark.parametrize("strength", [1e-6, 0.001, 0.0066])
def test_tiny_strength_runs_one_step(served: Served, steps: int, strength: float) -> None:
    spec = job(strength=strength, num_inference_steps=steps, guidance_scale=1.0)
    served.run([spec], slots=1)
    assert served.engine.calls_run["denoise"] == spec.steps_run == 1


@pytest.mark.parametrize("strength", [0.29, 0.3, 0.5, 0.999, 1.0])
def test_denoiser_runs_steps_run_of_the_spec(served: Served, strength: float) -> None:
    for steps in (1, 7, 10, 29):
        spec = job(strength=strength, num_inference_steps=steps, guidance_scale=1.0)
        function = make_task_function(served.model, spec, Inputs(served.image), 0)
        task = EngineTask(function, lambda _task: None)
        engine = Engine(slots=1)
        engine.submit([task])
        engine.shut_down()
        engine.run()
        assert engine.calls_run["denoise"] == spec.steps_run
        assert task.step == spec.steps_run


def test_paused_jobs_have_the_pixels_of_stock(served: Served) -> None:
    """Jobs of three priorities, with and without deadlines, of which some arrive while the slots are taken."""
    engine, most_parked = Engine(slots=3), 0
    specs = [job(seed=i, scheduler=DIFFUSION_SCHEDULERS[i % 4], num_inference_steps=8 + i) for i in range(9)]
    urgencies = [Urgency(i % 3, None if i % 2 else time.perf_counter() + i) for i in (1, 2, 4, 5, 7, 8, 0, 3, 6)]
    tasks = [
        EngineTask(
            make_task_function(served.model, spec, Inputs(served.image), 0),
            lambda _task: None,
            urgency=urgency,
            steps=spec.steps_run,
        )
        for spec, urgency in zip(specs, urgencies, strict=True)
    ]
    engine.submit(tasks[:6])
    with torch.inference_mode():
        for _ in range(12):
            engine.step()
        engine.submit(tasks[6:])
        engine.shut_down()
        while engine.is_busy:
            engine.step()
            most_parked = max(most_parked, engine.slots - engine.free_slots)
    assert most_parked > engine.slots, "jobs were paused for those of the highest priority"
    for spec, task in zip(specs, tasks, strict=True):
        assert largest_difference(to_pixels(task.result), served.reference(spec)) <= 1


def test_jobs_whose_calls_are_broken_off_have_the_pixels_of_stock(served: Served) -> None:
    engine, begun = Engine(slots=4), 0

    def arrive(_layer: torch.nn.Module, _args: object) -> None:
        nonlocal begun
        begun += 1
        if begun % 5 == 0:
            engine.submit([EngineTask(lambda _task: None, lambda _task: None, urgency=Urgency(HIGHEST))])

    [unet, vae] = (served.model.pipeline(Task.IMG2IMG, Scheduler.DDIM).components[name] for name in ("unet", "vae"))
    hooks = [layer.register_forward_pre_hook(arrive) for layer in (*unet.up_blocks, *vae.decoder.up_blocks)]
    specs = [job(seed=i, scheduler=DIFFUSION_SCHEDULERS[i % 4], num_inference_steps=8 + i) for i in range(6)]
    try:
        images = run_on(engine, served.model, [(spec, Inputs(served.image)) for spec in specs])
    finally:
        for hook in hooks:
            hook.remove()
    calls = engine.calls_run["denoise"] * len(unet.up_blocks) + len(specs) * len(vae.decoder.up_blocks)
    assert begun > calls, "calls were repeated"
    for spec, image in zip(specs, images, strict=True):
        assert largest_difference(image, served.reference(spec)) <= 1


def test_image_i_of_a_job_has_seed_plus_i(served: Served) -> None:
    engine = Engine(slots=4)
    tasks = [
        EngineTask(make_task_function(served.model, job(seed=40), Inputs(served.image), i), lambda _task: None)
        for i in range(3)
    ]
    engine.submit(tasks)
    engine.shut_down()
    engine.run()
    for i, task in enumerate(tasks):
        assert largest_difference(to_pixels(task.result), served.reference(job(seed=40 + i))) <= 1


def test_repeated_prompt_is_encoded_once(served: Served) -> None:
    served.run([job(prompt="a repeated prompt", seed=i) for i in range(4)], slots=1)
    encoders = 2 if hasattr(served.stock, "text_encoder_2") else 1
    assert served.engine.rows_run["encode_prompt"] <= 2 * encoders


BASE = diffusers.DDIMScheduler(
    beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, set_alpha_to_one=True
)


def denoised(scheduler: Any, steps: int, begin: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return latents, and the result of a denoiser that knows the noise in them, from one of the steps on."""
    scheduler.set_timesteps(steps)
    timesteps = scheduler.timesteps[begin * scheduler.order :]
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(begin * scheduler.order)
    latents, noise = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0)).unbind(0)
    sample = scheduler.add_noise(latents, noise, timesteps[:1])
    for timestep in timesteps:
        scaled = scheduler.scale_model_input(sample, timestep)
        alpha = BASE.alphas_cumprod[int(timestep)]
        known = (scaled - alpha.sqrt() * latents) / (1 - alpha).sqrt()
        sample = scheduler.step(known, timestep, sample, return_dict=False)[0]
    return latents, sample


@pytest.mark.parametrize("name", sorted(set(DIFFUSION_SCHEDULERS) - {*NOISY_SCHEDULERS, Scheduler.DEIS}))
@pytest.mark.parametrize(("steps", "begin"), [(10, 0), (10, 1), (10, 2), (10, 7), (10, 9), (4, 2), (3, 1), (1, 0)])
def test_no_noise_is_left_wherever_a_schedule_starts(name: Scheduler, steps: int, begin: int) -> None:
    latents, result = denoised(make_scheduler(name, BASE), steps, begin)
    torch.testing.assert_close(result, latents, rtol=0, atol=0.01)


@pytest.mark.parametrize("kind", ["LMSDiscreteScheduler", "PNDMScheduler"])
def test_schedulers_that_start_midway_are_stock_from_the_start(kind: str) -> None:
    results = []
    for library in (midway_schedulers, diffusers):
        scheduler = getattr(library, kind).from_config(BASE.config, skip_prk_steps=True)
        scheduler.set_timesteps(10)
        generator = torch.Generator().manual_seed(0)
        sample = torch.randn(1, 4, 8, 8, generator=generator)
        for timestep in scheduler.timesteps:
            output = scheduler.scale_model_input(sample, timestep).tanh()
            sample = scheduler.step(output, timestep, sample, return_dict=False)[0]
        results.append(sample)
    assert torch.equal(*results)
