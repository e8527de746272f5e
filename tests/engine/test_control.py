"""ControlNets: pixels equal those of the stock pipelines, alone and batched with every other task."""

import math
from pathlib import Path

import diffusers
import numpy as np
import pytest
from diffusers import ControlNetModel
from PIL import Image

from img2img.domain.conditioning import Control, ControlType, InpaintRegion, Padding
from img2img.domain.model_config import ControlNetSource, ModelConfig
from img2img.domain.parameters import Speed, Task
from img2img.domain.spec import JobSpec
from img2img.worker.engine.engine import Engine
from img2img.worker.errors import StartupError
from img2img.worker.images.control_maps import PREPROCESSORS
from img2img.worker.images.inpaint_canvas import InpaintCanvas
from img2img.worker.images.inputs import Inputs, to_tensor
from img2img.worker.pipelines.model import Model, load_model
from img2img.worker.pipelines.step_cache import TOLERANCES, Tolerance
from tests.support.engines import run_on, run_together
from tests.support.images import largest_difference
from tests.support.models.tiny_controlnets import tiny_controlnet
from tests.support.models.tiny_models import tiny_sd, tiny_sdxl
from tests.support.specs import make_spec
from tests.support.stock import call_stock, guidance_off_after

SIDE = 64
CANNY, DEPTH = ControlType.CANNY, ControlType.DEPTH
STOCK = {
    tiny_sd: {
        Task.IMG2IMG: diffusers.StableDiffusionControlNetImg2ImgPipeline,
        Task.INPAINT: diffusers.StableDiffusionControlNetInpaintPipeline,
        Task.CONTROL: diffusers.StableDiffusionControlNetPipeline,
    },
    tiny_sdxl: {
        Task.IMG2IMG: diffusers.StableDiffusionXLControlNetImg2ImgPipeline,
        Task.INPAINT: diffusers.StableDiffusionXLControlNetInpaintPipeline,
        Task.CONTROL: diffusers.StableDiffusionXLControlNetPipeline,
    },
}


class Served:
    """A tiny model with two ControlNets, and the stock pipelines with their copies of the ControlNets."""

    def __init__(self, tiny: object, folder: Path) -> None:
        self.folder = tiny(folder / "model")  # type: ignore[operator]
        self.nets = {
            kind: tiny_controlnet(self.folder, folder / kind, seed=seed) for seed, kind in enumerate((CANNY, DEPTH))
        }
        self.config = ModelConfig(
            name="tiny",
            source=str(self.folder),
            controlnets={kind: ControlNetSource(source=str(net)) for kind, net in self.nets.items()},
        )
        self.model: Model = load_model(self.config, device="cpu")
        self.stock = STOCK[tiny]  # type: ignore[index]
        self.base = diffusers.AutoPipelineForImage2Image.from_pretrained(self.folder)
        self.reference_nets = {kind: ControlNetModel.from_pretrained(net) for kind, net in self.nets.items()}
        rng = np.random.default_rng(5)
        self.image = Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8))
        self.maps = {
            CANNY: Image.fromarray(255 * rng.integers(0, 2, (SIDE, SIDE, 1), np.uint8).repeat(3, axis=2)),
            DEPTH: Image.radial_gradient("L").resize((SIDE, SIDE)).convert("RGB"),
        }
        self.mask = Image.new("L", (SIDE, SIDE))
        self.mask.paste(255, (8, 20, 40, 60))

    def reference(self, spec: JobSpec, **more: object) -> np.ndarray:
        nets = [self.reference_nets[control.type] for control in spec.controls]
        pipeline = self.stock[spec.task].from_pipe(self.base, controlnet=nets if len(nets) > 1 else nets[0])
        pipeline.set_progress_bar_config(disable=True)
        pipeline.scheduler = diffusers.DDIMScheduler.from_config(pipeline.scheduler.config)
        arguments: dict[str, object] = {
            "controlnet_conditioning_scale": [control.scale for control in spec.controls],
            "control_guidance_start": [control.start for control in spec.controls],
            "control_guidance_end": [control.end for control in spec.controls],
            "image" if spec.task is Task.CONTROL else "control_image": [self.maps[c.type] for c in spec.controls],
        }
        if len(nets) == 1:
            arguments = {name: values[0] for name, values in arguments.items()}  # type: ignore[index]
        if spec.task is not Task.CONTROL:
            arguments |= {"image": self.image, "strength": spec.strength}
        if spec.task is Task.INPAINT:
            arguments |= {"mask_image": self.mask}
        return call_stock(
            pipeline,
            spec,
            prompt=spec.prompt,
            width=spec.width,
            height=spec.height,
            **arguments,
            **more,
        )

    def inputs(self, spec: JobSpec) -> Inputs:
        maps = tuple(to_tensor(self.maps[control.type]) for control in spec.controls)
        if spec.task is Task.CONTROL:
            return Inputs(controls=maps)
        if spec.task is not Task.INPAINT:
            return Inputs(to_tensor(self.image), controls=maps)
        canvas = InpaintCanvas(self.image, self.mask, spec.region)
        view, mask = canvas.model_input((spec.width, spec.height))
        return Inputs(to_tensor(view), to_tensor(mask), canvas, maps)

    def run(self, *specs: JobSpec) -> list[np.ndarray]:
        return run_together(self.model, [(spec, self.inputs(spec)) for spec in specs])


