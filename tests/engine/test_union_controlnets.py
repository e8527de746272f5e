"""Union ControlNets for SDXL: pixels equal those of the stock union pipelines, alone and in company."""

from pathlib import Path

import diffusers
import numpy as np
import pytest
from diffusers import ControlNetModel, ControlNetUnionModel
from PIL import Image

from img2img.domain.conditioning import Control, ControlType
from img2img.domain.model_config import ControlNetSource, ModelConfig
from img2img.domain.parameters import Task
from img2img.domain.spec import JobSpec
from img2img.worker.errors import StartupError
from img2img.worker.images.inputs import Inputs, to_tensor
from img2img.worker.pipelines.model import Model, load_model
from tests.engine.test_control import REGION, SIDE, calls_of, control, job, largest_difference
from tests.support.engines import run_together
from tests.support.models.tiny_controlnets import tiny_controlnet, tiny_union
from tests.support.models.tiny_models import tiny_sd, tiny_sdxl
from tests.support.stock import call_stock

CANNY, DEPTH, TILE = ControlType.CANNY, ControlType.DEPTH, ControlType.TILE
# A control of the union with its own name and mode.
OWN = "sketch"
MODES = {CANNY: 3, DEPTH: 1, TILE: 6, OWN: 2}
STOCK = {
    Task.IMG2IMG: diffusers.StableDiffusionXLControlNetUnionImg2ImgPipeline,
    Task.INPAINT: diffusers.StableDiffusionXLControlNetUnionInpaintPipeline,
    Task.CONTROL: diffusers.StableDiffusionXLControlNetUnionPipeline,
}


class Served:
    """A tiny SDXL with a union ControlNet of 8 types and a plain one, and the stock pipelines."""

    def __init__(self, folder: Path) -> None:
        self.folder = tiny_sdxl(folder / "model")
        self.union, plain = (
            tiny_union(self.folder, folder / "union"),
            tiny_controlnet(self.folder, folder / "p", seed=1),
        )
        sources = {kind: ControlNetSource(source=str(self.union)) for kind in (CANNY, DEPTH, TILE)}
        sources[OWN] = ControlNetSource(source=str(self.union), mode=2)
        sources["qr"] = ControlNetSource(source=str(plain))
        self.config = ModelConfig(name="tiny", source=str(self.folder), controlnets=sources)
        self.model: Model = load_model(self.config, device="cpu")
        self.base = diffusers.AutoPipelineForImage2Image.from_pretrained(self.folder)
        self.nets = {
            "union": ControlNetUnionModel.from_pretrained(self.union),
            "qr": ControlNetModel.from_pretrained(plain),
        }
        rng = np.random.default_rng(5)
        self.image, *maps = (Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)) for _ in range(6))
        self.maps = dict(zip(self.config.controlnets, maps, strict=True))
        self.mask = Image.new("L", (SIDE, SIDE))
        self.mask.paste(255, (8, 20, 40, 60))

    def reference(self, spec: JobSpec) -> np.ndarray:
        pipeline = STOCK[spec.task].from_pipe(self.base, controlnet=self.nets["union"])
        arguments: dict[str, object] = {
            "control_mode": [MODES[each.type] for each in spec.controls],
            "controlnet_conditioning_scale": [each.scale for each in spec.controls],
            "control_guidance_start": [each.start for each in spec.controls],
            "control_guidance_end": [each.end for each in spec.controls],
            "control_image": [self.maps[each.type] for each in spec.controls],
        }
        if spec.task is not Task.CONTROL:
            arguments |= {"image": self.image, "strength": spec.strength}
        if spec.task is Task.INPAINT:
            arguments |= {"mask_image": self.mask}
        pipeline.set_progress_bar_config(disable=True)
        pipeline.scheduler = diffusers.DDIMScheduler.from_config(pipeline.scheduler.config)
        return call_stock(
            pipeline,
            spec,
            prompt=spec.prompt,
            width=spec.width,
            height=spec.height,
            **arguments,
        )

    def inputs(self, spec: JobSpec) -> Inputs:
        maps = tuple(to_tensor(self.maps[each.type]) for each in spec.controls)
        image = None if spec.task is Task.CONTROL else to_tensor(self.image)
        return Inputs(image, to_tensor(self.mask) if spec.task is Task.INPAINT else None, controls=maps)

    def run(self, *specs: JobSpec) -> list[np.ndarray]:
        return run_together(self.model, [(spec, self.inputs(spec)) for spec in specs])


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    return Served(tmp_path_factory.mktemp("served"))


