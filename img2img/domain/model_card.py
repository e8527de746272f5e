"""Model cards: the capabilities and defaults of the models that workers announce."""

import math
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field

from img2img.domain.conditioning import MAX_IMAGE_PROMPTS, ControlName, EmbeddingName, LoraName
from img2img.domain.job import Priority
from img2img.domain.masks import MaskKind
from img2img.domain.parameters import MAX_CLIP_SKIP, Scheduler, Sigmas, Task

SchedulerSigmas = Annotated[
    dict[str, tuple[Sigmas, ...]],
    Field(description="Schedulers that take `sigmas`, with the values that they take."),
]

# Suffix of a whole model in one file.
SINGLE_FILES = (".safetensors", ".gguf")
# Slashes in the name of a file on the hub, at least.
_HUB_FILE_SLASHES = 2


class SafetyChecker(StrEnum):
    """What happens with images that the safety checker of a model flags."""

    # Nothing is checked.
    OFF = "off"
    # They are delivered, with `flagged` set.
    REPORT = "report"
    # They are not delivered.
    ON = "on"


@dataclass(frozen=True)
class WorkerThroughput:
    """Throughput and backlog of a worker, in units of a job's cost."""

    # None until the worker has measured it.
    per_second: float | None
    # Remaining cost of the jobs that it has taken.
    left: float
    # Of those with high priority.
    left_high: float = 0.0
    # Of the others that have a deadline.
    left_due: float = 0.0

    def left_before(self, priority: Priority, *, has_deadline: bool) -> float:
        """Return the remaining cost of the jobs that the engine does not pause for a job that it gets now."""
        if priority is Priority.HIGH:
            return self.left_high
        if priority is Priority.NORMAL and has_deadline:
            return self.left_high + self.left_due
        return self.left


class UpscalerCard(BaseModel):
    """A super-resolution model for one upscale factor. Sizes are pixels of the result."""

    model_config = ConfigDict(frozen=True)

    times: Annotated[int, Field(description="How many times wider and higher the result is.")]
    native_size: Annotated[int, Field(description="Side of a tile.")]
    size_multiple: int
    schedulers: tuple[Scheduler, ...]
    default_scheduler: Scheduler
    default_sigmas: Sigmas | None = None
    scheduler_sigmas: SchedulerSigmas = {}
    default_steps: int
    default_guidance_scale: float
    parameters: Annotated[
        tuple[str, ...], Field(description="Optional parameters that its pipeline takes, such as `clip_skip`.")
    ] = ()
    work: Annotated[float, Field(description="Cost of a pixel, relative to image-to-image by the same model.")] = 1.0


