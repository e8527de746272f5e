"""The detail pass: parts of a result are found by words, inpainted at the native size of the model, and composited."""

from typing import Any

import numpy as np
from PIL import Image

from img2img.domain.conditioning import InpaintRegion
from img2img.domain.geometry import expand_box, working_size
from img2img.domain.masks import MaskQuery
from img2img.domain.refinements import FIRST_PASS_ONLY, Refinement
from img2img.domain.spec import ControlledSpec, GenerationSpec, InpaintSpec

from ..engine.task import EngineTask, TaskFunction
from ..images.inpaint_canvas import InpaintCanvas
from ..images.inputs import Inputs, to_pixels, to_tensor
from ..images.masks import Thing, grown
from ..images.png import Pixels
from .denoise import denoise
from .model import Model
from .prepared_job import prepare

# Fields of a job that its parts do not have. Each of them is inpainted from the finished image.
NOT_OF_PARTS = frozenset({"task", "refine", "num_images", *FIRST_PASS_ONLY})


def refined(model: Model, spec: ControlledSpec, inputs: Inputs, index: int, function: TaskFunction) -> TaskFunction:
    """Return the function that computes one result image and its detail pass: it returns `Pixels`.

    Args:
        function: Computes the image without it.
    """
    adapters = model.adapters.for_job(spec, inputs)  # type: ignore[arg-type]
    seed, subseed = spec.image_seed(index), spec.image_subseed(index)

    def run(engine_task: EngineTask) -> Pixels:
        pixels = to_pixels(function(engine_task))
        image = Image.fromarray(inputs.canvas.paste(pixels) if inputs.canvas else pixels)
        last = spec.steps_run + spec.refine_steps
        engine_task.steps_before = spec.steps_run
        for refinement in spec.refine:
            query = MaskQuery(text=refinement.detect, threshold=refinement.threshold)
            things = model.segmenters.find(image, query)
            for thing in things[: refinement.max]:
                part, canvas = part_of(spec, refinement, thing, image, model)
                # There can be more parts than steps were announced for.
                engine_task.steps_before = min(engine_task.steps_before, last - part.steps_run)
                # Guidance may have been turned off at the end of the steps before.
                engine_task.conditional = None
                view, mask = canvas.model_input((part.width, part.height))
                seen = Inputs(to_tensor(view), to_tensor(mask), canvas, image_prompts=inputs.image_prompts)
                job = prepare(model, part, seen, seed, subseed)
                result = to_pixels(denoise(model, part, seen, job, engine_task, adapters))
                engine_task.steps_before += part.steps_run
                image = Image.fromarray(canvas.paste(result))
        engine_task.step = last
        return np.asarray(image)

    return run


def part_of(
    spec: ControlledSpec, refinement: Refinement, thing: Thing, image: Image.Image, model: Model
) -> tuple[InpaintSpec, InpaintCanvas]:
    """Return the job that inpaints one part of an image, and its canvas."""
    mask = Image.fromarray(_mask_of(thing, refinement.grow).astype(np.uint8) * 255)
    left, top, right, bottom = mask.getbbox() or (0, 0, *image.size)
    box = expand_box((left, top, right, bottom), refinement.padding, image.size, model.card)
    width, height = working_size(box, model.card)
    fields: dict[str, Any] = {
        name: getattr(spec, name) for name in GenerationSpec.model_fields if name not in NOT_OF_PARTS
    }
    own = refinement.model_dump(
        include={"strength", "prompt", "negative_prompt", "num_inference_steps"}, exclude_none=True
    )
    region = InpaintRegion(canvas=image.size, box=box, blur=refinement.blur, padding=refinement.padding)
    prompt = {"prompt": getattr(spec, "prompt", "")}
    part = InpaintSpec(**fields | prompt | own | {"width": width, "height": height, "image": None, "region": region})
    return part, InpaintCanvas(image, mask, region)


def _mask_of(thing: Thing, grow: int) -> np.ndarray:
    """Return the mask of a part, grown or shrunk, but not to nothing."""
    mask = grown(thing.mask, grow)
    return mask if mask.any() else thing.mask