def own(**changes: object) -> Control:
    return control(OWN, **changes)  # type: ignore[arg-type]


UNION_JOBS = [
    job(Task.IMG2IMG, control()),
    job(Task.IMG2IMG, control(DEPTH, scale=0.4, start=0.3, end=0.8), strength=1.0, guidance_scale=1.0),
    job(Task.IMG2IMG, own(scale=1.3), seed=4),
    job(Task.IMG2IMG, control(DEPTH, scale=1.7), control(scale=0.6, end=0.5), seed=11),
    job(Task.INPAINT, control(TILE, scale=1.3), region=REGION),
    job(Task.INPAINT, control(), own(start=0.4), strength=1.0),
    job(Task.CONTROL, control(scale=0.9)),
    job(Task.CONTROL, control(scale=0.5), control(DEPTH), control(TILE), guidance_scale=1.0),
]


def test_union_gives_stock_pixels_alone_and_batched(served: Served) -> None:
    together = served.run(*UNION_JOBS, job())
    for spec, batched in zip(UNION_JOBS, together, strict=False):
        [alone] = served.run(spec)
        reference = served.reference(spec)
        assert largest_difference(alone, reference) <= 1, spec
        assert largest_difference(batched, reference) <= 1, spec
    assert len({result.tobytes() for result in together}) == len(together)


def test_types_of_a_union_share_its_calls(served: Served) -> None:
    specs = [job(Task.IMG2IMG, control(kind, scale=scale)) for kind, scale in ((CANNY, 0.5), (DEPTH, 1.0), (OWN, 1.5))]
    engine = calls_of(served.model, [(spec, served.inputs(spec)) for spec in specs])
    assert engine.calls_run["control"] == specs[0].steps_run
    several = job(Task.IMG2IMG, control(), control(DEPTH))
    engine = calls_of(served.model, [(several, served.inputs(several))])
    assert engine.calls_run["control"] == several.steps_run, "one call has all the maps"


def test_union_combines_with_other_controlnets(served: Served) -> None:
    both = job(Task.IMG2IMG, control(), control("qr", scale=0.7))  # type: ignore[arg-type]
    swapped = job(Task.IMG2IMG, control("qr", scale=0.7), control())  # type: ignore[arg-type]
    off = job(Task.IMG2IMG, control(), control("qr", scale=0))  # type: ignore[arg-type]
    alone = job(Task.IMG2IMG, control())
    first, second, without, single = served.run(both, swapped, off, alone)
    assert largest_difference(first, second) <= 1
    assert largest_difference(first, single) > 5
    assert largest_difference(without, single) <= 1


def test_load_model_rejects_types_that_a_union_lacks(tmp_path: Path) -> None:
    sdxl, sd = tiny_sdxl(tmp_path / "sdxl"), tiny_sd(tmp_path / "sd")
    base, plain = tiny_union(sdxl, tmp_path / "base", types=6), tiny_controlnet(sd, tmp_path / "plain", seed=0)
    for model, kind, net, mode, reason in (
        (sdxl, "tile", base, None, "with the types pose, depth, .* set `mode`"),
        (sdxl, "qr", base, None, "set `mode` to use it for another type"),
        (sdxl, "canny", base, 6, "it has the modes 0 to 5, not 6"),
        (sd, "canny", plain, 0, "`mode` is for union ControlNets"),
    ):
        sources = {kind: ControlNetSource(source=str(net), mode=mode)}
        with pytest.raises(StartupError, match=reason):
            load_model(ModelConfig(name="m", source=str(model), controlnets=sources), device="cpu")


def test_attention_over_the_maps_does_not_keep_jobs_apart(tmp_path: Path) -> None:
    """It takes rows for a sequence, which the engine finds where its weights are large."""
    served = Served(tmp_path)
    for layer in served.model.controlnets.modules[0].transformer_layes:
        layer.attn.out_proj.weight.data *= 200
    specs = [job(Task.IMG2IMG, control(), seed=seed) for seed in (1, 2, 3)]
    alone = [served.run(spec)[0] for spec in specs]
    engine = calls_of(served.model, [(spec, served.inputs(spec)) for spec in specs])
    assert engine.calls_run["control"] == specs[0].steps_run
    for result, expected in zip(served.run(*specs), alone, strict=True):
        assert largest_difference(result, expected) <= 1
