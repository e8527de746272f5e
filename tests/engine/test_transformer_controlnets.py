"""ControlNets of SD 3, FLUX, Qwen-Image and Z-Image: pixels equal those of stock pipelines, alone and batched.

FLUX has stock pipelines with ControlNets for every task. The other families have them for generation from controls. A
job with an image is compared with such a pipeline that starts from the noised latents and the remaining timesteps of
the stock image-to-image pipeline.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from img2img.domain.conditioning import Control, Lora
from img2img.domain.model_config import ComponentSource, ControlNetSource, ModelConfig
from img2img.domain.parameters import Scheduler, Speed, Task
from img2img.domain.spec import JobSpec
from img2img.worker.errors import StartupError
from img2img.worker.images.inputs import Inputs, to_tensor
from img2img.worker.pipelines.model import Model, load_model
from img2img.worker.pipelines.step_cache import TOLERANCES, Tolerance
from tests.engine.test_control import calls_of
from tests.engine.test_families import HEIGHT, REGION, WIDTH, largest_difference
from tests.support.engines import run_together
from tests.support.models.tiny_adapters import tiny_lora
from tests.support.models.tiny_controlnets import (
    tiny_flux_controlnet,
    tiny_qwen_controlnet,
    tiny_sd3_controlnet,
    tiny_z_image_controlnet,
)
from tests.support.models.tiny_families import (
    tiny_flux,
    tiny_flux_small_latents,
    tiny_qwen_image,
    tiny_schnell,
    tiny_sd3,
    tiny_z_image,
)
from tests.support.specs import make_spec

FIRST, SECOND = "canny", "qr"
EULER = diffusers.FlowMatchEulerDiscreteScheduler


@dataclass
class Case:
    """A family with ControlNets.

    Attributes:
        net: makes a ControlNet: (folder of the model, folder, seed, configuration).
        configs: configuration of the ControlNets, by control type.
        modes: their control modes.
        control: stock pipeline that generates from controls.
        img2img: stock pipeline for images, without or with ControlNets.
        inpaint: stock pipeline with ControlNets.
        guidance: name of the guidance scale and its value without guidance.
        spans: whether the stock pipeline takes `control_guidance_start`.
        several: whether it takes several ControlNets.
    """

    model: Callable[[Path], Path]
    net: Callable[..., Path]
    kind: Any
    control: Any
    img2img: Any
    inpaint: Any = None
    configs: dict[str, dict[str, Any]] = field(default_factory=lambda: {FIRST: {}, SECOND: {}})
    modes: dict[str, int] = field(default_factory=dict)
    guidance: str = "guidance_scale"
    unguided: float | None = 1.0
    spans: bool = True
    several: bool = True
    # Shape of the noise by which the control map is encoded, drawn from the generator of the job.
    drawn: tuple[int, ...] | None = None


FLUX_PIPELINES = {
    "control": diffusers.FluxControlNetPipeline,
    "img2img": diffusers.FluxControlNetImg2ImgPipeline,
    "inpaint": diffusers.FluxControlNetInpaintPipeline,
}
FLUX = {"net": tiny_flux_controlnet, "kind": diffusers.FluxControlNetModel, **FLUX_PIPELINES}
HINT = {"conditioning_embedding_channels": 4, "patch_size": 2}
CASES = {
    # Without a mode, as FLUX.1-dev-ControlNet-Union-Pro-2.0.
    "flux": Case(tiny_flux, **FLUX, configs={FIRST: {"guidance_embeds": True}, SECOND: {"num_layers": 1}}),  # type: ignore[arg-type]
    "flux-union": Case(
        tiny_flux,
        **FLUX,  # type: ignore[arg-type]
        configs={FIRST: {"num_mode": 7}, "depth": {"num_mode": 7}},
        modes={FIRST: 0, "depth": 2},
    ),
    "flux-schnell": Case(tiny_schnell, **FLUX, configs={FIRST: {}, SECOND: {"guidance_embeds": False}}),  # type: ignore[arg-type]
    # Reads pixels, 8 times smaller like the latents.
    "flux-xlabs": Case(tiny_flux_small_latents, **FLUX, configs={FIRST: HINT, SECOND: {**HINT, "num_layers": 1}}),  # type: ignore[arg-type]
    "sd3": Case(
        tiny_sd3,
        tiny_sd3_controlnet,
        diffusers.SD3ControlNetModel,
        diffusers.StableDiffusion3ControlNetPipeline,
        diffusers.StableDiffusion3Img2ImgPipeline,
    ),
    "sd3.5": Case(
        tiny_sd3,
        tiny_sd3_controlnet,
        diffusers.SD3ControlNetModel,
        diffusers.StableDiffusion3ControlNetPipeline,
        diffusers.StableDiffusion3Img2ImgPipeline,
        configs={
            kind: {
                "use_pos_embed": False,
                "joint_attention_dim": None,
                "pos_embed_type": None,
                "force_zeros_for_pooled_projection": False,
            }
            for kind in (FIRST, SECOND)
        },
    ),
    "qwen-image": Case(
        tiny_qwen_image,
        tiny_qwen_controlnet,
        diffusers.QwenImageControlNetModel,
        diffusers.QwenImageControlNetPipeline,
        diffusers.QwenImageImg2ImgPipeline,
        guidance="true_cfg_scale",
        several=False,
        drawn=(1, 4, 1, HEIGHT // 2, WIDTH // 2),
    ),
    "z-image": Case(
        tiny_z_image,
        tiny_z_image_controlnet,
        diffusers.ZImageControlNetModel,
        diffusers.ZImageControlNetPipeline,
        diffusers.ZImageImg2ImgPipeline,
        configs={
            FIRST: {},
            SECOND: {
                "control_in_dim": 4,
                "add_control_noise_refiner": "control_layers",
                "control_refiner_layers_places": [0],
            },
        },
        unguided=0,
        spans=False,
        several=False,
    ),
}


class Served:
    """A tiny model with two ControlNets, and its stock pipelines."""

    def __init__(self, case: Case, folder: Path) -> None:
        self.case = case
        model = case.model(folder / "model")
        nets = {
            kind: case.net(model, folder / kind, seed=seed, **config)
            for seed, (kind, config) in enumerate(case.configs.items())
        }
        sources = {kind: ControlNetSource(source=str(net)) for kind, net in nets.items()}
        self.model: Model = load_model(ModelConfig(name="tiny", source=str(model), controlnets=sources), device="cpu")
        self.base = diffusers.DiffusionPipeline.from_pretrained(model)
        self.nets = {kind: case.kind.from_pretrained(net) for kind, net in nets.items()}
        rng = np.random.default_rng(5)
        self.image, *maps = (Image.fromarray(rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)) for _ in range(3))
        self.maps = dict(zip(nets, maps, strict=True))
        self.mask = Image.new("L", (WIDTH, HEIGHT))
        self.mask.paste(255, (8, 12, 40, 40))

    @property
    def types(self) -> list[str]:
        return list(self.maps)

    def inputs(self, spec: JobSpec, mask: Image.Image | None = None) -> Inputs:
        image = None if spec.task is Task.CONTROL else to_tensor(self.image)
        maps = tuple(to_tensor(self.maps[each.type]) for each in spec.control_maps)
        return Inputs(image, to_tensor(mask or self.mask) if spec.task is Task.INPAINT else None, controls=maps)

    def run(self, *specs: JobSpec) -> list[np.ndarray]:
        return run_together(self.model, [(spec, self.inputs(spec)) for spec in specs])

    def reference(self, spec: JobSpec) -> np.ndarray:
        if spec.task is Task.CONTROL:
            return self._stock(self.case.control, spec)
        if spec.task is Task.INPAINT or self.case.inpaint is not None:
            kind = self.case.inpaint if spec.task is Task.INPAINT else self.case.img2img
            more = {"image": self.image, "strength": spec.strength}
            return self._stock(kind, spec, **more, **({"mask_image": self.mask} if spec.task is Task.INPAINT else {}))
        latents, steps = self._start(spec)
        return self._stock(self.case.control, spec, scheduler=_Remaining, steps=steps, latents=latents)

    def _stock(self, kind: Any, spec: JobSpec, scheduler: Any = EULER, steps: int = 0, **more: Any) -> np.ndarray:
        case, controls = self.case, spec.control_maps
        nets = [self.nets[each.type] for each in controls]
        pipeline = kind.from_pipe(self.base, controlnet=nets if len(nets) > 1 else nets[0])
        pipeline.set_progress_bar_config(disable=True)
        pipeline.scheduler = scheduler.from_config(self.base.scheduler.config)
        pipeline.scheduler.remaining = steps
        lists: dict[str, list[Any]] = {
            "control_image": [self.maps[each.type] for each in controls],
            "controlnet_conditioning_scale": [each.scale for each in controls],
        }
        if case.spans:
            lists["control_guidance_start"] = [each.start for each in controls]
            lists["control_guidance_end"] = [each.end for each in controls]
        if case.modes or (case.inpaint and len(nets) > 1):
            lists["control_mode"] = [case.modes.get(each.type) for each in controls]
        if len(nets) == 1:
            # Qwen-Image reads spans as lists.
            lists = {name: value if name.startswith("control_guidance") else value[0] for name, value in lists.items()}
        # The pipeline of Stable Diffusion 3 encodes the map with the global generator.
        torch.manual_seed(spec.seed)
        image = pipeline(**self._common(spec), **lists, **more).images[0]
        return np.asarray(image)

    def _common(self, spec: JobSpec) -> dict[str, Any]:
        case = self.case
        guided = spec.guidance_scale > 1
        # Qwen-Image guides only with a negative prompt.
        negative = {"negative_prompt": " "} if guided and case.guidance == "true_cfg_scale" else {}
        return {
            "prompt": spec.prompt,
            case.guidance: spec.guidance_scale if guided else case.unguided,
            **negative,
            "width": spec.width,
            "height": spec.height,
            "num_inference_steps": spec.num_inference_steps,
            "generator": torch.Generator().manual_seed(spec.seed),
        }

    def _start(self, spec: JobSpec) -> tuple[torch.Tensor, int]:
        """Return the latents that the stock image-to-image pipeline begins with, and how many steps it runs."""
        pipeline = self.case.img2img.from_pipe(self.base)
        pipeline.set_progress_bar_config(disable=True)
        pipeline.scheduler = EULER.from_config(self.base.scheduler.config)
        seen: list[torch.Tensor] = []
        forward = pipeline.transformer.forward

        def record(*args: Any, **kwargs: Any) -> Any:
            first = args[0][0].squeeze(1)[None] if args else kwargs["hidden_states"][:1]
            seen.append(first.clone())
            return forward(*args, **kwargs)

        pipeline.transformer.forward = record
        arguments = {**self._common(spec), "strength": spec.strength, "image": self.image}
        if self.case.drawn:
            torch.randn(self.case.drawn, generator=arguments["generator"])
        pipeline(**arguments)
        pipeline.transformer.forward = forward
        return seen[0], spec.steps_run


class _Remaining(EULER):  # type: ignore[misc,valid-type]
    """The scheduler of a run that begins in the middle: it has the last timesteps only."""

    remaining: int

    def set_timesteps(
        self, num_inference_steps: int | None = None, device: Any = None, sigmas: Any = None, mu: float | None = None
    ) -> None:
        super().set_timesteps(num_inference_steps, device, sigmas, mu)
        self.timesteps = self.timesteps[-self.remaining :]
        self.sigmas = self.sigmas[-self.remaining - 1 :]


def control(kind: str = FIRST, **changes: Any) -> Control:
    return Control(type=kind, image="2" * 64, preprocess=False, **changes)


def job(task: Task, *controls: Control, **changes: Any) -> JobSpec:
    defaults = {
        "task": task,
        "image": None if task is Task.CONTROL else "0" * 64,
        "strength": 0.7,
        "guidance_scale": 1.0,
        "num_inference_steps": 5,
        "scheduler": Scheduler.FLOW_EULER,
        "width": WIDTH,
        "height": HEIGHT,
        "region": REGION if task is Task.INPAINT else None,
        "controls": controls,
    }
    return make_spec(**{**defaults, **changes})


@pytest.fixture(scope="module", params=CASES, ids=list(CASES))
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Served:
    return Served(CASES[request.param], tmp_path_factory.mktemp("model"))


def jobs_of(served: Served) -> list[JobSpec]:
    """Return jobs of all tasks that have a stock pipeline."""
    case, (first, second) = served.case, served.types
    guided = 5.0 if served.model.card.guidance else 1.0
    span = {"start": 0.3, "end": 0.8} if case.spans else {}
    specs = [
        job(Task.CONTROL, control(first)),
        job(Task.CONTROL, control(second, scale=0.5), guidance_scale=guided, seed=2, prompt="a house by the sea"),
        job(Task.CONTROL, control(first, scale=1.3, **span), seed=3),
        job(Task.IMG2IMG, control(first), guidance_scale=guided, seed=4),
        job(Task.IMG2IMG, control(second, scale=0.7, **span), strength=0.45, seed=5, prompt="a boat"),
    ]
    if case.several:
        specs.append(job(Task.CONTROL, control(second, scale=0.6), control(first, end=0.6), seed=6))
        specs.append(job(Task.IMG2IMG, control(first), control(second, scale=0.4), seed=7, guidance_scale=guided))
    if case.inpaint is not None:
        specs.append(job(Task.INPAINT, control(first, scale=0.8), seed=8))
        specs.append(job(Task.INPAINT, control(second), control(first, start=0.4), seed=9, strength=1.0))
    return specs


def test_speed_skips_controlnets(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """A span ends at the same step as without `speed`."""
    monkeypatch.setitem(TOLERANCES, Speed.TURBO, Tolerance(math.inf, 2))
    first = served.types[0]
    spec = job(Task.CONTROL, control(first, end=0.75), num_inference_steps=11, guidance_scale=1.0)
    ends = [calls_of(served.model, [(each, served.inputs(each))]) for each in (spec, as_turbo(spec))]
    # Of 11 calls, 0, 1, 2, 5, 8 and 10 are made. The span has 0 to 7.
    if "control" in ends[0].calls_run:
        assert [engine.calls_run["control"] for engine in ends] == [8, 4]
    assert [engine.calls_run["denoise"] for engine in ends] == [11, 6]


def as_turbo(spec: JobSpec) -> JobSpec:
    return spec.model_copy(update={"speed": Speed.TURBO})


def test_controls_give_stock_pixels_alone_and_batched(served: Served) -> None:
    specs = jobs_of(served)
    plain = job(Task.IMG2IMG, seed=10)
    together = served.run(*specs, plain)
    for spec, batched in zip(specs, together, strict=False):
        reference = served.reference(spec)
        [alone] = served.run(spec)
        assert largest_difference(alone, reference) <= 1, spec
        assert largest_difference(batched, reference) <= 1, spec
    [alone] = served.run(plain)
    assert largest_difference(together[-1], alone) <= 1
    assert len({result.tobytes() for result in together}) == len(together)


def test_inpainting_everything_is_image_to_image(served: Served) -> None:
    if served.case.net is tiny_sd3_controlnet:
        pytest.skip("the stock pipelines of Stable Diffusion 3 encode the image in two ways")
    controlled = job(Task.INPAINT, control(served.types[0]), seed=3)
    whole = Image.new("L", (WIDTH, HEIGHT), 255)
    same = job(Task.IMG2IMG, control(served.types[0]), seed=3)
    everything, img2img = run_together(
        served.model, [(controlled, served.inputs(controlled, whole)), (same, served.inputs(same))]
    )
    assert largest_difference(everything, img2img) <= 1
    [part] = served.run(controlled)
    assert largest_difference(part, everything) > 20


def test_inpainting_with_stable_diffusion_3_adds_the_samples_of_the_controlnet(tmp_path: Path) -> None:
    served = Served(CASES["sd3"], tmp_path)
    spec = job(Task.INPAINT, control(scale=0.8), seed=3)
    net = served.nets[FIRST]
    pipeline = diffusers.StableDiffusion3InpaintPipeline.from_pipe(served.base)
    pipeline.set_progress_bar_config(disable=True)
    config, forward = pipeline.vae.config, pipeline.transformer.forward
    encoded = pipeline.vae.encode(2 * to_tensor(served.maps[FIRST]) - 1).latent_dist
    cond = encoded.sample(torch.Generator().manual_seed(spec.seed)) * config.scaling_factor

    def controlled(**kwargs: Any) -> Any:
        given = {name: kwargs[name] for name in ("hidden_states", "timestep", "encoder_hidden_states")}
        zeros = torch.zeros_like(kwargs["pooled_projections"])
        samples = net(
            **given, pooled_projections=zeros, controlnet_cond=cond, conditioning_scale=0.8, return_dict=False
        )
        return forward(**kwargs, block_controlnet_hidden_states=samples[0])

    pipeline.transformer.forward = controlled
    with torch.no_grad():
        reference = pipeline(
            **served._common(spec), image=served.image, mask_image=served.mask, strength=spec.strength
        ).images[0]
    [result] = served.run(spec)
    assert largest_difference(result, np.asarray(reference)) <= 1


def test_jobs_with_different_scales_share_calls(served: Served) -> None:
    first = served.types[0]
    scale = (lambda _i: 0.6) if served.case.net is tiny_z_image_controlnet else (lambda i: 0.3 + i / 2)
    specs = [job(Task.IMG2IMG, control(first, scale=scale(i)), seed=i) for i in range(3)]
    engine = calls_of(served.model, [(spec, served.inputs(spec)) for spec in specs])
    assert engine.calls_run["denoise"] == specs[0].steps_run
    assert engine.rows_run["denoise"] == 3 * specs[0].steps_run
    assert engine.calls_run["control"] in (0, specs[0].steps_run)


def test_control_outside_its_span_is_not_run(served: Served) -> None:
    spec = job(Task.CONTROL, control(served.types[0], end=0.5), num_inference_steps=4)
    off, without = (
        job(Task.IMG2IMG, control(served.types[0], scale=0.0)),
        job(Task.IMG2IMG, strength=0.7),
    )
    if served.case.net is not tiny_z_image_controlnet:
        engine = calls_of(served.model, [(spec, served.inputs(spec))])
        assert engine.calls_run["control"] == 2
    disabled, plain = served.run(off, without)
    # Encoding the map draws noise from the generator of the job, as in the stock pipelines.
    if served.case.inpaint is None and served.case.drawn is None:
        assert largest_difference(disabled, plain) <= 1


def test_load_model_rejects_controlnets_that_do_not_fit(tmp_path: Path) -> None:
    flux, sd3 = tiny_flux(tmp_path / "flux"), tiny_sd3(tmp_path / "sd3")
    plain = tiny_flux_controlnet(flux, tmp_path / "plain", seed=0)
    hint = tiny_flux_controlnet(flux, tmp_path / "hint", seed=0, **HINT)
    wide = tiny_flux_controlnet(flux, tmp_path / "wide", seed=0, joint_attention_dim=64)
    masked = tiny_sd3_controlnet(sd3, tmp_path / "masked", seed=0, extra_conditioning_channels=1)
    for model, nets, reason in (
        (sd3, [plain], "is a FluxControlNetModel; only SD3ControlNetModel is supported"),
        (flux, [wide], "its joint_attention_dim is 64, that of the model is 32"),
        (flux, [plain, hint], "with and without an `input_hint_block`"),
        (sd3, [masked], "ControlNets for inpainting"),
    ):
        sources = {f"type{i}": ControlNetSource(source=str(net)) for i, net in enumerate(nets)}
        with pytest.raises(StartupError, match=reason):
            load_model(ModelConfig(name="m", source=str(model), controlnets=sources), device="cpu")


@pytest.mark.parametrize("name", ["z-image", "flux"])
def test_loras_and_controls_together_give_stock_pixels(tmp_path: Path, name: str) -> None:
    served = Served(CASES[name], tmp_path)
    lora = tiny_lora(tmp_path / "model", tmp_path / "ink.safetensors", seed=1)
    served.model.set_loras({"ink": ComponentSource(source=str(lora))})
    with_lora = job(Task.CONTROL, control(), loras=(Lora(name="ink", scale=2.0),))
    plain = job(Task.CONTROL, control())
    # In this order the ControlNet gets the blocks with LoRAs, those without and those with.
    [alone], [unchanged], [again] = served.run(with_lora), served.run(plain), served.run(with_lora)
    together = served.run(plain, with_lora)
    assert largest_difference(unchanged, served.reference(plain)) <= 1
    served.base.load_lora_weights(lora, adapter_name="ink")
    served.base.set_adapters(["ink"], [2.0])
    reference = served.reference(with_lora)
    for result in (alone, again, together[1]):
        assert largest_difference(result, reference) <= 1
    assert largest_difference(together[0], unchanged) <= 1
    assert largest_difference(reference, unchanged) > 1
