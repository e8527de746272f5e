"""InstructPix2Pix and inpainting UNets: pixels equal those of the stock pipelines, alone and batched."""

from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from img2img.domain.conditioning import InpaintRegion, Padding
from img2img.domain.model_config import ModelConfig
from img2img.domain.parameters import Task
from img2img.domain.spec import JobSpec
from img2img.worker.engine.engine import Engine
from img2img.worker.engine.task import EngineTask
from img2img.worker.errors import StartupError
from img2img.worker.images.inputs import Inputs, to_tensor
from img2img.worker.pipelines.denoise import make_task_function
from img2img.worker.pipelines.model import Model, load_model
from img2img.worker.runtime.model_loader import warm_up
from tests.support.engines import run_together, running_engine
from tests.support.models.tiny_models import tiny_sd, tiny_sdxl, tiny_unet
from tests.support.specs import make_spec

SIDE = 32
STOCK_EDIT = {
    tiny_sd: diffusers.StableDiffusionInstructPix2PixPipeline,
    tiny_sdxl: diffusers.StableDiffusionXLInstructPix2PixPipeline,
}
STOCK_INPAINT = {
    tiny_sd: diffusers.StableDiffusionInpaintPipeline,
    tiny_sdxl: diffusers.StableDiffusionXLInpaintPipeline,
}


class Served:
    """A tiny model with UNets for edits and for inpainting, and the stock pipelines of both."""

    def __init__(self, folder: Path, make: type) -> None:
        self.base = make(folder / "base")
        self.unets = {}
        for channels, name in ((8, "edit"), (9, "inpaint")):
            self.unets[name] = tiny_unet(in_channels=channels, xl=make is tiny_sdxl)
            self.unets[name].save_pretrained(folder / name)
        config = ModelConfig(
            name="tiny", source=str(self.base), edit=str(folder / "edit"), inpaint=str(folder / "inpaint")
        )
        self.model: Model = load_model(config, device="cpu")
        self.edit = STOCK_EDIT[make].from_pretrained(self.base, unet=self.unets["edit"])
        self.inpaint = STOCK_INPAINT[make].from_pretrained(self.base, unet=self.unets["inpaint"])
        for pipeline in (self.edit, self.inpaint):
            pipeline.scheduler = diffusers.DDIMScheduler.from_config(pipeline.scheduler.config)
            pipeline.set_progress_bar_config(disable=True)
        rng = np.random.default_rng(2)
        self.image = Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8))
        self.mask = Image.new("L", (SIDE, SIDE))
        self.mask.paste(255, (8, 10, 20, 30))

    def reference(self, spec: JobSpec) -> np.ndarray:
        arguments = {
            "prompt": spec.prompt,
            "negative_prompt": spec.negative_prompt or None,
            "image": self.image,
            "num_inference_steps": spec.num_inference_steps,
            "guidance_scale": spec.guidance_scale,
            "generator": torch.Generator().manual_seed(spec.seed),
        }
        size = {"width": spec.width, "height": spec.height}
        if spec.task is Task.INPAINT:
            result = self.inpaint(**arguments, **size, strength=spec.strength, mask_image=self.mask)
        else:
            xl = isinstance(self.edit, diffusers.StableDiffusionXLInstructPix2PixPipeline)
            result = self.edit(**arguments, **(size if xl else {}), image_guidance_scale=spec.image_guidance_scale)
        return np.asarray(result.images[0])

    def inputs(self) -> Inputs:
        return Inputs(to_tensor(self.image), to_tensor(self.mask))


