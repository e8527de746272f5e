"""Conditioning of a job besides its image and prompt: masks, controls, image prompts, LoRAs. Images are blob hashes."""

import re
from enum import StrEnum
from typing import Annotated, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)

from img2img.domain.masks import MaskQuery
from img2img.domain.text_forms import Matches

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
# With the characters of usual file names, as LoRAs are named by their files.
LORA_NAME = r"^[A-Za-z0-9][A-Za-z0-9 ._()+-]{0,99}$"
LoraName = Annotated[
    str,
    Matches(LORA_NAME, "1 to 100 letters, digits, spaces and characters of ._()+-, the first one a letter or digit"),
]
EmbeddingName = Annotated[
    str,
    Matches(
        r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$",
        "1 to 100 letters, digits and characters of ._-, the first one a letter or digit",
    ),
]
MAX_REGIONS = 8
MAX_CONTROLS = 4
MAX_IMAGE_PROMPTS = 4
MAX_REFERENCE_IMAGES = 16
MAX_LORAS = 8
MAX_PADDING = 4096  # pixels per side


def lora_name_of(stem: str) -> str:
    """Return the name of a LoRA whose file has a name: the same, with hyphens for characters that names cannot have.

    Empty if no character is left.
    """
    return re.sub(r"[^A-Za-z0-9 ._()+-]+", "-", stem).lstrip(" ._()+-").rstrip(" -")[:100]


class ControlType(StrEnum):
    """The well-known control types. A model file can give its ControlNets any other name, see `ControlName`."""

    CANNY = "canny"
    DEPTH = "depth"
    POSE = "pose"
    SEGMENTATION = "segmentation"
    SCRIBBLE = "scribble"
    LINEART = "lineart"
    SOFTEDGE = "softedge"
    TILE = "tile"
    NORMAL = "normal"
    MLSD = "mlsd"
    SHUFFLE = "shuffle"
    IP2P = "ip2p"
    BLUR = "blur"
    GRAY = "gray"
    LOW_QUALITY = "low_quality"


# The kind of a control map. A model has a ControlNet for each kind that it can follow.
ControlName = Annotated[
    str,
    Matches(
        r"^[a-z0-9][a-z0-9._-]{0,49}$",
        "1 to 50 small letters, digits and characters of ._-, the first one a letter or digit",
    ),
    Field(examples=[str(known) for known in ControlType]),
]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ControlWeight(_Frozen):
    """How strongly, and over which part of the denoising, a ControlNet guides."""

    scale: Annotated[float, Field(ge=0, le=2, description="How strongly the result follows the control map.")] = 1.0
    start: Annotated[float, Field(ge=0, le=1, description="Share of the steps after which the control begins.")] = 0.0
    end: Annotated[float, Field(ge=0, le=1, description="Share of the steps after which the control ends.")] = 1.0

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.start >= self.end:
            raise ValueError("`start` should be less than `end`")
        return self


class Control(ControlWeight):
    """A control map for a ControlNet."""

    type: ControlName
    # A blob of width x height pixels; of an inpainting job, of the size of its image or its canvas. None: the job's
    # image.
    image: Sha256 | None
    # Whether the control map is made from that image; else it is the map.
    preprocess: bool


def _either(kinds: str) -> WrapValidator:
    """Return a validator of a union with one error, in place of one for each of its members."""

    def validate(value: object, handler: ValidatorFunctionWrapHandler) -> object:
        try:
            return handler(value)
        except ValidationError:
            raise ValueError(f"Input should be {kinds}") from None

    return WrapValidator(validate)


_Scale = Annotated[float, Field(ge=0, le=2)]
# Scales of an IP-Adapter: of a block, or of each attention in it.
_OfBlock = Annotated[
    _Scale | Annotated[list[_Scale], Field(max_length=16)],
    _either("a number from 0 to 2, or a list of at most 16 of them"),
]
# Of the parts of a UNet, and of the blocks of a part by name: the form of diffusers.
BlockScales = Annotated[
    dict[
        str,
        Annotated[
            _OfBlock | dict[str, _OfBlock],
            _either("a number from 0 to 2, a list of at most 16 of them, or an object of these by block"),
        ],
    ],
    Field(min_length=1),
]


