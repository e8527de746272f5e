"""Which task a request asks for, and whether the model at hand can do it. What cannot be honoured is refused."""

from collections.abc import Collection

from img2img.domain.conditioning import ControlType
from img2img.domain.model_card import ModelCard
from img2img.domain.parameters import Task
from img2img.errors import ParameterError

from ..schemas.requests import Img2ImgRequest

# What a task does with the fields beside the usual: all that it cannot honour. A field counts as given if it differs
# from its default.
_REFUSED: dict[Task, frozenset[str]] = {
    Task.IMG2IMG: frozenset({"mask_blur", "mask_padding", "image_guidance_scale"}),
    Task.INPAINT: frozenset({"image_guidance_scale", "denoising_start"}),
    Task.CONTROL: frozenset({"mask_blur", "mask_padding", "image_guidance_scale", "denoising_start"}),
    Task.EDIT: frozenset(
        {"prompt", "strength", "mask", "mask_blur", "mask_padding", "outpaint", "controls", "denoising_start"}
    ),
    Task.UPSCALE: frozenset(
        {"width", "height", "resize", "mask", "mask_blur", "mask_padding", "outpaint", "controls"}
        | {"image_guidance_scale", "denoising_start"}
    ),
}
_BECAUSE: dict[Task, str] = {
    Task.IMG2IMG: "it belongs to `mask`, `outpaint` or `instruction`, and none of them is given",
    Task.INPAINT: "it belongs to `instruction`, not to `mask` or `outpaint`",
    Task.CONTROL: "it cannot be combined with a request without `image`",
    Task.EDIT: "it cannot be combined with `instruction`",
    Task.UPSCALE: "it cannot be combined with `upscale`",
}
_NEEDS: dict[Task, tuple[str, str]] = {
    Task.IMG2IMG: ("image", "image-to-image"),
    Task.INPAINT: ("mask", "inpainting and outpainting"),
    Task.CONTROL: ("image", "making a picture from controls alone"),
    Task.EDIT: ("instruction", "editing by instruction"),
    Task.UPSCALE: ("upscale", "upscaling"),
}


def choose_task(request: Img2ImgRequest) -> Task:
    """The task that the request asks for. Raises ParameterError where its fields do not go together."""
    given = {name for name in type(request).model_fields if _is_given(request, name)}
    if "instruction" in given and "upscale" in given:
        raise ParameterError("upscale", "It cannot be combined with `instruction`; upscale the result in a second job")
    task = _task_of(given)
    if task is not Task.CONTROL and request.image is None:
        raise ParameterError("image", "Field required")
    refused = sorted(given & _REFUSED[task])
    if refused == ["denoising_start"]:
        raise ParameterError("denoising_start", "It goes with plain image-to-image only; leave it out")
    if refused:
        raise ParameterError(refused[0], f"Input should be absent: {_BECAUSE[task]}")
    if "denoising_start" in given and not given.isdisjoint({"strength", "controls"}):
        other = "strength" if "strength" in given else "controls"
        raise ParameterError("denoising_start", f"It cannot be combined with `{other}`; leave one of the two out")
    if task is Task.CONTROL and request.strength not in (None, 1):
        raise ParameterError("strength", "Without `image` there is nothing to keep: input should be 1 or absent")
    return task


def _task_of(given: Collection[str]) -> Task:
    if "instruction" in given:
        return Task.EDIT
    if "upscale" in given:
        return Task.UPSCALE
    if "mask" in given or "outpaint" in given:
        return Task.INPAINT
    return Task.IMG2IMG if "image" in given or "controls" not in given else Task.CONTROL


def _is_given(request: Img2ImgRequest, name: str) -> bool:
    value = getattr(request, name)
    if name == "outpaint" and value is not None:
        return bool(value.any)
    return bool(value != type(request).model_fields[name].default)


def card_for(request: Img2ImgRequest, card: ModelCard) -> ModelCard:
    """The card, or where an upscaler will do the work, the card with what holds for that."""
    upscaler = card.upscaler(request.upscale)
    if upscaler is None:
        return card
    defaults = upscaler.model_dump(exclude={"times", "native_size", "size_multiple", "work"})
    return card.model_copy(update={**defaults, "negative_prompt": True, "guidance": True, "guidance_rows": 2})


