"""Tiny Stable Diffusion models in the engine and as stock pipelines, to compare jobs with parameters."""

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from PIL import Image

from img2img.domain.conditioning import InpaintRegion
from img2img.domain.model_config import ModelConfig
from img2img.domain.parameters import Scheduler, Task
from img2img.domain.spec import JobSpec
from img2img.worker.images.inputs import Inputs, to_tensor
from img2img.worker.pipelines.conditioning.prompt_embeddings import add_text_model
from img2img.worker.pipelines.model import load_model
from tests.support.engines import run_tasks
from tests.support.models.tiny_models import tiny_fast_vae, tiny_sd, tiny_sdxl
from tests.support.specs import make_spec

SIDE = 32
# Far below half a step of an 8-bit pixel, 0.002.
BATCH_TOLERANCE = 1e-5
REGION = InpaintRegion(mask="1" * 64, canvas=(SIDE, SIDE), box=(0, 0, SIDE, SIDE))
STOCK = {
    tiny_sd: {
        Task.IMG2IMG: diffusers.StableDiffusionImg2ImgPipeline,
        Task.INPAINT: diffusers.StableDiffusionInpaintPipeline,
    },
    tiny_sdxl: {
        Task.IMG2IMG: diffusers.StableDiffusionXLImg2ImgPipeline,
        Task.INPAINT: diffusers.StableDiffusionXLInpaintPipeline,
    },
}


class Served:
    """A tiny model, in the engine and as stock pipelines."""

    def __init__(self, folder: Path, kinds: dict[Task, Any]) -> None:
        fast = tiny_fast_vae(folder / "fast")
        self.fast_vae = diffusers.AutoencoderTiny.from_pretrained(fast)
        self.model = load_model(ModelConfig(name="tiny", source=str(folder), fast_vae=str(fast)), device="cpu")
        self.stock = {task: kind.from_pretrained(folder) for task, kind in kinds.items()}
        for pipeline in self.stock.values():
            add_text_model(pipeline)
        self.image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (SIDE, SIDE, 3), np.uint8))
        self.mask = Image.new("L", (SIDE, SIDE))
        self.mask.paste(255, (8, 8, 24, 24))

    def reference(self, spec: JobSpec, pipeline: Any = None, **parameters: Any) -> torch.Tensor:
        """Return the result of a stock pipeline, by default that of the task."""
        pipeline = pipeline or self.stock[spec.task]
        pipeline.set_progress_bar_config(disable=True)
        schedulers = {
            Scheduler.DDIM: diffusers.DDIMScheduler,
            Scheduler.TCD: diffusers.TCDScheduler,
            Scheduler.EULER_A: diffusers.EulerAncestralDiscreteScheduler,
        }
        pipeline.scheduler = schedulers[spec.scheduler].from_config(pipeline.scheduler.config)
        mask = {"mask_image": to_tensor(self.mask), "width": SIDE, "height": SIDE}
        own, pipeline.vae = pipeline.vae, self.fast_vae if spec.fast_vae else pipeline.vae
        arguments = {
            "prompt": spec.prompt,
            "negative_prompt": spec.negative_prompt or None,
            "image": to_tensor(self.image),
            "strength": spec.strength,
            "num_inference_steps": spec.num_inference_steps,
            "guidance_scale": spec.guidance_scale,
            "generator": torch.Generator().manual_seed(spec.seed),
            "output_type": "pt",
            **(mask if spec.task is Task.INPAINT and not spec.region.is_soft else {}),
        }
        image: torch.Tensor = pipeline(**{**arguments, **parameters}).images
        pipeline.vae = own
        return image

    def run(self, *specs: JobSpec) -> list[torch.Tensor]:
        mask = to_tensor(self.mask)
        inputs = [Inputs(to_tensor(self.image), mask if spec.task is Task.INPAINT else None) for spec in specs]
        return run_tasks(self.model, list(zip(specs, inputs, strict=True)))

    def tasks_with(self, name: str) -> tuple[Task, ...]:
        """Return the tasks of the stock pipelines that take the parameter, by the model card."""
        return tuple(task for task in self.model.card.parameters.get(name, ()) if task in self.stock)


def job(**changes: Any) -> JobSpec:
    return make_spec(**{"strength": 0.6, "num_inference_steps": 8, "width": SIDE, "height": SIDE, **changes})


def check_exact(served: Served, name: str, values: list[Any], **changes: Any) -> None:
    """Assert that jobs with and without the parameter have the stock pipeline's pixels, alone and in one batch."""
    tasks = served.tasks_with(name)
    specs = [job(task=task, region=REGION, **changes, **{name: value}) for task in tasks for value in values]
    plain = [job(task=task, region=REGION, **changes) for task in tasks]
    batch = served.run(*specs, *plain)
    for spec, batched in zip(specs, batch, strict=False):
        expected = served.reference(spec, **{name: getattr(spec, name)})
        [alone] = served.run(spec)
        assert torch.equal(alone, expected), spec
        torch.testing.assert_close(batched, expected, rtol=0, atol=BATCH_TOLERANCE)
    for spec, batched in zip(plain, batch[len(specs) :], strict=True):
        torch.testing.assert_close(batched, served.reference(spec), rtol=0, atol=BATCH_TOLERANCE)
    assert len({image.numpy().tobytes() for image in batch}) == len(batch), "every value has an effect"