class ModelCard(BaseModel):
    """The capabilities and defaults of a model."""

    model_config = ConfigDict(frozen=True)

    name: str
    description: Annotated[str, Field(description="What it makes, and what it was trained on; may be empty.")] = ""
    aliases: Annotated[tuple[str, ...], Field(description="Other names that requests can give.")] = ()
    family: str
    native_size: Annotated[int, Field(description="Pixels along a side of the square that it was trained on.")]
    size_multiple: Annotated[int, Field(description="Width and height are multiples of this.")]
    min_size: Annotated[int, Field(description="Smallest width and height.")]
    max_size: Annotated[int, Field(description="Largest width and height.")]
    sizes: Annotated[
        tuple[tuple[int, int], ...],
        Field(description="Buckets: width and height of results if a request gives no size."),
    ]
    schedulers: tuple[Scheduler, ...]
    default_scheduler: Scheduler
    default_sigmas: Annotated[
        Sigmas | None, Field(description="Sigmas with the default scheduler; null: those of the scheduler itself.")
    ] = None
    scheduler_sigmas: SchedulerSigmas = {}
    default_steps: int = 30
    default_guidance_scale: float = 7.5
    tasks: Annotated[
        tuple[Task, ...], Field(description="Supported tasks. The fields of a request select one of the tasks.")
    ] = (Task.IMG2IMG,)
    controls: Annotated[
        tuple[ControlName, ...], Field(description="Types of `controls` that it has a ControlNet for.")
    ] = ()
    preprocessors: Annotated[
        tuple[ControlName, ...], Field(description="Types of control maps that it can make from an image.")
    ] = ()
    masks: Annotated[
        tuple[MaskKind, ...], Field(description="Ways in which a `mask` can name a thing in the image.")
    ] = ()
    mask_words: Annotated[
        tuple[str, ...],
        Field(description="The words that a mask by `text` takes, if the model knows a fixed set; empty: any words."),
    ] = ()
    image_prompts: Annotated[bool, Field(description="Whether it has an IP-Adapter, for `image_prompts`.")] = False
    max_image_prompts: Annotated[int, Field(description="Largest number of `image_prompts`.")] = MAX_IMAGE_PROMPTS
    image_prompt_blocks: Annotated[
        dict[str, int], Field(description="Blocks for `blocks` of `image_prompts`, with their number of attentions.")
    ] = {}
    max_images: Annotated[int, Field(description="Largest number of images of an edit: `image` and `images`.")] = 1
    loras: Annotated[tuple[LoraName, ...], Field(description="Names that `loras` can give.")] = ()
    embeddings: Annotated[
        tuple[EmbeddingName, ...], Field(description="Textual inversions that prompts can name.")
    ] = ()
    adapter_tasks: Annotated[
        tuple[Task, ...], Field(description="The tasks that `image_prompts` and `loras` go with.")
    ] = tuple(Task)
    upscales: Annotated[tuple[int, ...], Field(description="Supported values of `upscale`.")] = ()
    upscalers: Annotated[
        tuple[UpscalerCard, ...],
        Field(description="Super-resolution models. Other factors are made by image-to-image in tiles."),
    ] = ()
    negative_prompt: Annotated[bool, Field(description="Whether it takes a `negative_prompt`.")] = True
    guidance: Annotated[bool, Field(description="Whether it takes a `guidance_scale` above 1.")] = True
    guidance_rows: Annotated[
        int, Field(description="Rows of a pass with guidance. 1: guidance is an input of the model and costs nothing.")
    ] = 2
    guidance_until: Annotated[bool, Field(description="Whether it takes a `guidance_until` below 1.")] = False
    fast_vae: Annotated[bool, Field(description="Whether it has a small VAE, for `fast_vae`.")] = False
    prompt_weighting: Annotated[bool, Field(description="Whether it takes `prompt_weighting`.")] = False
    max_clip_skip: Annotated[
        int, Field(description="Largest `clip_skip`, which is at most the number of layers of its text encoders.")
    ] = MAX_CLIP_SKIP
    matting: Annotated[bool, Field(description="Whether it finds backgrounds, for `background`.")] = False
    regions: Annotated[bool, Field(description="Whether parts of an image can have their own prompts.")] = False
    refiner: Annotated[bool, Field(description="Whether it has a refiner, for `denoising_end`.")] = False
    default_denoising_end: Annotated[
        float | None, Field(description="Share of the schedule after which the refiner takes over; null without one.")
    ] = None
    mask_content: Annotated[
        bool, Field(description="Whether it takes other values of `mask_content` than `original`.")
    ] = False
    image_guidance: Annotated[bool, Field(description="Whether an edit takes an `image_guidance_scale`.")] = True
    parameters: Annotated[
        dict[str, tuple[Task, ...]],
        Field(description="Optional parameters that not every pipeline takes, with the tasks whose pipelines do."),
    ] = {}
    control_parameters: Annotated[
        dict[str, tuple[Task, ...]], Field(description="The same for requests with `controls`.")
    ] = {}
    scheduler_parameters: Annotated[
        dict[str, tuple[Scheduler, ...]],
        Field(description="Optional parameters that only some schedulers use, with these schedulers."),
    ] = {}
    full_strength: Annotated[
        tuple[Task, ...], Field(description="Tasks that always start from pure noise: `strength` can only be 1.")
    ] = ()
    safety_checker: Annotated[
        SafetyChecker,
        Field(
            description="`on`: images that the safety checker flags are withheld; `report`: they are delivered with "
            "`flagged` set; `off`: images are not checked."
        ),
    ] = SafetyChecker.OFF
    dtype: Annotated[str, Field(description="Number format in which it computes.")] = "float32"
    revision: Annotated[str | None, Field(description="Revision of its weights on the hub, if one was chosen.")] = None

    fingerprint: Annotated[
        str,
        Field(description="Changes with its weights, its settings and the versions of the libraries. See `reuse`."),
    ] = ""

    def upscaler(self, times: int | None) -> UpscalerCard | None:
        """Return the super-resolution model for this factor; None if image-to-image in tiles makes it."""
        return next((upscaler for upscaler in self.upscalers if upscaler.times == times), None)

    def for_upscale(self, times: int) -> Self:
        """Return the card with the defaults of the super-resolution model for this factor, if there is one."""
        upscaler = self.upscaler(times)
        if upscaler is None:
            return self
        defaults = upscaler.model_dump(exclude={"times", "native_size", "size_multiple", "parameters", "work"})
        return self.model_copy(update={**defaults, "negative_prompt": True, "guidance": True, "guidance_rows": 2})

    @property
    def can_refine(self) -> bool:
        """Whether it can generate parts of its results again."""
        return Task.INPAINT in self.tasks and MaskKind.TEXT in self.masks

    def tasks_with(self, parameter: str, *, controls: bool, upscale: int | None) -> tuple[Task, ...]:
        """Return the tasks that take an optional parameter of the pipelines.

        Args:
            controls: Whether the request has controls.
            upscale: The upscale factor of the request.
        """
        upscaler = self.upscaler(upscale)
        if upscaler:
            return (Task.UPSCALE,) if parameter in upscaler.parameters else ()
        return (self.control_parameters if controls else self.parameters).get(parameter, ())


ASPECT_RATIOS = (1 / 1, 4 / 3, 3 / 2, 16 / 9, 3 / 4, 2 / 3, 9 / 16)


def size_buckets(native_size: int, multiple: int) -> tuple[tuple[int, int], ...]:
    """Return (width, height) per common aspect ratio: about native_size**2 pixels, in steps of a 16th of that side."""
    step = multiple * max(1, round(native_size / 16 / multiple))
    buckets = []
    for ratio in ASPECT_RATIOS:
        width = step * round(native_size * math.sqrt(ratio) / step)
        height = step * round(native_size / math.sqrt(ratio) / step)
        if (width, height) not in buckets:
            buckets.append((width, height))
    return tuple(buckets)


def model_name(source: str) -> str:
    """Return the name of a model for clients: a hub id unchanged, the last part of a folder, a file without suffix."""
    if source.endswith(SINGLE_FILES):
        return Path(source).stem
    return Path(source).name if is_path(source) else source


def is_path(source: str) -> bool:
    """Check whether a source is a path and not a hub id, nor a file on the hub (`org/name/file.safetensors`)."""
    return source.startswith((".", "/", "~")) or (
        source.endswith(SINGLE_FILES) and source.count("/") < _HUB_FILE_SLASHES
    )
