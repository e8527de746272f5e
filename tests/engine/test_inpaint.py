"""Inpainting: pixels inside the mask equal those of the stock pipelines, pixels outside are unchanged."""

from copy import copy
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from img2img.domain.conditioning import InpaintRegion, MaskContent, Padding
from img2img.domain.parameters import Task
from img2img.domain.spec import JobSpec
from img2img.worker.images.inpaint_canvas import InpaintCanvas
from img2img.worker.images.inputs import Inputs, to_tensor
from img2img.worker.pipelines.conditioning.mask_content import replace_masked_latents
from img2img.worker.pipelines.loading.served_models import config_for
from img2img.worker.pipelines.model import Model, load_model
from tests.support.engines import run_together
from tests.support.models.tiny_models import tiny_sd, tiny_sdxl
from tests.support.specs import make_spec
from tests.support.stock import call_stock

SIDE = 64
STOCK = {tiny_sd: diffusers.StableDiffusionInpaintPipeline, tiny_sdxl: diffusers.StableDiffusionXLInpaintPipeline}


class Served:
    """A tiny model in the engine, and the stock inpainting pipeline."""

    def __init__(self, folder: Path, stock: type[diffusers.DiffusionPipeline]) -> None:
        self.model: Model = load_model(config_for(str(folder)), device="cpu")
        self.stock = stock.from_pretrained(folder)
        self.stock.set_progress_bar_config(disable=True)
        rng = np.random.default_rng(2)
        self.image = Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8))
        self.mask = Image.new("L", (SIDE, SIDE))
        self.mask.paste(255, (8, 20, 40, 60))

    def reference(self, spec: JobSpec) -> np.ndarray:
        self.stock.scheduler = diffusers.DDIMScheduler.from_config(self.stock.scheduler.config)
        return call_stock(
            self.stock,
            spec,
            prompt=spec.prompt,
            image=self.image,
            mask_image=self.mask,
            width=spec.width,
            height=spec.height,
            strength=spec.strength,
        )

    def inputs(self, spec: JobSpec) -> Inputs:
        canvas = InpaintCanvas(self.image, self.mask, spec.region)
        view, mask = canvas.model_input((spec.width, spec.height))
        return Inputs(to_tensor(view), to_tensor(mask), canvas)


@pytest.fixture(scope="module", params=[tiny_sd, tiny_sdxl], ids=["sd", "sdxl"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Served:
    return Served(request.param(tmp_path_factory.mktemp("model")), STOCK[request.param])


def job(**changes: object) -> JobSpec:
    defaults = {
        "task": Task.INPAINT,
        "num_inference_steps": 8,
        "width": SIDE,
        "height": SIDE,
        "region": InpaintRegion(mask="1" * 64, blur=0, margins=Padding(), canvas=(SIDE, SIDE), box=(0, 0, SIDE, SIDE)),
    }
    return make_spec(**{**defaults, **changes})


def test_inpaint_gives_stock_pixels_alone_and_batched(served: Served) -> None:
    specs = [job(strength=strength, guidance_scale=cfg) for strength in (0.3, 0.7, 1.0) for cfg in (1.0, 5.0)]
    # A job of another task in the same batches.
    specs += [job(task=Task.IMG2IMG, region=None, strength=0.6, seed=9)]
    together = run_together(
        served.model, [(s, served.inputs(s) if s.task is Task.INPAINT else served.inputs(job())) for s in specs]
    )
    for spec, result in zip(specs[:-1], together, strict=False):
        [alone] = run_together(served.model, [(spec, served.inputs(spec))])
        reference = served.reference(spec)
        assert np.abs(alone.astype(int) - reference).max() <= 1
        assert np.abs(result.astype(int) - reference).max() <= 1


def test_inpaint_keeps_pixels_outside_the_mask(served: Served) -> None:
    for blur in (0, 6):
        spec = job(region=job().region.model_copy(update={"blur": blur}))
        inputs = served.inputs(spec)
        [result] = run_together(served.model, [(spec, inputs)])
        assert inputs.canvas is not None
        whole = inputs.canvas.paste(result)
        outside = np.asarray(served.mask) == 0
        assert (whole[outside] == np.asarray(served.image)[outside]).all()
        assert (whole[~outside] != np.asarray(served.image)[~outside]).mean() > 0.5


@pytest.mark.parametrize("content", [MaskContent.NOISE, MaskContent.NOTHING])
@torch.inference_mode()
def test_masked_latents_of_the_image_are_replaced(served: Served, content: MaskContent) -> None:
    pipeline, (image, mask) = copy(served.stock), (to_tensor(served.image), to_tensor(served.mask))

    def encode() -> torch.Tensor:
        return pipeline._encode_vae_image(image=image, generator=torch.Generator().manual_seed(1))

    plain = encode()
    replace_masked_latents(pipeline, content, mask, seed=5)
    replaced, second = encode(), encode()
    scale = SIDE // plain.shape[-1]
    masked = (mask[:, :, ::scale, ::scale] > 0.5).expand_as(plain)
    assert torch.equal(replaced[~masked], plain[~masked])
    assert torch.equal(second, plain), "the masked image is encoded after it"
    noise = torch.randn(plain.shape, generator=torch.Generator().manual_seed(5))
    assert torch.equal(replaced[masked], noise[masked] if content is MaskContent.NOISE else 0 * plain[masked])


def test_content_of_the_mask_acts_alone_and_batched(served: Served) -> None:
    assert served.model.card.mask_content
    regions = [job().region.model_copy(update={"content": content}) for content in MaskContent]
    specs = [job(region=region, strength=0.6) for region in regions]
    together = run_together(served.model, [(spec, served.inputs(spec)) for spec in specs])
    for spec, batched in zip(specs, together, strict=True):
        [alone] = run_together(served.model, [(spec, served.inputs(spec))])
        assert np.abs(alone.astype(int) - batched).max() <= 1
    assert len({result.tobytes() for result in together}) == 3
    full = [job(region=region, strength=1.0) for region in regions]
    equal = run_together(served.model, [(spec, served.inputs(spec)) for spec in full])
    assert max(np.abs(result.astype(int) - equal[0]).max() for result in equal) <= 1


@pytest.mark.parametrize("box", [(3, 10, 61, 11), (30, 3, 32, 60), (41, 41, 44, 43)], ids=["row", "column", "spot"])
def test_thin_mask_is_repainted_and_nothing_else(served: Served, box: tuple[int, int, int, int]) -> None:
    served = copy(served)
    served.mask = Image.new("L", (SIDE, SIDE))
    served.mask.paste(255, box)
    spec = job(region=job().region.model_copy(update={"blur": 20}))
    inputs = served.inputs(spec)
    [result] = run_together(served.model, [(spec, inputs)])
    assert inputs.canvas is not None
    painted, original = inputs.canvas.paste(result), np.asarray(served.image)
    outside = np.asarray(served.mask) == 0
    assert (painted[outside] == original[outside]).all()
    assert (painted[~outside] != original[~outside]).any(axis=-1).mean() > 0.8


def test_inpaint_with_tiny_strength_runs_one_step(served: Served) -> None:
    spec = job(strength=0.01)
    [result] = run_together(served.model, [(spec, served.inputs(spec))])
    assert np.isfinite(result).all()
