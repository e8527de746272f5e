"""Resolves the defaults of a request and checks its values against the model card."""

import secrets
from typing import Any

from img2img.domain.geometry import kept_share, nearest_bucket, working_size
from img2img.domain.model_card import ModelCard
from img2img.domain.parameters import (
    COMBINED_SCHEDULERS,
    MAX_SCHEDULE,
    MAX_SEED,
    MAX_STEPS,
    MAX_STEPS_OF,
    NOISY_SCHEDULERS,
    Scheduler,
    Sigmas,
)
from img2img.domain.spec import ControlledSpec, GenerationSpec, JobSpec
from img2img.errors import ParameterError

from ..schemas.requests import Img2ImgRequest
from .refinements import check_without_guidance
from .task_selection import REQUIREMENTS, given_fields

# Share of an image that a default size keeps at least, where the sizes of the model allow it.
MIN_KEPT_SHARE = 0.8


def resolve_generation(request: Img2ImgRequest, card: ModelCard, *, is_tiled: bool = False) -> dict[str, Any]:
    """Return the fields of a spec that need no image: guidance, steps, scheduler and seed.

    Args:
        is_tiled: Whether the result is made in more than one tile.

    Raises:
        ParameterError: The model or the scheduler does not support a value.
    """
    scheduler, sigmas = _resolve_sigmas(request, resolve_scheduler(request, card, is_tiled=is_tiled), card)
    guidance_scale = request.guidance_scale or (card.default_guidance_scale if card.guidance else 1.0)
    steps = resolve_steps(request.num_inference_steps, scheduler, card)
    seed = resolve_seed(request.seed, request.num_images)
    check_resolved(request, card, guidance_scale, scheduler)
    return {
        "guidance_scale": guidance_scale,
        "guidance_rows": card.guidance_rows,
        "num_inference_steps": steps,
        "scheduler": scheduler,
        "sigmas": sigmas,
        "seed": seed,
        "subseed": resolve_seed(request.subseed, request.num_images, "subseed") if request.subseed_strength else None,
    }


def resolve_scheduler(request: Img2ImgRequest, card: ModelCard, *, is_tiled: bool = False) -> Scheduler:
    """Return the scheduler of the request, or the model's default, or for tiles its first one that is suitable."""
    suitable = [known for known in card.schedulers if not (is_tiled and known in NOISY_SCHEDULERS)]
    # With other schedulers tiles agree less where they overlap. Better than none, if the model has no other.
    suitable = suitable or list(card.schedulers)
    if request.scheduler is None:
        if card.default_scheduler in suitable:
            return card.default_scheduler
        return Scheduler.EULER if Scheduler.EULER in suitable else suitable[0]
    if request.scheduler not in card.schedulers:
        message = f"With the model {card.name}, input should be one of: {', '.join(card.schedulers)}"
        raise ParameterError("scheduler", message, got=request.scheduler.value)
    if request.scheduler not in suitable:
        message = (
            "This result is made in tiles, and with this scheduler each tile gets different noise: "
            f"input should be one of: {', '.join(suitable)}"
        )
        raise ParameterError("scheduler", message, got=request.scheduler.value)
    return request.scheduler


def _resolve_sigmas(request: Img2ImgRequest, scheduler: Scheduler, card: ModelCard) -> tuple[Scheduler, Sigmas | None]:
    """Return the scheduler and its sigmas; None: those of the scheduler itself."""
    sigmas = request.sigmas
    if sigmas is None:
        is_default = request.scheduler is None and scheduler is card.default_scheduler
        return scheduler, card.default_sigmas if is_default else None
    plain, included = COMBINED_SCHEDULERS.get(scheduler, (scheduler, None))
    if included is not None and request.scheduler is not None and sigmas is not included:
        message = f"The scheduler {scheduler} has {included} sigmas: leave it out, or give the scheduler {plain}"
        raise ParameterError("sigmas", message, got=sigmas.value)
    supported = card.scheduler_sigmas.get(plain, ())
    if sigmas not in supported:
        others = [name for name, values in card.scheduler_sigmas.items() if sigmas in values]
        message = f"With the scheduler {plain}, input should be " + (
            f"one of: {', '.join(supported)}" if supported else "absent"
        )
        known = f"; {sigmas} goes with: {', '.join(others)}" if others else ""
        raise ParameterError("sigmas", message + known, got=sigmas.value)
    return plain, sigmas


