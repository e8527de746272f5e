"""Masks that the worker finds: checks of what to find, and the spec of `POST /masks`."""

from img2img.domain.masks import MaskKind, MaskQuery, known_as, split_words
from img2img.domain.model_card import ModelCard
from img2img.domain.spec import MaskSpec
from img2img.errors import ParameterError

from ..schemas.request_fields import MaskObject
from ..schemas.requests import Img2ImgRequest, MaskRequest
from .image_reader import ImageReader

DEFAULT_MASK_BLUR = 4


def build_mask_spec(request: MaskRequest, card: ModelCard, reader: ImageReader) -> MaskSpec:
    """Return the spec of a mask, which has the size of the image.

    Raises:
        ParameterError, ImageError, UnsupportedMedia: The request cannot be served.
    """
    with reader.open("image", request.image) as image:
        check_mask_query(request, card, image.size)
        width, height = image.size
        pixels = image.rgb()
    return MaskSpec(model=card.name, image=reader.add_blob(pixels), find=request.query, width=width, height=height)


def check_mask_query(query: MaskQuery, card: ModelCard, size: tuple[int, int], field: str = "") -> None:
    """Raise ParameterError for a mask that the model cannot find in an image of a size.

    Args:
        field: The field that holds the query; empty: its fields are those of the request.
    """
    name = f"{field}.{query.kind}".lstrip(".")
    check_mask_kind(query.kind, card, name)
    if query.text is not None:
        check_words(query.text, card, name)
    outside = query.outside(size)
    if outside is not None:
        message = f"It is not within the image of {size[0]} x {size[1]} pixels"
        raise ParameterError(name, message, got=list(outside))


def check_mask_kind(kind: MaskKind, card: ModelCard, field: str) -> None:
    """Raise ParameterError if the model has no segmenter for a kind of masks."""
    if kind in card.masks:
        return
    part = MaskKind.TEXT if kind is MaskKind.TEXT else MaskKind.POINTS
    raise ParameterError(
        field,
        f"The model {card.name} cannot find masks by {kind}: "
        + (f"give one by {' or '.join(card.masks)}, or send" if card.masks else "send")
        + f" the mask as an image; its operator can add a segmenter, as `segmenters.{part}` in the model file",
    )


def check_words(text: str, card: ModelCard, field: str) -> None:
    """Raise ParameterError for words that the model does not know."""
    for phrase in split_words(text) if card.mask_words else ():
        if known_as(phrase, card.mask_words) is None:
            message = f"This model finds only: {', '.join(card.mask_words)}; separate several with commas"
            raise ParameterError(field, message, got=phrase)


def mask_blur(request: Img2ImgRequest) -> int:
    """Return the blur of a request's mask. Raises ParameterError if it has two values."""
    own = request.mask.blur if isinstance(request.mask, MaskObject) else None
    if own is not None and request.mask_blur not in (None, own):
        raise ParameterError("mask.blur", f"`mask_blur` is {request.mask_blur}; leave one of the two out", got=own)
    given = request.mask_blur if own is None else own
    return DEFAULT_MASK_BLUR if given is None else given
