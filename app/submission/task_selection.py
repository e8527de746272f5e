"""Selection of a request's task, and the checks that its fields go with the task and the model."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from img2img.domain.embeddings import named_embeddings
from img2img.domain.model_card import ModelCard
from img2img.domain.parameters import Task
from img2img.domain.requirements import OptionalParameter, Requires, requirements
from img2img.errors import ParameterError

from ..schemas.request_fields import BackgroundPrompt
from ..schemas.requests import Img2ImgRequest
from .refinements import check_refinements

REQUIREMENTS = requirements(Img2ImgRequest)
# Of each field: the name, and the values that ask for nothing.
NOT_GIVEN = tuple(
    (name, field.default, None, REQUIREMENTS[name].neutral) for name, field in Img2ImgRequest.model_fields.items()
)
# Fields that choose another task, another area, or another prompt.
NOT_WITH_NEW_BACKGROUND = ("mask", "outpaint", "mask_padding", "upscale", "instruction", "images", "prompt")
# The field to name if a model does not have the task, and the task in words.
NAMES: dict[Task, tuple[str, str]] = {
    Task.IMG2IMG: ("image", "image-to-image"),
    Task.INPAINT: ("mask", "inpainting and outpainting"),
    Task.CONTROL: ("image", "generation from controls alone"),
    Task.EDIT: ("instruction", "editing by instruction"),
    Task.UPSCALE: ("upscale", "upscaling"),
}
# The fields by which a request selects the task.
SELECTED_BY: dict[Task, str] = {
    Task.INPAINT: "`mask` or `outpaint`",
    Task.CONTROL: "a request without `image`",
    Task.EDIT: "`instruction`",
    Task.UPSCALE: "`upscale`",
}


def choose_task(request: Img2ImgRequest) -> Task:
    """Return the task that the request selects. Raises ParameterError if its fields do not go together."""
    given = dict(given_fields(request))
    if isinstance(request.background, BackgroundPrompt):
        _check_new_background(given)
    if "instruction" in given and "upscale" in given:
        raise ParameterError("upscale", "It cannot be combined with `instruction`; upscale the result in a second job")
    task = _task_of(given)
    if task is not Task.CONTROL and request.image is None and "images" not in given:
        raise ParameterError("image", "Field required")
    for name in given:
        _check_task(name, REQUIREMENTS[name], task, given)
    if task is Task.INPAINT and "resize" in given and "controls" not in given:
        message = "The result has the size of `image`, and only images of `controls` are brought to it; leave it out"
        raise ParameterError("resize", message, got=request.resize.value)
    if task is Task.CONTROL and request.strength not in (None, 1):
        raise ParameterError("strength", "Without `image` there is nothing to keep: input should be 1 or absent")
    return task


def _check_new_background(given: Collection[str]) -> None:
    """Raise ParameterError for a field that does not go with a new background."""
    other = next((name for name in NOT_WITH_NEW_BACKGROUND if name in given), None)
    if other == "prompt":
        raise ParameterError(other, "`background` has the prompt of such a request; leave this one out")
    if other:
        raise ParameterError(other, "It cannot be combined with a new `background`; leave one of the two out")


def given_fields(request: Img2ImgRequest) -> Iterator[tuple[str, Any]]:
    """Yield name and value of the fields that differ from their default or neutral value."""
    for name, *not_given in NOT_GIVEN:
        value = getattr(request, name)
        if value not in not_given:
            yield name, value


def _task_of(given: Mapping[str, Any]) -> Task:
    if "instruction" in given:
        return Task.EDIT
    if "upscale" in given:
        return Task.UPSCALE
    if "mask" in given or "outpaint" in given or isinstance(given.get("background"), BackgroundPrompt):
        return Task.INPAINT
    return Task.IMG2IMG if "image" in given or "controls" not in given else Task.CONTROL


def _check_task(name: str, requires: Requires, task: Task, given: Collection[str]) -> None:
    if task not in requires.tasks:
        if task is Task.IMG2IMG:
            wanted = " or ".join(SELECTED_BY[other] for other in Task if other in requires.tasks)
            raise ParameterError(name, f"Input should be absent: it belongs to {wanted}, which is not given")
        raise ParameterError(name, f"Input should be absent: it cannot be combined with {SELECTED_BY[task]}")
    other = next((other for other in requires.excludes if other in given), None)
    if other:
        raise ParameterError(name, f"It cannot be combined with `{other}`; leave one of the two out")
    if requires.needs and requires.needs not in given:
        raise ParameterError(name, f"It has no effect without `{requires.needs}`; leave it out, or give both")


def check_model(request: Img2ImgRequest, task: Task, card: ModelCard) -> None:
    """Raise ParameterError for the first field that the model does not support, with the supported values."""
    if task not in card.tasks:
        field, name = NAMES[task]
        if isinstance(request.background, BackgroundPrompt):
            field = "background"
        raise ParameterError(field, f"The model {card.name} does not support {name}; it supports: {_names(card.tasks)}")
    if request.upscale and request.upscale not in card.upscales:
        supported = ", ".join(map(str, card.upscales))
        raise ParameterError("upscale", f"With the model {card.name}, input should be one of: {supported}")
    if task in card.full_strength and request.strength not in (None, 1):
        message = f"With the model {card.name}, {NAMES[task][1]} starts from pure noise: input should be 1 or absent"
        raise ParameterError("strength", message, got=request.strength)
    for name, value in given_fields(request):
        _check_capability(name, value, request, task, card)
    if request.clip_skip > card.max_clip_skip:
        message = (
            f"The text encoder of the model {card.name} has fewer layers: at most {card.max_clip_skip} can be skipped"
        )
        raise ParameterError("clip_skip", message, got=request.clip_skip)
    _check_controls(request, card)
    _check_blocks(request, card)
    if len(request.image_prompts) > card.max_image_prompts:
        most = f"at most {card.max_image_prompts}"
        raise ParameterError("image_prompts", f"The model {card.name} takes {most}; leave the others out")
    count = len(request.images) + (request.image is not None)
    if request.images and count > card.max_images:
        most = "one image" if card.max_images == 1 else f"at most {card.max_images} images, and not {count}"
        raise ParameterError("images", f"The model {card.name} takes {most}; leave the others out")
    _check_loras(request, card)
    _check_embeddings(request, card)
    check_refinements(request, card, [name for name, _ in given_fields(request)])


def _check_capability(name: str, value: Any, request: Img2ImgRequest, task: Task, card: ModelCard) -> None:
    requires = REQUIREMENTS[name]
    if requires.not_by_upscaler and card.upscaler(request.upscale):
        reason = requires.not_by_upscaler
        message = f"A super-resolution model enlarges {request.upscale} times here: {reason}; leave it out"
        raise ParameterError(name, message)
    if requires.capability and not getattr(card, requires.capability):
        raise ParameterError(name, f"The model {card.name} {requires.lacking}", got=value)
    if isinstance(requires, OptionalParameter):
        tasks = card.tasks_with(name, controls=bool(request.controls), upscale=request.upscale)
    elif requires.tasks_of_model:
        tasks = getattr(card, requires.tasks_of_model)
    else:
        return
    if not tasks:
        raise ParameterError(name, f"The model {card.name} {requires.lacking}", got=value)
    if task not in tasks:
        controls = " and `controls`" if request.controls else ""
        message = f"With the model {card.name}{controls} it goes with {_names(tasks)}, and not with {NAMES[task][1]}"
        raise ParameterError(name, f"{message}; leave it out")


def _check_blocks(request: Img2ImgRequest, card: ModelCard) -> None:
    """Check the blocks of image prompts, and the numbers of their scales."""
    for index, prompt in enumerate(request.image_prompts):
        for part, given in (prompt.blocks or {}).items():
            blocks = {f"{part}.{name}": scales for name, scales in given.items()} if isinstance(given, dict) else {}
            for name, scales in blocks.items() if isinstance(given, dict) else [(part, given)]:
                field = f"image_prompts.{index}.blocks.{name}"
                known = {block: count for block, count in card.image_prompt_blocks.items() if _is_in(block, name)}
                if not known:
                    choices = ", ".join(card.image_prompt_blocks) or "none"
                    raise ParameterError(field, f"The model {card.name} has no such block; it has: {choices}")
                [count, *others] = known.values()
                if isinstance(scales, list) and (others or len(scales) != count):
                    message = f"Give one number for each of the {count} attentions of a block, or one for all of them"
                    raise ParameterError(field, message)


def _is_in(block: str, name: str) -> bool:
    return block == name or block.startswith(f"{name}.")


def _check_controls(request: Img2ImgRequest, card: ModelCard) -> None:
    for index, control in enumerate(request.controls):
        if control.type not in card.controls:
            raise ParameterError(f"controls.{index}.type", _choices(card, "ControlNet", card.controls), control.type)
        if control.preprocess and control.type not in card.preprocessors:
            message = f"The model {card.name} cannot make {control.type} maps: send the map, with `preprocess: false`"
            raise ParameterError(f"controls.{index}.preprocess", message)
        if control.image is None and request.image is None:
            raise ParameterError(f"controls.{index}.image", "Field required where the request has no `image`")


def _check_loras(request: Img2ImgRequest, card: ModelCard) -> None:
    for index, lora in enumerate(request.loras):
        if lora.name not in card.loras:
            raise ParameterError(f"loras.{index}.name", _choices(card, "LoRA", card.loras), got=lora.name)
        if lora.name in [before.name for before in request.loras[:index]]:
            raise ParameterError(f"loras.{index}.name", "This LoRA is named twice", got=lora.name)


def _check_embeddings(request: Img2ImgRequest, card: ModelCard) -> None:
    """Check the embeddings that prompts name as `embedding:name` or, for models that can have some, as `<name>`."""
    # A super-resolution model has its own text encoder.
    names = () if card.upscaler(request.upscale) else card.embeddings
    prompts = {field: getattr(request, field) or "" for field in ("prompt", "negative_prompt", "instruction")}
    for index, refinement in enumerate(request.refine):
        for field in ("prompt", "negative_prompt"):
            prompts[f"refine.{index}.{field}"] = getattr(refinement, field) or ""
    prompts |= {f"regions.{index}.prompt": region.prompt for index, region in enumerate(request.regions)}
    for field, prompt in prompts.items():
        for written, name in named_embeddings(prompt):
            is_known = name in {known.lower() for known in names}
            if not is_known and (card.prompt_weighting or written.lower().startswith("embedding:")):
                choices = f"it has: {', '.join(names)}" if names else "it has none"
                raise ParameterError(field, f"The model {card.name} has no embedding {name}; {choices}", got=written)


def _choices(card: ModelCard, kind: str, names: Collection[str]) -> str:
    if not names:
        return f"The model {card.name} has no {kind}; leave it out"
    return f"With the model {card.name}, input should be one of: {', '.join(names)}"


def _names(tasks: Collection[Task]) -> str:
    return ", ".join(NAMES[task][1] for task in tasks)