def check_model(request: Img2ImgRequest, task: Task, card: ModelCard) -> None:
    """Raises ParameterError for the first thing that the model cannot do, saying what it can."""
    if task not in card.tasks:
        field, what = _NEEDS[task]
        can = ", ".join(_NEEDS[known][1] for known in card.tasks)
        raise ParameterError(field, f"The model {card.name} has nothing for {what}; it can do: {can}")
    if request.upscale and request.upscale not in card.upscales:
        can = ", ".join(map(str, card.upscales))
        raise ParameterError("upscale", f"With the model {card.name}, input should be one of: {can}")
    if card.upscaler(request.upscale):
        _check_upscaler(request)
    _check_controls(request, card)
    if request.image_prompts and not card.image_prompts:
        raise ParameterError("image_prompts", f"The model {card.name} has no IP-Adapter; leave them out")
    if task not in card.adapter_tasks and (request.image_prompts or (request.loras and card.loras)):
        can = ", ".join(_NEEDS[known][1] for known in card.adapter_tasks)
        field = "image_prompts" if request.image_prompts else "loras"
        message = f"With the model {card.name} they go with {can}, and not with {_NEEDS[task][1]}; leave them out"
        raise ParameterError(field, message)
    for index, lora in enumerate(request.loras):
        if lora.name not in card.loras:
            raise ParameterError(f"loras.{index}.name", _choices(card, "LoRA", card.loras), got=lora.name)
        if lora.name in [before.name for before in request.loras[:index]]:
            raise ParameterError(f"loras.{index}.name", "This LoRA is named twice", got=lora.name)
    if request.denoising_start is not None and not card.denoising_start:
        message = (
            f"The model {card.name} has no `denoising_start`, which is for SDXL and its refiner; give a `strength`"
        )
        raise ParameterError("denoising_start", message, got=request.denoising_start)
    if request.negative_prompt and not card.negative_prompt:
        raise ParameterError("negative_prompt", f"The model {card.name} takes no negative prompt; leave it out")
    if request.prompt_weighting and not card.prompt_weighting:
        raise ParameterError("prompt_weighting", f"The model {card.name} knows no weights in prompts; leave it out")
    if request.guidance_scale not in (None, 1) and not card.guidance:
        message = f"The model {card.name} was made to run without guidance: input should be 1 or absent"
        raise ParameterError("guidance_scale", message, got=request.guidance_scale)
    if request.image_guidance_scale is not None and not card.image_guidance:
        message = f"The model {card.name} takes no guidance by the picture; leave it out"
        raise ParameterError("image_guidance_scale", message, got=request.image_guidance_scale)


def _check_upscaler(request: Img2ImgRequest) -> None:
    why = {
        "strength": "it begins with pure noise, and the picture steers every step",
        "image_prompts": "it has no IP-Adapter",
        "loras": "LoRAs are for the model's own denoiser",
    }
    for name, reason in why.items():
        if _is_given(request, name):
            message = f"A super-resolution model enlarges {request.upscale} times here: {reason}; leave it out"
            raise ParameterError(name, message)


def _check_controls(request: Img2ImgRequest, card: ModelCard) -> None:
    for index, control in enumerate(request.controls):
        if control.type not in card.controls:
            raise ParameterError(f"controls.{index}.type", _choices(card, "ControlNet", card.controls), control.type)
        if control.preprocess and control.type not in (*card.preprocessors, ControlType.TILE):
            message = f"The model {card.name} cannot make {control.type} maps: send the map, with `preprocess: false`"
            raise ParameterError(f"controls.{index}.preprocess", message)
        if control.image is None and request.image is None:
            raise ParameterError(f"controls.{index}.image", "Field required where the request has no `image`")


def _choices(card: ModelCard, what: str, names: Collection[str]) -> str:
    if not names:
        return f"The model {card.name} has no {what}; leave it out"
    return f"With the model {card.name}, input should be one of: {', '.join(names)}"