def check_resolved(request: Img2ImgRequest, card: ModelCard, guidance_scale: float, scheduler: Scheduler) -> None:
    """Raise ParameterError for a field that has no effect with the resolved guidance or scheduler."""
    for name, value in given_fields(request):
        requires = REQUIREMENTS[name]
        if requires.guidance and guidance_scale == 1:
            message = "Without guidance it has no effect: leave it out, or give a `guidance_scale` above 1"
            raise ParameterError(name, message, got=value)
        if name == "refine" and guidance_scale == 1:
            check_without_guidance(request)
        if requires.by_scheduler:
            schedulers = card.scheduler_parameters.get(name, ())
            if scheduler not in schedulers:
                choices = f", or give one of: {', '.join(schedulers)}" if schedulers else ""
                message = f"With the scheduler {scheduler} {requires.not_with_scheduler}: leave it out{choices}"
                raise ParameterError(name, message, got=value)


def resolve_steps(given: int | None, scheduler: Scheduler, card: ModelCard) -> int:
    """Return the number of steps: of the request or the model's default, at most the scheduler's maximum."""
    most = MAX_STEPS_OF.get(scheduler, MAX_STEPS)
    if given is None:
        return min(card.default_steps, most)
    if given > most:
        message = f"With the scheduler {scheduler}, input should be at most {most}"
        raise ParameterError("num_inference_steps", message, got=given)
    return given


def check_schedule(spec: JobSpec) -> None:
    """Raise ParameterError if a schedule of `exact_steps` is longer than the scheduler can make it."""
    if not isinstance(spec, GenerationSpec):
        return
    schedules = {"exact_steps": spec.schedule_steps}
    if isinstance(spec, ControlledSpec):
        parts = enumerate(spec.refine)
        schedules |= {f"refine.{index}.strength": spec.steps_of_part(part)[1] for index, part in parts}
    most = MAX_STEPS_OF.get(spec.scheduler, MAX_SCHEDULE)
    for field, steps in schedules.items():
        if steps > most:
            message = (
                f"With `exact_steps` it needs a schedule of more than the {most} steps that {spec.scheduler} can have: "
                "give a higher strength, or less `num_inference_steps`"
            )
            raise ParameterError(field, message)


def resolve_seed(seed: int | None, num_images: int, field: str = "seed") -> int:
    """Return the seed of the first image: of the request, or a random one."""
    if seed is None:
        return secrets.randbelow(2**32)
    most = MAX_SEED - (num_images - 1)
    if seed > most:
        raise ParameterError(field, f"With {num_images} images, input should be at most {most}", got=seed)
    return seed


def resolve_size(width: int | None, height: int | None, image: tuple[int, int], card: ModelCard) -> tuple[int, int]:
    """Return width and height of the result.

    A side that is not given follows from the other one and the image's aspect ratio. If none is given, they are those
    of the nearest bucket, or for an image that is much longer than any bucket, of about its own aspect ratio.
    """
    if width is None and height is None:
        size = nearest_bucket(card.sizes, *image)
        if kept_share(image, size) >= MIN_KEPT_SHARE:
            return size
        width, height = working_size((0, 0, *image), card)
        return nearest_side(width, card), nearest_side(height, card)
    aspect_ratio = image[0] / image[1]
    if width is None:
        assert height is not None
        _check_side("height", height, card)
        width = _follow("width", height * aspect_ratio, card)
    elif height is None:
        _check_side("width", width, card)
        height = _follow("height", width / aspect_ratio, card)
    else:
        _check_side("width", width, card)
        _check_side("height", height, card)
    return width, height


def nearest_side(pixels: float, card: ModelCard) -> int:
    """Return the nearest side that the model can make."""
    multiple = card.size_multiple
    lowest = -(-card.min_size // multiple)
    highest = card.max_size // multiple
    return multiple * min(max(round(pixels / multiple), lowest), highest)


def _check_side(field: str, pixels: int, card: ModelCard) -> None:
    nearest = nearest_side(pixels, card)
    if pixels != nearest:
        message = (
            f"With the model {card.name}, input should be a multiple of {card.size_multiple} "
            f"from {card.min_size} to {card.max_size}; the nearest is {nearest}"
        )
        raise ParameterError(field, message, got=pixels)


def _follow(field: str, pixels: float, card: ModelCard) -> int:
    side = nearest_side(pixels, card)
    if abs(side - pixels) >= card.size_multiple:
        message = (
            f"By the image's aspect ratio it would be {round(pixels)}, and the model {card.name} "
            f"makes {card.min_size} to {card.max_size}: give both sides"
        )
        raise ParameterError(field, message)
    return side
