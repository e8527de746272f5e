"""IP-Adapters of every layout: pixels equal those of the stock pipelines, alone and batched with other jobs."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionModelWithProjection, SiglipImageProcessor, SiglipVisionModel

from img2img.domain.conditioning import FreeU, ImagePrompt, Lora
from img2img.domain.model_config import ComponentSource, ModelConfig
from img2img.domain.parameters import Scheduler, Task
from img2img.domain.spec import JobSpec
from img2img.worker.engine.engine import Engine
from img2img.worker.errors import StartupError
from img2img.worker.images.inputs import Inputs, to_tensor
from img2img.worker.pipelines.model import load_model
from tests.engine.test_families import flux_arguments, largest_difference, sd3_arguments, sd_arguments
from tests.support.engines import run_on, run_together
from tests.support.images import gradient
from tests.support.models.tiny_adapters import tiny_lora
from tests.support.models.tiny_families import tiny_flux, tiny_kontext, tiny_sd3
from tests.support.models.tiny_ip_adapters import (
    FILE,
    ip_adapter_flux,
    ip_adapter_full_face,
    ip_adapter_plus,
    ip_adapter_sd3,
)
from tests.support.models.tiny_models import tiny_sd, tiny_sdxl
from tests.support.specs import make_spec

SIDE = 64


def load_unet_adapter(stock: Any, adapter: Path, count: int) -> None:
    stock.load_ip_adapter(str(adapter), subfolder=[""] * count, weight_name=[FILE] * count)


def load_flux_adapter(stock: Any, adapter: Path, count: int) -> None:
    encoder = CLIPVisionModelWithProjection.from_pretrained(adapter / "image_encoder")
    stock.register_modules(image_encoder=encoder)
    stock.load_ip_adapter([str(adapter)] * count, weight_name=[FILE] * count)


def load_sd3_adapter(stock: Any, adapter: Path, count: int) -> None:
    del count
    encoder = SiglipVisionModel.from_pretrained(adapter / "image_encoder")
    size = encoder.config.image_size
    stock.register_modules(
        image_encoder=encoder, feature_extractor=SiglipImageProcessor(size={"height": size, "width": size})
    )
    stock.load_ip_adapter(str(adapter), weight_name=FILE)


@dataclass
class Case:
    """A tiny model, its IP-Adapter, and the stock pipeline."""

    make: Callable[[Path], Path]
    adapter: Callable[[Path, Path], Path]
    load: Callable[[Any, Path, int], None]
    stock: type
    arguments: Callable[[JobSpec], dict[str, Any]]
    scheduler: Scheduler = Scheduler.DDIM
    max_images: int = 4


FLOW = Scheduler.FLOW_EULER
SD, SDXL = diffusers.StableDiffusionImg2ImgPipeline, diffusers.StableDiffusionXLImg2ImgPipeline
SD3 = diffusers.StableDiffusion3Img2ImgPipeline
PAG = {SD: diffusers.StableDiffusionPAGImg2ImgPipeline, SDXL: diffusers.StableDiffusionXLPAGImg2ImgPipeline}
CASES = {
    "sd-plus": Case(tiny_sd, ip_adapter_plus, load_unet_adapter, SD, sd_arguments),
    "sd-full-face": Case(tiny_sd, ip_adapter_full_face, load_unet_adapter, SD, sd_arguments),
    "sdxl-plus": Case(tiny_sdxl, ip_adapter_plus, load_unet_adapter, SDXL, sd_arguments),
    "flux": Case(tiny_flux, ip_adapter_flux, load_flux_adapter, diffusers.FluxImg2ImgPipeline, flux_arguments, FLOW),
    "sd3": Case(tiny_sd3, ip_adapter_sd3, load_sd3_adapter, SD3, sd3_arguments, FLOW, 1),
}


class Served:
    """A tiny model with an IP-Adapter and a LoRA."""

    def __init__(self, case: Case, folder: Path) -> None:
        self.case = case
        self.folder = case.make(folder / "model")
        self.adapter = case.adapter(self.folder, folder / "ip")
        self.lora = tiny_lora(self.folder, folder / "ink.safetensors", seed=1)
        self.model = load_model(_config(self.folder, self.adapter, self.lora), device="cpu")
        self.image = gradient(SIDE, SIDE)
        self.styles = [gradient(40, 60, blue=200), gradient(90, 70).rotate(90)]

    def inputs(self, spec: JobSpec) -> Inputs:
        return Inputs(to_tensor(self.image), image_prompts=tuple(self.styles[: len(spec.image_prompts)]))

    def run(self, *specs: JobSpec) -> list[np.ndarray]:
        return run_together(self.model, [(spec, self.inputs(spec)) for spec in specs])

    def job(self, *scales: float, **changes: Any) -> JobSpec:
        prompts = tuple(ImagePrompt(image=str(n) * 64, scale=scale) for n, scale in enumerate(scales))
        defaults = {"num_inference_steps": 4, "strength": 0.8, "width": SIDE, "height": SIDE}
        return make_spec(**{**defaults, "scheduler": self.case.scheduler, "image_prompts": prompts, **changes})

    def reference(self, spec: JobSpec, **more: Any) -> np.ndarray:
        stock = self.case.stock.from_pretrained(self.folder)  # type: ignore[attr-defined]
        stock.set_progress_bar_config(disable=True)
        if spec.scheduler is Scheduler.DDIM:
            stock.scheduler = diffusers.DDIMScheduler.from_config(stock.scheduler.config)
        prompts: dict[str, Any] = {}
        scales = [prompt.blocks or prompt.scale for prompt in spec.image_prompts]
        if scales:
            self.case.load(stock, self.adapter, len(scales))
            stock.set_ip_adapter_scale(scales if len(scales) > 1 else scales[0])
            images = self.styles[: len(scales)]
            prompts["ip_adapter_image"] = images if len(images) > 1 else images[0]
            if self.case.load is load_flux_adapter and len(images) > 1:
                prompts["negative_ip_adapter_image"] = images
        if spec.freeu:
            stock.enable_freeu(**spec.freeu.model_dump())
        for lora in spec.loras:
            stock.load_lora_weights(self.lora, adapter_name="ink")
            stock.set_adapters(["ink"], [lora.scale])
        image = stock(
            prompt=spec.prompt,
            image=self.image,
            num_inference_steps=spec.num_inference_steps,
            generator=torch.Generator().manual_seed(spec.seed),
            **self.case.arguments(spec),
            **prompts,
            **more,
        ).images[0]
        return np.asarray(image)


@pytest.fixture(scope="module", params=CASES, ids=list(CASES))
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Served:
    return Served(CASES[request.param], tmp_path_factory.mktemp("ip"))


def test_image_prompts_give_stock_pixels_alone_and_batched(served: Served) -> None:
    lora = (Lora(name="ink", scale=0.7),)
    specs = [served.job(), served.job(0.7), served.job(0.3, seed=5), served.job(1.0, guidance_scale=1.0)]
    specs += [served.job(0.6, loras=lora)]
    if served.case.max_images > 1:
        specs += [served.job(0.8, 0.4)]
    together = served.run(*specs)
    plain = served.reference(specs[0])
    for spec, batched in zip(specs, together, strict=True):
        reference = served.reference(spec)
        assert largest_difference(served.run(spec)[0], reference) <= 1, spec
        assert largest_difference(batched, reference) <= 1, spec
        if spec.image_prompts:
            assert largest_difference(reference, plain) > 1, "the image prompt must change the image"


def test_scales_of_blocks_give_stock_pixels(served: Served) -> None:
    card = served.model.card
    if served.case.load is not load_unet_adapter:
        assert card.image_prompt_blocks == {}
        return
    assert card.image_prompt_blocks == {"down.block_1": 1, "up.block_0": 2, "mid": 1}

    def with_blocks(*given: Any) -> JobSpec:
        prompts = [ImagePrompt(image=str(n) * 64, scale=0.6, blocks=blocks) for n, blocks in enumerate(given)]
        return served.job(image_prompts=tuple(prompts))

    specs = [
        with_blocks({"up": {"block_0": [0.0, 1.0]}}),
        with_blocks({"up": 0.7, "mid": 1.0}),
        with_blocks({"down": {"block_1": 1.0}}, None),
        served.job(0.6),
    ]
    together = served.run(*specs)
    for spec, batched in zip(specs, together, strict=True):
        reference = served.reference(spec)
        assert largest_difference(served.run(spec)[0], reference) <= 1, spec
        assert largest_difference(batched, reference) <= 1, spec
    assert len({result.tobytes() for result in together}) == len(specs)


def test_freeu_and_pag_go_with_adapters(served: Served) -> None:
    if served.case.load is not load_unet_adapter:
        return
    base, changes = served.case.stock, {"freeu": FreeU(b1=1.3, b2=1.4, s1=0.9, s2=0.2), "pag_scale": 2.0}
    spec = served.job(0.6, loras=(Lora(name="ink", scale=0.7),), **changes)
    plain = served.job(0.6, loras=(Lora(name="ink", scale=0.7),))
    # The stock class with PAG, whose other arguments are the same.
    served.case.stock = PAG[base]
    reference = served.reference(spec, pag_scale=2.0)
    served.case.stock = base
    for result in (served.run(spec)[0], served.run(plain, spec)[1]):
        assert largest_difference(result, reference) <= 1
    assert largest_difference(served.run(plain)[0], served.reference(plain)) <= 1


def test_jobs_with_equal_scales_share_passes(served: Served) -> None:
    engine = Engine(slots=4)
    specs = [served.job(0.6, seed=seed, strength=1.0) for seed in range(3)]
    run_on(engine, served.model, [(spec, served.inputs(spec)) for spec in specs])
    # Guidance takes two rows per image where it is not an input of the model.
    assert engine.calls_run["denoise"] == 4
    assert engine.rows_run["denoise"] == 12 * served.model.card.guidance_rows


def test_card_has_the_largest_number_of_image_prompts(served: Served) -> None:
    card = served.model.card
    assert (card.image_prompts, card.max_image_prompts) == (True, served.case.max_images)
    assert Task.IMG2IMG in card.adapter_tasks


def test_kontext_edits_take_image_prompts(tmp_path: Path) -> None:
    folder = tiny_kontext(tmp_path / "model")
    model = load_model(_config(folder, ip_adapter_flux(folder, tmp_path / "ip")), device="cpu")
    style, image = gradient(40, 60, blue=200), to_tensor(gradient(SIDE, SIDE))
    results = []
    for scale in (0.0, 0.9):
        prompts = (ImagePrompt(image="1" * 64, scale=scale),)
        spec = make_spec(
            Task.EDIT, num_inference_steps=2, width=SIDE, height=SIDE, scheduler=FLOW, image_prompts=prompts
        )
        results += run_together(model, [(spec, Inputs(image, image_prompts=(style,)))])
    assert largest_difference(*results) > 1


@pytest.mark.parametrize(
    "key",
    ["image_proj.proj.0.weight", "image_proj.perceiver_resampler.proj_in.weight"],
    ids=["faceid", "faceid-plus"],
)
def test_load_model_rejects_face_id_in_one_line(tmp_path: Path, key: str) -> None:
    folder = tiny_sd(tmp_path / "model")
    weights = {key: torch.zeros(8, 8), "ip_adapter.1.to_k_ip.weight": torch.zeros(8, 8)}
    save_file(weights, tmp_path / FILE)
    with pytest.raises(StartupError, match="is a Face ID adapter, which takes embeddings of faces and no images"):
        load_model(_config(folder, tmp_path), device="cpu")


@pytest.mark.parametrize(
    ("make", "other", "adapter", "message"),
    [
        (tiny_flux, tiny_sd, ip_adapter_plus, "does not fit the model: "),
        (tiny_sd, tiny_flux, ip_adapter_flux, "does not fit the model: "),
        (tiny_sd3, tiny_flux, ip_adapter_flux, "it is CLIPVisionModelWithProjection, and not SiglipVisionModel"),
    ],
)
def test_load_model_rejects_ip_adapter_of_another_family(
    tmp_path: Path, make: Any, other: Any, adapter: Any, message: str
) -> None:
    folder = adapter(other(tmp_path / "other"), tmp_path / "ip")
    with pytest.raises(StartupError, match=f"IP-Adapter.*{message}") as raised:
        load_model(_config(make(tmp_path / "model"), folder), device="cpu")
    assert len(str(raised.value)) < 300


def _config(folder: Path, adapter: Path, lora: Path | None = None) -> ModelConfig:
    loras = {"ink": ComponentSource(source=str(lora))} if lora else {}
    source = ComponentSource(source=str(adapter), weight_name=FILE)
    return ModelConfig(name="m", source=str(folder), ip_adapter=source, loras=loras)


def test_load_model_rejects_ip_adapter_without_some_weights(tmp_path: Path) -> None:
    folder = tiny_sd3(tmp_path / "model")
    adapter = ip_adapter_sd3(folder, tmp_path / "ip")
    weights = {key: tensor for key, tensor in load_file(adapter / FILE).items() if "layers.3" not in key}
    save_file(weights, adapter / FILE)
    with pytest.raises(StartupError, match=r"weights are missing in the file, such as image_proj\.layers\.3"):
        load_model(_config(folder, adapter), device="cpu")
