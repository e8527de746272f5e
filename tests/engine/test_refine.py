"""The detail pass equals the same calls of the stock pipelines by hand, alone and in company."""

import hashlib
import sys
from pathlib import Path
from threading import Event
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.utils import torch_utils
from PIL import Image
from transformers import AutoModelForSemanticSegmentation

from img2img.domain.conditioning import InpaintRegion
from img2img.domain.geometry import expand_box, working_size
from img2img.domain.masks import MaskQuery
from img2img.domain.model_config import ComponentSource, ModelConfig
from img2img.domain.parameters import Task
from img2img.domain.spec import JobSpec
from img2img.worker.images.inpaint_canvas import InpaintCanvas
from img2img.worker.images.png import decode_png, encode_png
from img2img.worker.pipelines.job_noise import mix_noise
from img2img.worker.pipelines.model import Model, load_model
from img2img.worker.runner import JobRunner, Rendering
from tests.engine.test_annotators import random_image
from tests.support.engines import running_engine
from tests.support.models.tiny_annotators import tiny_segmentation
from tests.support.models.tiny_models import tiny_sd
from tests.support.specs import make_spec
from tests.support.stock import call_stock

pytestmark = pytest.mark.usefixtures("no_grad")

SIZE = 96, 64
NAMES = {0: "wall", 1: "house", 2: "tree"}
PHOTO = random_image(4).resize(SIZE)
PNG = encode_png(np.asarray(PHOTO), None)
PNGS = {hashlib.sha256(PNG).hexdigest(): PNG}


class Served:
    """A tiny model in the engine, and the stock pipelines."""

    def __init__(self, folder: Path, classes: Path) -> None:
        segmenters = {"text": ComponentSource(source=str(classes))}
        config = ModelConfig(name="tiny", source=str(folder), segmenters=segmenters)
        self.model: Model = load_model(config, device="cpu")
        self.img2img = diffusers.StableDiffusionImg2ImgPipeline.from_pretrained(folder)
        self.inpaint = diffusers.StableDiffusionInpaintPipeline(
            **self.img2img.components, requires_safety_checker=False
        )
        for stock in (self.img2img, self.inpaint):
            stock.set_progress_bar_config(disable=True)

    def call(self, stock: diffusers.DiffusionPipeline, spec: JobSpec, **arguments: Any) -> np.ndarray:
        stock.scheduler = diffusers.DDIMScheduler.from_config(stock.scheduler.config)
        return call_stock(stock, spec, **arguments)

    def by_hand(self, spec: JobSpec) -> tuple[np.ndarray, int]:
        """Return the image of a job that the stock pipelines make, and its number of parts."""
        image = Image.fromarray(self.call(self.img2img, spec, prompt=spec.prompt, image=PHOTO, strength=spec.strength))
        count = 0
        for entry in spec.refine:
            things = self.model.segmenters.find(image, MaskQuery(text=entry.detect))
            for thing in things[: entry.max]:
                count += 1
                box = expand_box(thing.box, entry.padding, SIZE, self.model.card)
                size = working_size(box, self.model.card)
                mask = Image.fromarray(thing.mask.astype(np.uint8) * 255)
                view, seen = InpaintCanvas(image, mask, InpaintRegion(canvas=SIZE, box=box)).model_input(size)
                pixels = self.call(
                    self.inpaint,
                    spec.model_copy(update={"num_inference_steps": spec.steps_of_part(entry)[1]}),
                    prompt=entry.prompt or spec.prompt,
                    image=view,
                    mask_image=seen,
                    width=size[0],
                    height=size[1],
                    strength=entry.strength,
                )
                left, top, right, bottom = box
                resized = Image.fromarray(pixels).resize((right - left, bottom - top), Image.Resampling.LANCZOS)
                image.paste(resized, box[:2], mask.crop(box))
        return np.asarray(image), count


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    classes = tiny_segmentation(tmp_path_factory.mktemp("classes"), classes=3)
    segmenter = AutoModelForSemanticSegmentation.from_pretrained(classes)
    segmenter.config.id2label, segmenter.config.label2id = NAMES, {name: number for number, name in NAMES.items()}
    segmenter.save_pretrained(classes)
    return Served(tiny_sd(tmp_path_factory.mktemp("sd")), classes)


def job(*entries: dict[str, Any], **changes: Any) -> JobSpec:
    [digest] = PNGS
    plain = {"padding": 4, "blur": 0, "grow": 0}
    fields = {"image": digest, "width": SIZE[0], "height": SIZE[1], "strength": 0.6, "num_inference_steps": 5}
    return make_spec(**{**fields, **changes}, refine=[{**plain, **entry} for entry in entries])


def render_all(model: Model, *specs: JobSpec) -> tuple[list[np.ndarray], list[Rendering]]:
    with running_engine(8) as engine:
        renderings = [JobRunner(engine).prepare(spec, PNGS, [0], model) for spec in specs]
        ends = [Event() for _ in renderings]
        for rendering, ended in zip(renderings, ends, strict=True):
            rendering.start(ended.set)
        assert all(ended.wait(120) for ended in ends)
    images = [rendering.render()[0].png or b"" for rendering in renderings]
    return [np.asarray(decode_png(image).convert("RGB")).astype(int) for image in images], renderings


