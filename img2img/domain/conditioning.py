"""What a job can carry beside its picture and its prompt: masks, controls, image prompts, LoRAs. Blobs by hash.

A room of its own because both a request and a model card speak of these, and neither needs the job.
"""

from enum import StrEnum
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
LoraName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
MAX_CONTROLS = 4
MAX_IMAGE_PROMPTS = 4
MAX_LORAS = 8
MAX_PADDING = 4096  # pixels that outpainting adds to one side


class ControlType(StrEnum):
    """What a control map shows. A model has a ControlNet for each type that it can follow."""

    CANNY = "canny"
    DEPTH = "depth"
    POSE = "pose"
    SEGMENTATION = "segmentation"
    SCRIBBLE = "scribble"
    LINEART = "lineart"
    SOFTEDGE = "softedge"
    TILE = "tile"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ControlWeight(_Frozen):
    """How hard, and over which part of the denoising, a ControlNet steers."""

    scale: Annotated[float, Field(ge=0, le=2, description="How strongly to follow the map.")] = 1.0
    start: Annotated[float, Field(ge=0, le=1, description="Share of the steps after which it begins.")] = 0.0
    end: Annotated[float, Field(ge=0, le=1, description="Share of the steps after which it ends.")] = 1.0

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.start >= self.end:
            raise ValueError("`start` should be less than `end`")
        return self


class Control(ControlWeight):
    """A map that a ControlNet follows."""

    type: ControlType
    # A blob of width x height pixels; of the inpaint task, of the size of its picture or its canvas. None: the picture.
    image: Sha256 | None
    preprocess: bool  # whether the map is still to be made from that blob


class ImagePrompt(_Frozen):
    """A picture that conditions by cross-attention (IP-Adapter)."""

    image: Sha256 | None  # None: left out, by JobSpec.without_inputs
    scale: Annotated[float, Field(ge=0, le=2)]


class Lora(_Frozen):
    """Low-rank weights that the model file names, and how strongly they count."""

    name: LoraName
    scale: Annotated[float, Field(ge=-2, le=2)] = 1.0


class Padding(_Frozen):
    """Pixels that outpainting adds on each side."""

    left: Annotated[int, Field(ge=0, le=MAX_PADDING)] = 0
    top: Annotated[int, Field(ge=0, le=MAX_PADDING)] = 0
    right: Annotated[int, Field(ge=0, le=MAX_PADDING)] = 0
    bottom: Annotated[int, Field(ge=0, le=MAX_PADDING)] = 0

    @property
    def any(self) -> bool:
        return bool(self.left or self.top or self.right or self.bottom)


class InpaintRegion(_Frozen):
    """What of a picture is painted anew. All else comes out bit for bit as it went in."""

    mask: Sha256 | None  # blob: a greyscale PNG of the picture's size, white where it is painted; None: margins only
    blur: Annotated[int, Field(ge=0)]  # pixels over which the new fades into the old, within the mask
    margins: Padding
    canvas: tuple[int, int]  # width and height of the picture with its margins
    box: tuple[int, int, int, int]  # left, top, right, bottom on the canvas: what the model sees, at its own size

    @property
    def picture_size(self) -> tuple[int, int]:
        """Width and height of the picture without its margins."""
        margins = self.margins
        return self.canvas[0] - margins.left - margins.right, self.canvas[1] - margins.top - margins.bottom
