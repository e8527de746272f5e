"""Every default of a request made explicit, against what the model can do."""

import secrets
from collections.abc import Mapping

from img2img.domain.model_card import ModelCard, nearest_bucket
from img2img.domain.parameters import MAX_SEED, MAX_STEPS, MAX_STEPS_OF, NOISY_SCHEDULERS, Scheduler
from img2img.errors import ParameterError, Unavailable

from ..schemas.requests import Img2ImgRequest


def resolve_model(name: str | None, default: str, known: Mapping[str, ModelCard]) -> ModelCard:
    """The card of the model that a request names, or of the default."""
    card = known.get(name or default)
    if card:
        return card
    if name in (None, default):
        raise Unavailable(f"No worker has offered the model {default} yet; try again when one is up.")
    raise ParameterError("model", f"Input should be one of: {', '.join(sorted(known))}", got=name)


def resolve_scheduler(request: Img2ImgRequest, card: ModelCard, *, is_tiled: bool = False) -> Scheduler:
    """The scheduler: as asked, else the model's own, or where that does not go with tiles, its first one that does."""
    able = [known for known in card.schedulers if not (is_tiled and known in NOISY_SCHEDULERS)]
    able = able or list(card.schedulers)  # a model that has no other: its tiles agree a little less where they overlap
    if request.scheduler is None:
        if card.default_scheduler in able:
            return card.default_scheduler
        return Scheduler.EULER if Scheduler.EULER in able else able[0]
    if request.scheduler not in card.schedulers:
        message = f"With the model {card.name}, input should be one of: {', '.join(card.schedulers)}"
        raise ParameterError("scheduler", message, got=request.scheduler.value)
    if request.scheduler not in able:
        message = (
            "This result is made in tiles, and it draws new noise at every step, each tile its own: "
            f"input should be one of: {', '.join(able)}"
        )
        raise ParameterError("scheduler", message, got=request.scheduler.value)
    return request.scheduler


def resolve_steps(asked_for: int | None, scheduler: Scheduler, card: ModelCard) -> int:
    """The number of steps: as asked, else the model's own; no more than the scheduler can take."""
    most = MAX_STEPS_OF.get(scheduler, MAX_STEPS)
    if asked_for is None:
        return min(card.default_steps, most)
    if asked_for > most:
        message = f"With the scheduler {scheduler}, input should be at most {most}"
        raise ParameterError("num_inference_steps", message, got=asked_for)
    return asked_for


def resolve_seed(seed: int | None, num_images: int) -> int:
    """The seed of the first image: as asked, else drawn."""
    if seed is None:
        return secrets.randbelow(2**32)
    most = MAX_SEED - (num_images - 1)
    if seed > most:
        raise ParameterError("seed", f"With {num_images} images, input should be at most {most}", got=seed)
    return seed


def resolve_size(width: int | None, height: int | None, picture: tuple[int, int], card: ModelCard) -> tuple[int, int]:
    """Width and height: both as asked; one as asked and the other by the picture's shape; or the nearest bucket."""
    if width is None and height is None:
        return nearest_bucket(card.sizes, *picture)
    aspect_ratio = picture[0] / picture[1]
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
    """The side nearest to this one that the model can make."""
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
            f"By the picture's shape it would be {round(pixels)}, and the model {card.name} "
            f"makes {card.min_size} to {card.max_size}: give both sides"
        )
        raise ParameterError(field, message)
    return side
