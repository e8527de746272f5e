"""Checks of `refine`: whether the model can find the parts, and generate them again as the request asks."""

from collections.abc import Iterable

from img2img.domain.model_card import ModelCard
from img2img.domain.parameters import MAX_STEPS, MAX_STEPS_OF, Task
from img2img.domain.refinements import FIRST_PASS_ONLY
from img2img.domain.requirements import OptionalParameter, requirements
from img2img.errors import ParameterError

from ..schemas.requests import Img2ImgRequest
from .masks import check_words

# Fields that not every pipeline takes, of those that act in the parts as well.
OF_PARTS = frozenset(
    name for name, requires in requirements(Img2ImgRequest).items() if isinstance(requires, OptionalParameter)
).difference(FIRST_PASS_ONLY)


def check_refinements(request: Img2ImgRequest, card: ModelCard, given: Iterable[str]) -> None:
    """Raise ParameterError for the first entry of `refine` that the model does not support.

    Args:
        given: The fields of the request that ask for something.
    """
    if not request.refine:
        return
    for name in given:
        is_adapter = name in ("loras", "image_prompts")
        tasks = card.adapter_tasks if is_adapter else card.parameters.get(name, ())
        if (is_adapter or name in OF_PARTS) and Task.INPAINT not in tasks:
            message = f"The model {card.name} inpaints without {name}, and `refine` inpaints; leave one of the two out"
            raise ParameterError(name, message)
    for index, refinement in enumerate(request.refine):
        field = f"refine.{index}"
        check_words(refinement.detect, card, f"{field}.detect")
        if Task.INPAINT in card.full_strength and refinement.strength != 1:
            message = f"With the model {card.name}, inpainting starts from pure noise: input should be 1"
            raise ParameterError(f"{field}.strength", message, got=refinement.strength)
        if refinement.negative_prompt and not card.negative_prompt:
            message = f"The model {card.name} takes no negative prompt; leave it out"
            raise ParameterError(f"{field}.negative_prompt", message)
        most = MAX_STEPS_OF.get(request.scheduler or card.default_scheduler, MAX_STEPS)
        if (refinement.num_inference_steps or 0) > most:
            message = f"With this scheduler, input should be at most {most}"
            raise ParameterError(f"{field}.num_inference_steps", message, got=refinement.num_inference_steps)


def check_without_guidance(request: Img2ImgRequest) -> None:
    """Raise ParameterError for a negative prompt of a part, which has no effect without guidance."""
    for index, refinement in enumerate(request.refine):
        if refinement.negative_prompt:
            message = "Without guidance it has no effect: leave it out, or give a `guidance_scale` above 1"
            raise ParameterError(f"refine.{index}.negative_prompt", message, got=refinement.negative_prompt)
