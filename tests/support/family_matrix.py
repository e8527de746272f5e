"""Runs every pipeline class of diffusers that edits images on a tiny random model, and makes docs/families.md of it."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.pipelines.longcat_image import pipeline_longcat_image_edit
from diffusers.pipelines.qwenimage import (
    pipeline_qwenimage_edit,
    pipeline_qwenimage_edit_inpaint,
    pipeline_qwenimage_edit_plus,
)
from PIL import Image

from img2img.domain.conditioning import InpaintRegion
from img2img.domain.model_config import ModelConfig
from img2img.domain.parameters import Task
from img2img.domain.spec import JobSpec
from img2img.worker.engine.engine import Engine
from img2img.worker.images.inputs import Inputs, to_tensor
from img2img.worker.pipelines.image_processors import image_only_processor
from img2img.worker.pipelines.model import Model, load_model
from tests.support.engines import run_on
from tests.support.images import largest_difference
from tests.support.models import tiny_families as families
from tests.support.models import tiny_unlisted as tiny
from tests.support.models.tiny_models import tiny_sd, tiny_sdxl
from tests.support.specs import make_spec

SIDE = 64


@dataclass(frozen=True)
class Row:
    """The measurements of one class.

    Attributes:
        tasks: what jobs it does.
        merges: whether jobs shared passes of the denoiser.
        alone: largest difference of a channel from the pipeline called directly.
        together: the same of jobs that run at the same time.
    """

    tasks: tuple[Task, ...]
    merges: bool
    alone: int
    together: int


Maker = Callable[[Any, Path], Path]


def model_of(make: Callable[[Path], Path]) -> Maker:
    """Return a maker for all classes that a model of a family has."""
    return lambda _kind, folder: make(folder)


MODELS: dict[str, Maker] = {
    "StableDiffusionImg2ImgPipeline": model_of(tiny_sd),
    "StableDiffusionInpaintPipeline": model_of(tiny_sd),
    "StableDiffusionXLImg2ImgPipeline": model_of(tiny_sdxl),
    "StableDiffusionXLInpaintPipeline": model_of(tiny_sdxl),
    "StableDiffusion3Img2ImgPipeline": model_of(families.tiny_sd3),
    "StableDiffusion3InpaintPipeline": model_of(families.tiny_sd3),
    "FluxImg2ImgPipeline": model_of(families.tiny_flux),
    "FluxInpaintPipeline": model_of(families.tiny_flux),
    "FluxFillPipeline": model_of(families.tiny_fill),
    "FluxKontextPipeline": model_of(families.tiny_kontext),
    "FluxKontextInpaintPipeline": model_of(families.tiny_kontext),
    "Flux2Pipeline": model_of(families.tiny_flux2),
    "Flux2KleinPipeline": model_of(families.tiny_klein),
    "Flux2KleinInpaintPipeline": model_of(families.tiny_klein),
    "QwenImageImg2ImgPipeline": model_of(families.tiny_qwen_image),
    "QwenImageInpaintPipeline": model_of(families.tiny_qwen_image),
    "QwenImageEditPipeline": model_of(families.tiny_qwen_edit),
    "QwenImageEditInpaintPipeline": model_of(families.tiny_qwen_edit),
    "QwenImageEditPlusPipeline": model_of(families.tiny_qwen_edit_plus),
    "ZImageImg2ImgPipeline": model_of(families.tiny_z_image),
    "ZImageInpaintPipeline": model_of(families.tiny_z_image),
    "StableDiffusionPAGImg2ImgPipeline": tiny.tiny_pag,
    "StableDiffusionPAGInpaintPipeline": tiny.tiny_pag,
    "StableDiffusionXLPAGImg2ImgPipeline": tiny.tiny_pag,
    "StableDiffusionXLPAGInpaintPipeline": tiny.tiny_pag,
    "StableDiffusion3PAGImg2ImgPipeline": tiny.tiny_pag,
    "ChromaImg2ImgPipeline": tiny.tiny_chroma,
    "ChromaInpaintPipeline": tiny.tiny_chroma,
    "Flux2KleinKVPipeline": tiny.tiny_klein_variant,
    "KandinskyImg2ImgCombinedPipeline": tiny.tiny_kandinsky,
    "KandinskyInpaintCombinedPipeline": tiny.tiny_kandinsky,
    "KandinskyV22Img2ImgCombinedPipeline": tiny.tiny_kandinsky22,
    "KandinskyV22InpaintCombinedPipeline": tiny.tiny_kandinsky22,
    "Kandinsky3Img2ImgPipeline": tiny.tiny_kandinsky3,
    "Kandinsky5I2IPipeline": tiny.tiny_kandinsky5,
    "IFImg2ImgPipeline": tiny.tiny_if,
    "IFInpaintingPipeline": tiny.tiny_if,
    "AmusedImg2ImgPipeline": tiny.tiny_amused,
    "AmusedInpaintPipeline": tiny.tiny_amused,
    "SanaSprintImg2ImgPipeline": tiny.tiny_sana_sprint,
    "ZImageOmniPipeline": tiny.tiny_z_image_omni,
    "LongCatImageEditPipeline": tiny.tiny_longcat,
    "BriaFiboEditPipeline": tiny.tiny_fibo_edit,
}
# Settings of the transformer that the installed diffusers reads and that the class of the transformer does not have.
MISSING_SETTINGS = {"ChromaInpaintPipeline": {"guidance_embeds": False}}
# Classes of which transformers or diffusers load a part with torchvision only, which the tests do without.
WITH_TORCHVISION = (
    "BriaFibo2Pipeline",
    "DreamLiteMobilePipeline",
    "DreamLitePipeline",
    "GlmImagePipeline",
    "JoyImageEditPipeline",
    "JoyImageEditPlusPipeline",
    "OmniGenPipeline",
    "QwenImage21Pipeline",
)
# Of classes whose prompts have a form.
PROMPTS = {"BriaFiboEditPipeline": '{"edit_instruction": "red"}'}
# Of classes that convert their inputs to it.
DTYPES = {"ZImageOmniPipeline": "bfloat16"}
IMAGE_ARGUMENTS, MASK_ARGUMENTS = ("image", "images", "input_images"), ("mask_image", "mask")


@contextmanager
def small_images() -> Iterator[None]:
    """Let the pipelines that work at a megapixel work at 64 x 64 pixels."""

    def dimensions(_area: int, _ratio: float) -> tuple[int, int]:
        return SIDE, SIDE

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline_longcat_image_edit, "calculate_dimensions", dimensions)
        patch.setattr(pipeline_qwenimage_edit_plus, "calculate_dimensions", dimensions)
        for module in (pipeline_qwenimage_edit, pipeline_qwenimage_edit_inpaint):
            patch.setattr(module, "calculate_dimensions", lambda *_: (SIDE, SIDE, None))
        yield


def measure(name: str, folder: Path) -> Row:
    """Run jobs of every task of a class alone and together, and compare them with the pipeline called directly."""
    with small_images():
        return _measure(name, folder)


def _measure(name: str, folder: Path) -> Row:
    kind = getattr(diffusers, name)
    model_folder = MODELS[name](kind, folder)
    dtype = DTYPES.get(name, "float32")
    model = load_model(ModelConfig(name="tiny", source=str(model_folder), dtype=dtype), device="cpu")
    stock = kind.from_pretrained(model_folder, dtype=getattr(torch, dtype), **image_only_processor(str(model_folder)))
    stock.set_progress_bar_config(disable=True)
    if name in MISSING_SETTINGS:
        stock.transformer.register_to_config(**MISSING_SETTINGS[name])
    if isinstance(stock, diffusers.Kandinsky5I2IPipeline):
        stock.resolutions = model._pipelines[Task.EDIT].resolutions = [(SIDE, SIDE)]
    tasks = tuple(task for task in model.card.tasks if model.family.pipelines.get(task) is kind)
    alone = together = 0
    merges = False
    for task in tasks:
        specs = jobs_of(name, task, model)
        jobs = [(spec, inputs_of(spec)) for spec in specs]
        engine = Engine(slots=8)
        results = run_on(engine, model, jobs)
        calls_of_each = 0
        for job, result in zip(jobs, results, strict=True):
            single = Engine(slots=1)
            [lone] = run_on(single, model, [job])
            calls_of_each += single.calls_run["denoise"]
            expected = call_stock(stock, job[0])
            alone = max(alone, largest_difference(lone, expected))
            together = max(together, largest_difference(result, expected))
        assert len({result.tobytes() for result in results}) == len(jobs), "every parameter must change the pixels"
        merges = merges or engine.calls_run["denoise"] < calls_of_each
    return Row(tasks, merges, alone, together)


def jobs_of(name: str, task: Task, model: Model) -> list[JobSpec]:
    """Return three jobs that differ in seed, prompt, steps, strength and guidance scale."""
    card = model.card
    scale = max(2.0, card.default_guidance_scale) if card.guidance else 1.0
    common = {"task": task, "width": SIDE, "height": SIDE, "scheduler": card.default_scheduler}
    region = InpaintRegion(mask="1" * 64, canvas=(SIDE, SIDE), box=(0, 0, SIDE, SIDE)) if task is Task.INPAINT else None
    full = task in card.full_strength
    return [
        make_spec(
            **common,
            region=region,
            seed=i,
            negative_prompt="fog" if name in PROMPTS else "",
            prompt=PROMPTS.get(name, f"house {i}"),
            num_inference_steps=2,
            strength=1.0 if full else (1.0, 0.6, 1.0)[i],
            guidance_scale=scale + (i == 2) if card.guidance else 1.0,
        )
        for i in range(3)
    ]


def image_of(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), np.uint8))


def mask() -> Image.Image:
    drawn = Image.new("L", (SIDE, SIDE))
    drawn.paste(255, (8, 16, 40, 48))
    return drawn


def inputs_of(spec: JobSpec) -> Inputs:
    masked = to_tensor(mask()) if spec.task is Task.INPAINT else None
    return Inputs(to_tensor(image_of(spec.seed)), masked)


def call_stock(pipeline: DiffusionPipeline, spec: JobSpec) -> np.ndarray:
    """Return the pixels of a pipeline that is called directly, with the arguments that its documentation has."""
    takes = inspect.signature(pipeline.__call__).parameters
    image: Any = image_of(spec.seed)
    wanted: dict[str, Any] = {
        "prompt": spec.prompt,
        "strength": getattr(spec, "strength", None),
        "width": spec.width,
        "height": spec.height,
        "use_resolution_binning": False,
        "num_inference_steps": spec.num_inference_steps,
        "guidance_scale": spec.guidance_scale,
        "generator": torch.Generator().manual_seed(spec.seed),
    }
    if spec.negative_prompt:
        wanted["negative_prompt"] = spec.negative_prompt
    if "true_cfg_scale" in takes and (takes["true_cfg_scale"].default or 0) > 1:
        wanted |= {"true_cfg_scale": spec.guidance_scale, "negative_prompt": " "}
        del wanted["guidance_scale"]
    if "_auto_resize" in takes:
        wanted |= {"_auto_resize": False, "max_area": spec.width * spec.height}
    if isinstance(pipeline, diffusers.OmniGenPipeline):
        wanted["prompt"] = f"<img><|image_1|></img> {spec.prompt}"
    name = next(name for name in IMAGE_ARGUMENTS if name in takes)
    wanted[name] = [image] if name != "image" or pipeline.__class__.__name__ in LISTS else image
    if spec.task is Task.INPAINT:
        wanted[next(name for name in MASK_ARGUMENTS if name in takes)] = mask()
    return np.asarray(pipeline(**{name: value for name, value in wanted.items() if name in takes})[0][0])


# Classes whose `image` is a list.
LISTS = (
    "Flux2KleinKVPipeline",
    "Flux2KleinPipeline",
    "Flux2Pipeline",
    "QwenImageEditPlusPipeline",
    "ZImageOmniPipeline",
)
