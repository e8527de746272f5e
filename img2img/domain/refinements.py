"""The detail pass: parts of a result that are found by words and generated again at full resolution."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from img2img.domain.masks import MAX_GROW, Words
from img2img.domain.parameters import MAX_STEPS, Text

MAX_REFINEMENTS = 4
MAX_PARTS = 16
# Fields of a request that act before the detail pass. Parts are inpainted from the finished image, and their own edges
# are not those of the image.
FIRST_PASS_ONLY = frozenset(
    {"controls", "guess_mode", "regions", "denoising_start", "denoising_end", "soft_inpainting", "seamless_tiling"}
)


class Refinement(BaseModel):
    """Parts of the result that are found by words, and generated again at the native size of the model."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    detect: Annotated[
        Words,
        Field(
            description="Words for the parts, as in a mask by `text`; several are separated by commas.",
            examples=["face"],
        ),
    ]
    strength: Annotated[
        float, Field(gt=0, le=1, description="How much of each part is replaced: 1 starts from pure noise.")
    ] = 0.4
    prompt: Annotated[Text | None, Field(description="What each part should show. Default: `prompt`.")] = None
    negative_prompt: Annotated[
        Text | None, Field(description="What no part should show. Default: `negative_prompt`.")
    ] = None
    num_inference_steps: Annotated[
        int | None, Field(ge=1, le=MAX_STEPS, description="Steps of the whole schedule. Default: those of the request.")
    ] = None
    padding: Annotated[int, Field(ge=0, le=4096, description="Pixels around a part that the model sees with it.")] = 32
    blur: Annotated[
        int, Field(ge=0, le=256, description="Pixels over which a part fades into the rest, inside its mask.")
    ] = 4
    grow: Annotated[
        int, Field(ge=-MAX_GROW, le=MAX_GROW, description="Pixels by which the mask of a part is made larger.")
    ] = 4
    threshold: Annotated[
        float | None, Field(gt=0, lt=1, description="Lowest confidence of a part, as in a mask by `text`.")
    ] = None
    max: Annotated[
        int, Field(ge=1, le=MAX_PARTS, description="Largest number of parts; the most certain are taken.")
    ] = 4