@pytest.fixture(scope="module", params=[tiny_sd, tiny_sdxl], ids=["sd", "sdxl"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Served:
    return Served(tmp_path_factory.mktemp("model"), request.param)


def edit(**changes: object) -> JobSpec:
    defaults = {
        "task": Task.EDIT,
        "prompt": "make it night",
        "image_guidance_scale": 1.5,
        "num_inference_steps": 4,
        "width": SIDE,
        "height": SIDE,
    }
    return make_spec(**{**defaults, **changes})


def inpaint(**changes: object) -> JobSpec:
    box = (0, 0, SIDE, SIDE)
    region = InpaintRegion(mask="1" * 64, blur=0, margins=Padding(), canvas=(SIDE, SIDE), box=box)
    return edit(**{"task": Task.INPAINT, "image_guidance_scale": None, "region": region, **changes})


def test_concat_unets_give_stock_pixels_alone_and_batched(served: Served) -> None:
    specs = [
        edit(),
        edit(image_guidance_scale=2.5, guidance_scale=9.0, negative_prompt="blur", seed=5),
        edit(guidance_scale=1.0, num_inference_steps=3),
        inpaint(strength=0.6, num_inference_steps=6),
        inpaint(guidance_scale=1.0),
    ]
    others = [edit(task=Task.IMG2IMG, image_guidance_scale=None, strength=0.5, seed=9)]
    together = run_together(served.model, [(spec, served.inputs()) for spec in specs + others])
    for spec, result in zip(specs, together, strict=False):
        reference = served.reference(spec).astype(int)
        [alone] = run_together(served.model, [(spec, served.inputs())])
        assert np.abs(alone - reference).max() <= 1
        assert np.abs(result - reference).max() <= 1
    assert np.abs(together[0].astype(int) - together[1]).max() > 1


def test_edits_are_batched_and_count_steps(served: Served) -> None:
    engine = Engine(slots=4)
    functions = [make_task_function(served.model, edit(seed=seed), served.inputs(), 0) for seed in range(3)]
    tasks = [EngineTask(function, lambda _task: None) for function in functions]
    engine.submit(tasks)
    engine.shut_down()
    engine.run()
    assert [task.error for task in tasks] == [None] * 3
    assert engine.calls_run["denoise"] == 4
    assert engine.rows_run["denoise"] == 4 * 3 * 3, "text and image, image only, neither"
    assert [task.step for task in tasks] == [edit().steps_run] * 3


def test_card_lists_tasks(served: Served) -> None:
    assert set(served.model.card.tasks) == {Task.IMG2IMG, Task.INPAINT, Task.EDIT, Task.UPSCALE}


@pytest.mark.parametrize(("channels", "task"), [(8, Task.EDIT), (9, Task.INPAINT)])
def test_model_with_concat_unet_supports_only_its_task(
    served: Served, tmp_path: Path, channels: int, task: Task
) -> None:
    kind = {8: type(served.edit), 9: type(served.inpaint)}[channels]
    plain = diffusers.DiffusionPipeline.from_pretrained(served.base, unet=served.unets[task.value])
    for name, pipeline in (("specific", kind.from_pretrained(served.base, unet=plain.unet)), ("plain", plain)):
        pipeline.save_pretrained(tmp_path / name)
        model = load_model(ModelConfig(name=name, source=str(tmp_path / name)), device="cpu")
        assert model.card.tasks == (task,)
        with running_engine() as engine:
            warm_up(model, engine)
        spec = edit() if task is Task.EDIT else inpaint()
        [result] = run_together(model, [(spec, served.inputs())])
        assert np.abs(result.astype(int) - served.reference(spec)).max() <= 1


def test_edit_component_can_be_a_whole_pipeline(served: Served, tmp_path: Path) -> None:
    served.edit.save_pretrained(tmp_path / "edit")
    model = load_model(ModelConfig(source=str(served.base), edit=str(tmp_path / "edit")), device="cpu")
    [result] = run_together(model, [(edit(), served.inputs())])
    assert np.abs(result.astype(int) - served.reference(edit())).max() <= 1


def test_file_of_the_first_convolution_shares_the_other_weights_of_the_model(served: Served, tmp_path: Path) -> None:
    own = diffusers.UNet2DConditionModel.from_pretrained(served.base / "unet")
    firsts = {
        task: {name: served.unets[task].state_dict()[name].contiguous() for name in ("conv_in.weight", "conv_in.bias")}
        for task in ("edit", "inpaint")
    }
    for task, first in firsts.items():
        save_file(first, tmp_path / f"{task}.safetensors")
    files = {task: str(tmp_path / f"{task}.safetensors") for task in firsts}
    model = load_model(ModelConfig(source=str(served.base), **files), device="cpu")
    assert set(model.card.tasks) == {Task.IMG2IMG, Task.INPAINT, Task.EDIT, Task.UPSCALE}
    for pipeline, spec in ((served.edit, edit()), (served.inpaint, inpaint(strength=0.6, num_inference_steps=6))):
        before = {name: weight.clone() for name, weight in pipeline.unet.state_dict().items()}
        task = spec.task.value
        pipeline.unet.load_state_dict({**own.state_dict(), **firsts[task]})
        reference = served.reference(spec).astype(int)
        pipeline.unet.load_state_dict(before)
        [result] = run_together(model, [(spec, served.inputs())])
        assert np.abs(result - reference).max() <= 1


def test_load_model_rejects_a_first_convolution_that_does_not_fit(served: Served, tmp_path: Path) -> None:
    save_file(
        {"conv_in.weight": torch.zeros(7, 8, 3, 3), "conv_in.bias": torch.zeros(7)}, tmp_path / "edit.safetensors"
    )
    with pytest.raises(StartupError, match=r"a first convolution of shape \[7, 8, 3, 3\], which does not fit the UNet"):
        load_model(ModelConfig(source=str(served.base), edit=str(tmp_path / "edit.safetensors")), device="cpu")


def test_load_model_rejects_unet_of_another_task(served: Served, tmp_path: Path) -> None:
    served.unets["inpaint"].save_pretrained(tmp_path / "unet")
    with pytest.raises(StartupError, match="is for `inpaint`, not for `edit`"):
        load_model(ModelConfig(source=str(served.base), edit=str(tmp_path / "unet")), device="cpu")
    with pytest.raises(StartupError, match="cannot load"):
        load_model(ModelConfig(source=str(served.base), inpaint=str(tmp_path / "nothing")), device="cpu")