@pytest.fixture(scope="module", params=[tiny_sd, tiny_sdxl], ids=["sd", "sdxl"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Served:
    return Served(request.param, tmp_path_factory.mktemp("served"))


def control(kind: ControlType = CANNY, **changes: object) -> Control:
    return Control(type=kind, image="2" * 64, preprocess=False, **changes)  # type: ignore[arg-type]


REGION = InpaintRegion(mask="1" * 64, blur=0, margins=Padding(), canvas=(SIDE, SIDE), box=(0, 0, SIDE, SIDE))


def job(task: Task = Task.IMG2IMG, *controls: Control, **changes: object) -> JobSpec:
    defaults = {
        "task": task,
        "image": None if task is Task.CONTROL else "0" * 64,
        "strength": 1.0 if task is Task.CONTROL else 0.7,
        "num_inference_steps": 6,
        "width": SIDE,
        "height": SIDE,
        "region": REGION if task is Task.INPAINT else None,
        "controls": controls,
    }
    return make_spec(**{**defaults, **changes})


CONTROLLED = [
    job(Task.IMG2IMG, control()),
    job(Task.IMG2IMG, control(scale=0.4, start=0.3, end=0.8), strength=1.0, guidance_scale=1.0),
    job(Task.IMG2IMG, control(DEPTH, scale=1.7), control(scale=0.6, end=0.5), seed=11),
    job(Task.INPAINT, control(DEPTH, scale=1.3)),
    job(Task.INPAINT, control(), control(DEPTH, start=0.4), strength=1.0),
    job(Task.CONTROL, control(scale=0.9)),
    job(Task.CONTROL, control(scale=0.5), control(DEPTH), guidance_scale=1.0),
]
OTHERS = [job(Task.IMG2IMG, seed=5), job(Task.INPAINT, seed=6, guidance_scale=1.0)]


def test_controls_give_stock_pixels_alone_and_batched(served: Served) -> None:
    together = served.run(*CONTROLLED, *OTHERS)
    for spec, batched in zip(CONTROLLED, together, strict=False):
        [alone] = served.run(spec)
        reference = served.reference(spec)
        assert largest_difference(alone, reference) <= 1, spec
        assert largest_difference(batched, reference) <= 1, spec
    for spec, batched in zip(OTHERS, together[len(CONTROLLED) :], strict=True):
        [alone] = served.run(spec)
        assert largest_difference(batched, alone) <= 1, spec


def test_control_and_its_scale_change_the_image(served: Served) -> None:
    plain, full, weak = served.run(job(), job(Task.IMG2IMG, control()), job(Task.IMG2IMG, control(scale=0.5)))
    assert largest_difference(plain, full) > 20
    assert largest_difference(full, weak) > 20


def test_guidance_until_gives_stock_pixels(served: Served) -> None:
    # The callback of the inpainting pipeline cannot change its mask.
    for task in (Task.IMG2IMG, Task.CONTROL):
        spec = job(task, control(scale=0.8, end=0.9), control(DEPTH), strength=1.0, guidance_until=0.5)
        reference = served.reference(spec, **guidance_off_after(3, served.stock[task]))
        [alone], [batched, *_] = served.run(spec), served.run(spec, *OTHERS)
        assert largest_difference(alone, reference) <= 1
        assert largest_difference(batched, reference) <= 1
        strong = spec.model_copy(update={"guidance_scale": 60.0})
        reference = served.reference(strong, **guidance_off_after(3, served.stock[task]))
        assert largest_difference(served.run(strong)[0], reference) <= 1
        assert largest_difference(reference, served.reference(strong)) > 1


def test_jobs_with_different_scales_and_controls_are_batched(served: Served) -> None:
    specs = [
        job(Task.IMG2IMG, control(scale=0.3)),
        job(Task.IMG2IMG, control(scale=1.2), seed=4),
        job(Task.IMG2IMG, control(scale=0.7), control(DEPTH), seed=5),
    ]
    engine = calls_of(served.model, [(spec, served.inputs(spec)) for spec in specs])
    steps = specs[0].steps_run
    # Canny for all three jobs, depth for one.
    assert engine.calls_run["control"] == 2 * steps
    assert engine.calls_run["denoise"] == steps
    assert engine.rows_run["denoise"] == 2 * len(specs) * steps


def test_control_outside_its_range_makes_no_calls(served: Served) -> None:
    spec = job(Task.IMG2IMG, control(end=0.5), strength=1.0)
    # After one run the shapes of the residuals are known.
    served.run(spec)
    engine = calls_of(served.model, [(spec, served.inputs(spec))])
    assert engine.calls_run["control"] == spec.steps_run // 2


def test_speed_skips_controlnets(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TOLERANCES, Speed.FAST, Tolerance(math.inf, 2))
    jobs = [
        job(task, *controls, strength=1.0, num_inference_steps=11, speed=Speed.FAST)
        for task, controls in [
            (Task.IMG2IMG, [control(scale=0.5)]),
            (Task.INPAINT, [control(DEPTH), control()]),
            (Task.CONTROL, [control()]),
        ]
    ]
    for spec in jobs:
        engine = calls_of(served.model, [(spec, served.inputs(spec))])
        assert engine.calls_run["denoise"] == 6
        assert engine.calls_run["control"] == 6 * len(spec.control_maps)


def calls_of(model: Model, jobs: list[tuple[JobSpec, Inputs]]) -> Engine:
    engine = Engine(slots=16)
    run_on(engine, model, jobs)
    return engine


def test_card_lists_controls_and_preprocessors(served: Served) -> None:
    card = served.model.card
    assert card.controls == (CANNY, DEPTH)
    assert card.tasks == (Task.IMG2IMG, Task.INPAINT, Task.CONTROL, Task.UPSCALE)
    assert set(card.preprocessors) == set(PREPROCESSORS)


def test_load_model_rejects_controlnet_that_does_not_fit(tmp_path: Path) -> None:
    sd, sdxl = tiny_sd(tmp_path / "sd"), tiny_sdxl(tmp_path / "sdxl")
    net = tiny_controlnet(sdxl, tmp_path / "net", seed=0)
    for source, reason in (
        (net, "its cross_attention_dim is 64, that of the model is 32"),
        (tmp_path / "nowhere", "cannot load"),
        (sd / "unet", "is a UNet2DConditionModel"),
    ):
        config = ModelConfig(name="m", source=str(sd), controlnets={CANNY: ControlNetSource(source=str(source))})
        with pytest.raises(StartupError, match=reason):
            load_model(config, device="cpu")


def test_load_model_rejects_pickled_controlnet(tmp_path: Path) -> None:
    sd = tiny_sd(tmp_path / "sd")
    net = tiny_controlnet(sd, tmp_path / "net", seed=0)
    ControlNetModel.from_pretrained(net).save_pretrained(tmp_path / "pickled", safe_serialization=False)
    config = ModelConfig(
        name="m", source=str(sd), controlnets={CANNY: ControlNetSource(source=str(tmp_path / "pickled"))}
    )
    with pytest.raises(StartupError, match="cannot load"):
        load_model(config, device="cpu")