class ImagePrompt(_Frozen):
    """An image that conditions by cross-attention (IP-Adapter)."""

    # None: see `BaseSpec.without_inputs`.
    image: Sha256 | None
    scale: _Scale
    # In place of `scale`.
    blocks: BlockScales | None = None


class Region(_Frozen):
    """A part of an image with a separate prompt."""

    # Blob: greyscale in the size at which the model works. None: see `BaseSpec.without_inputs`.
    mask: Sha256 | None
    prompt: str
    # Share of the prediction for this prompt where the mask is white.
    weight: Annotated[float, Field(gt=0, le=1)] = 1.0


class ReferenceImage(_Frozen):
    """An image besides the first one that an edit refers to."""

    # None: see `BaseSpec.without_inputs`.
    image: Sha256 | None
    width: int
    height: int


class Lora(_Frozen):
    """A LoRA of the model, and how strongly it is applied."""

    name: LoraName
    scale: Annotated[float, Field(ge=-2, le=2)] = 1.0


class FreeU(_Frozen):
    """Factors of FreeU (Si et al., 2023) for the two stages of a UNet's decoder with the fewest pixels."""

    b1: Annotated[float, Field(gt=0, le=4, description="Of the features of the first stage, such as 1.3.")]
    b2: Annotated[float, Field(gt=0, le=4, description="Of the features of the second stage, such as 1.4.")]
    s1: Annotated[float, Field(ge=0, le=4, description="Of the low frequencies that skip to the first stage: 0.9.")]
    s2: Annotated[float, Field(ge=0, le=4, description="Of the low frequencies that skip to the second stage: 0.2.")]


class Padding(_Frozen):
    """Pixels that outpainting adds on each side."""

    left: Annotated[int, Field(ge=0, le=MAX_PADDING)] = 0
    top: Annotated[int, Field(ge=0, le=MAX_PADDING)] = 0
    right: Annotated[int, Field(ge=0, le=MAX_PADDING)] = 0
    bottom: Annotated[int, Field(ge=0, le=MAX_PADDING)] = 0

    @property
    def any(self) -> bool:
        return bool(self.left or self.top or self.right or self.bottom)


class MaskContent(StrEnum):
    """What the masked part of an image holds before noise is added."""

    # The image itself.
    ORIGINAL = "original"
    # Latents of noise.
    NOISE = "noise"
    # Latents of zeros.
    NOTHING = "nothing"


class InpaintRegion(_Frozen):
    """The part of an image that is regenerated. All other pixels are returned unchanged."""

    # Blob: a PNG of the image's size, white where the image is regenerated, else black, or grey if `is_soft`. None: the
    # margins only.
    mask: Sha256 | None = None
    # Whether the worker finds the mask: the background of the image.
    background: bool = False
    # The worker finds the mask; with `padding`, it also chooses the box.
    find: MaskQuery | None = None
    # Pixels over which the new content fades into the old, within the mask.
    blur: Annotated[int, Field(ge=0)] = 0
    content: MaskContent = MaskContent.ORIGINAL
    # Whether grey of the mask and its blur are how much is regenerated (differential diffusion).
    is_soft: bool = False
    margins: Padding = Padding()
    # Width and height of the image with its margins.
    canvas: tuple[int, int]
    # Left, top, right and bottom on the canvas of the part that the model sees.
    box: tuple[int, int, int, int]
    # Pixels around the regenerated area from which the box was made; None: the whole canvas. The box decides.
    padding: Annotated[int, Field(ge=0)] | None = None

    @property
    def image_size(self) -> tuple[int, int]:
        """Width and height of the image without its margins."""
        margins = self.margins
        return self.canvas[0] - margins.left - margins.right, self.canvas[1] - margins.top - margins.bottom