def test_detail_pass_equals_stock_calls_by_hand(served: Served) -> None:
    every = [{"detect": name, "max": 2, "strength": 0.5} for name in NAMES.values()]
    specs = [job(*every, seed=seed) for seed in (3, 4)]
    specs += [job({"detect": "wall, house, tree", "prompt": "a tree", "strength": 1, "max": 1}, guidance_scale=1.0)]
    # A job without the pass in the same batches.
    specs += [job(seed=9)]
    references = [served.by_hand(spec) for spec in specs]
    assert max(count for _, count in references) > 1
    assert all(count for _, count in references[:3])
    together, renderings = render_all(served.model, *specs)
    for spec, (expected, _), pixels, rendering in zip(specs, references, together, renderings, strict=True):
        [alone], _ = render_all(served.model, spec)
        assert np.abs(alone - expected).max() <= 1
        assert np.abs(pixels - alone).max() <= 1
        assert rendering.steps_done == spec.total_steps
    without, _ = render_all(served.model, job(seed=3))
    assert np.abs(without[0] - together[0]).max() > 5


def test_parts_have_the_settings_of_the_request(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = {"detect": "wall, house, tree", "max": 2, "strength": 0.5}
    modules = [sys.modules[type(pipeline).__module__] for pipeline in (served.img2img, served.inpaint)]
    varied = job(entry, subseed=77, subseed_strength=0.4)

    def variation(shape: Any, **arguments: Any) -> torch.Tensor:
        other = torch.randn(shape, generator=torch.Generator().manual_seed(77))
        return mix_noise(torch_utils.randn_tensor(shape, **arguments), other, 0.4)

    with monkeypatch.context() as patch:
        for module in modules:
            patch.setattr(module, "randn_tensor", variation)
        expected = [served.by_hand(varied)]
    # Five steps at strength 0.5 are half of a schedule of ten.
    exact = job(entry, exact_steps=True, strength=1.0)
    assert (exact.refine_steps, exact.steps_of_part(exact.refine[0])) == (5, (5, 10))
    expected.append(served.by_hand(exact))
    # The edges of a part are not those of the image.
    tiled = job(entry, seamless_tiling=True)
    convolutions = [layer for part in (served.img2img.unet, served.img2img.vae) for layer in part.modules()]
    convolutions = [layer for layer in convolutions if isinstance(layer, torch.nn.Conv2d)]

    def call_tiled(stock: diffusers.DiffusionPipeline, spec: JobSpec, **arguments: Any) -> np.ndarray:
        for layer in convolutions:
            layer.padding_mode = "circular" if stock is served.img2img else "zeros"
        try:
            return Served.call(served, stock, spec, **arguments)
        finally:
            for layer in convolutions:
                layer.padding_mode = "zeros"

    with monkeypatch.context() as patch:
        patch.setattr(served, "call", call_tiled)
        expected.append(served.by_hand(tiled))
    assert all(count for _, count in expected)
    together, renderings = render_all(served.model, varied, exact, tiled)
    for pixels, (reference, _), rendering in zip(together, expected, renderings, strict=True):
        assert np.abs(pixels - reference).max() <= 1
        assert rendering.steps_done <= rendering._spec.total_steps


def test_parts_fade_into_the_rest_and_nothing_found_changes_nothing(served: Served) -> None:
    [plain], _ = render_all(served.model, job())
    [unfound], [rendering] = render_all(served.model, job({"detect": "wall", "threshold": 0.999}))
    assert (unfound == plain).all()
    assert rendering.steps_done == rendering._spec.total_steps
    entry = next(
        {"detect": name, "max": 1}
        for name in NAMES.values()
        if served.model.segmenters.find(Image.fromarray(plain.astype(np.uint8)), MaskQuery(text=name))
    )
    [hard], [soft] = (render_all(served.model, job({**entry, "blur": blur}))[0] for blur in (0, 6))
    thing = served.model.segmenters.find(Image.fromarray(plain.astype(np.uint8)), MaskQuery(text=entry["detect"]))[0]
    for pixels in (hard, soft):
        assert (pixels[~thing.mask] == plain[~thing.mask]).all()
    assert (hard != soft).any()


def test_inpainted_image_is_refined_after_it_is_composited(served: Served) -> None:
    [digest] = PNGS
    mask = np.zeros((*SIZE[::-1], 3), np.uint8)
    mask[:, :40] = 255
    png = encode_png(mask, None)
    PNGS[hashlib.sha256(png).hexdigest()] = png
    try:
        region = InpaintRegion(mask=hashlib.sha256(png).hexdigest(), canvas=SIZE, box=(0, 0, *SIZE))
        entries = [{"detect": "wall, house, tree", "max": 4, "padding": 0, "blur": 0, "grow": 0}]
        fields = {"task": Task.INPAINT, "image": digest, "width": 96, "height": 64, "num_inference_steps": 4}
        [plain], _ = render_all(served.model, make_spec(**fields, region=region))
        [refined], _ = render_all(served.model, make_spec(**fields, region=region, refine=entries))
    finally:
        PNGS.pop(hashlib.sha256(png).hexdigest())
    assert (plain[:, 40:] == np.asarray(PHOTO)[:, 40:]).all()
    assert (refined[:, 40:] != plain[:, 40:]).any(), "parts outside of the mask are refined, too"
