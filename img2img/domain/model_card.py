"""Model cards: what a worker announces that it serves, and what requests are resolved against."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from img2img.domain.conditioning import ControlType, LoraName
from img2img.domain.parameters import Scheduler, Task


@dataclass(frozen=True)
class WorkerThroughput:
    """What a worker says of its work, in units of JobSpec.cost."""

    per_second: float | None  # recently; None as long as it does not know
    left: float  # of the jobs that it has taken


class UpscalerCard(BaseModel):
    """A super-resolution model, which does one factor of the upscale task. Sizes in pixels of the result."""

    model_config = ConfigDict(frozen=True)

    times: int  # wider and higher
    native_size: int  # of a tile
    size_multiple: int
    schedulers: tuple[Scheduler, ...]
    default_scheduler: Scheduler
    default_steps: int
    default_guidance_scale: float
    work: float = 1.0  # of a pixel, beside one of image-to-image


class ModelCard(BaseModel):
    """What a model is and what it can do."""

    model_config = ConfigDict(frozen=True)

    name: str
    family: str
    native_size: Annotated[int, Field(description="Pixels along a side of the square that it was trained on.")]
    size_multiple: Annotated[int, Field(description="Width and height are multiples of this.")]
    min_size: Annotated[int, Field(description="Smallest width and height.")]
    max_size: Annotated[int, Field(description="Largest width and height.")]
    sizes: Annotated[
        tuple[tuple[int, int], ...],
        Field(description="Width and height of the buckets that pictures go to where a request gives no size."),
    ]
    schedulers: tuple[Scheduler, ...]
    default_scheduler: Scheduler
    default_steps: int = 30
    default_guidance_scale: float = 7.5
    tasks: Annotated[
        tuple[Task, ...], Field(description="What it can do; the fields of a request choose among them.")
    ] = (Task.IMG2IMG,)
    controls: Annotated[
        tuple[ControlType, ...], Field(description="Types of `controls` that it has a ControlNet for.")
    ] = ()
    preprocessors: Annotated[
        tuple[ControlType, ...], Field(description="Types of control maps that it can make from a picture.")
    ] = ()
    image_prompts: Annotated[bool, Field(description="Whether it has an IP-Adapter, for `image_prompts`.")] = False
    loras: Annotated[tuple[LoraName, ...], Field(description="Names that `loras` can give.")] = ()
    adapter_tasks: Annotated[
        tuple[Task, ...], Field(description="The tasks that `image_prompts` and `loras` go with.")
    ] = tuple(Task)
    upscales: Annotated[tuple[int, ...], Field(description="What `upscale` can be.")] = ()
    upscalers: Annotated[
        tuple[UpscalerCard, ...], Field(description="Those of them that are not done by image-to-image in tiles.")
    ] = ()
    negative_prompt: Annotated[bool, Field(description="Whether it takes a `negative_prompt`.")] = True
    guidance: Annotated[bool, Field(description="Whether a `guidance_scale` above 1 can be asked for.")] = True
    guidance_rows: Annotated[
        int, Field(description="Rows of a pass with guidance; 1: it is an input of the model, and costs nothing.")
    ] = 2
    denoising_start: Annotated[bool, Field(description="Whether `denoising_start` can be asked for.")] = False
    prompt_weighting: Annotated[bool, Field(description="Whether `(text:1.3)` in prompts can be asked for.")] = False
    image_guidance: Annotated[bool, Field(description="Whether an edit takes an `image_guidance_scale`.")] = True
    dtype: Annotated[str, Field(description="Number format in which it computes.")] = "float32"
    revision: Annotated[str | None, Field(description="Of its weights on the hub, where one was chosen.")] = None

    def upscaler(self, times: int | None) -> UpscalerCard | None:
        """What does this factor of the upscale task; None: image-to-image in tiles."""
        return next((upscaler for upscaler in self.upscalers if upscaler.times == times), None)


ASPECT_RATIOS = (1 / 1, 4 / 3, 3 / 2, 16 / 9, 3 / 4, 2 / 3, 9 / 16)


def size_buckets(native_size: int, multiple: int) -> tuple[tuple[int, int], ...]:
    """(width, height) per common aspect ratio: about native_size**2 pixels, on a grid of a sixteenth of that side."""
    step = multiple * max(1, round(native_size / 16 / multiple))
    buckets = []
    for ratio in ASPECT_RATIOS:
        width = step * round(native_size * math.sqrt(ratio) / step)
        height = step * round(native_size / math.sqrt(ratio) / step)
        if (width, height) not in buckets:
            buckets.append((width, height))
    return tuple(buckets)


def nearest_bucket(sizes: Iterable[tuple[int, int]], width: int, height: int) -> tuple[int, int]:
    """The bucket whose aspect ratio is nearest to the picture's, by the logarithm of the ratio."""
    return min(sizes, key=lambda size: abs(math.log(size[0] / size[1] * height / width)))


def model_name(source: str) -> str:
    """The name that clients use for a model: a hub id as it is, a folder by its last part."""
    return Path(source).name if source.startswith((".", "/", "~")) else source
