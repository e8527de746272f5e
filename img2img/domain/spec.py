"""JobSpec: the resolved parameters of a job, one class per task. Images are referred to by the sha256 of a blob."""

import json
import math
from abc import abstractmethod
from collections.abc import Iterator
from functools import reduce
from operator import getitem
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from typing_extensions import TypeAliasType

from img2img.domain.blob_keys import input_key, upload_key
from img2img.domain.conditioning import Control, ControlName, ImagePrompt, InpaintRegion, ReferenceImage, Region, Sha256
from img2img.domain.generation_parameters import GenerationParameters
from img2img.domain.masks import MaskQuery
from img2img.domain.parameters import (
    EXPECTED_SPEEDUP,
    FLOW_SCHEDULERS,
    MAX_IMAGES,
    MAX_SCHEDULE,
    MAX_SEED,
    MAX_STEPS,
    Resize,
    Scheduler,
    Sigmas,
    Task,
)
from img2img.domain.presigned_upload import ID as UPLOAD_ID
from img2img.domain.refinements import Refinement
from img2img.domain.tiling import Grid, Tiling

Strength = Annotated[float, Field(ge=0, le=1)]


def steps_of_schedule(schedule: int, strength: float, scheduler: Scheduler) -> int:
    """Return how many steps of a schedule the pipelines run at a strength; 0 for a strength below one step."""
    # The pipelines of flow models round up, the others round down.
    if scheduler in FLOW_SCHEDULERS:
        return schedule - int(max(schedule - min(schedule * strength, schedule), 0))
    return min(int(schedule * strength), schedule)


def schedule_of_steps(steps: int, strength: float, scheduler: Scheduler) -> int:
    """Return the shortest schedule of which that many steps are run at a strength above 0.

    It is `MAX_SCHEDULE` + 1 if no scheduler has one that is long enough.
    """
    schedule = max(steps, int(min(steps / strength, MAX_SCHEDULE + 2)) - 1)
    while schedule <= MAX_SCHEDULE and steps_of_schedule(schedule, strength, scheduler) < steps:
        schedule += 1
    return schedule


def planned_steps(steps: int, strength: float, scheduler: Scheduler, *, exact: bool) -> tuple[int, int]:
    """Return how many steps are run at a strength, none at 0 and else at least one, and those of the whole schedule.

    Args:
        steps: of the request. They are those of the schedule, or if they are `exact` those that are run.
    """
    if strength == 0:
        return 0, steps
    if exact:
        return steps, schedule_of_steps(steps, strength, scheduler)
    return max(1, steps_of_schedule(steps, strength, scheduler)), steps


class BaseSpec(BaseModel):
    """The base of all job specs. Frozen: the same spec gives the same images."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: Task
    model: str
    # Size in pixels at which the model works.
    width: Annotated[int, Field(gt=0)]
    height: Annotated[int, Field(gt=0)]
    num_images: Annotated[int, Field(ge=1, le=MAX_IMAGES)] = 1

    @property
    @abstractmethod
    def steps_run(self) -> int:
        """Denoising steps that are run for each image, or for each tile of it."""

    @property
    def passes(self) -> int:
        """How often the job goes through the model: once per image, or once per tile of each image."""
        return self.num_images

    @property
    def total_steps(self) -> int:
        """Denoising steps of the whole job."""
        return self.steps_run * self.passes

    @property
    def cost(self) -> float:
        """Work of the whole job in megapixel-steps.

        A row is an image or a tile. Encoding and decoding together count as one step, a control as a third of the
        denoiser.
        """
        steps = (self._steps_paid + 1) * self.passes
        return self._pixels * steps * self._rows * (1 + len(self.control_maps) / 3) / 1e6

    @property
    def _steps_paid(self) -> float:
        """Denoising steps of each image or tile, without those that `speed` is expected to save."""
        return self.steps_run

    @property
    def _pixels(self) -> float:
        """Pixels of one row, weighted by the work that a pixel takes."""
        return self.width * self.height

    @property
    def _rows(self) -> float:
        """Rows of the denoiser's batch for one image or tile, on average over the steps."""
        return 1

    @property
    def result_size(self) -> tuple[int, int]:
        """Width and height of the resulting images."""
        return self.width, self.height

    @property
    def control_maps(self) -> tuple[Control, ...]:
        """The control maps that are loaded or made for the job."""
        return ()

    @property
    def inputs(self) -> tuple[Sha256, ...]:
        """The input blobs, each once."""
        return tuple(dict.fromkeys(image for image in self._images() if image))

    @property
    def input_keys(self) -> tuple[str, ...]:
        """The keys of the input blobs in the blob store."""
        return tuple(map(input_key, self.inputs))

    def _images(self) -> Iterator[Sha256 | None]:
        yield from (control.image for control in self.control_maps)

    def without_inputs(self) -> Self:
        """Return the spec without the hashes of its blobs, for data that leaves the service."""
        return _without_hashes(self)

    def image_seed(self, _index: int, /) -> int:
        """Return the seed of a result image; 0 for a job without randomness."""
        return 0


class GenerationSpec(GenerationParameters, BaseSpec):
    """A job that runs a denoiser."""

    guidance_scale: Annotated[float, Field(ge=1)]
    # Rows of a pass with guidance; 1 where guidance is an input of the denoiser.
    guidance_rows: Annotated[int, Field(ge=1, le=2)] = 2
    num_inference_steps: Annotated[int, Field(ge=1, le=MAX_STEPS)]
    scheduler: Scheduler
    # None: those of the scheduler itself.
    sigmas: Sigmas | None = None
    # Image i uses seed + i, or with a `subseed_strength` the seed itself, and subseed + i.
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)]
    subseed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = None
    image_prompts: tuple[ImagePrompt, ...] = ()

    @property
    def steps_run(self) -> int:
        return self.num_inference_steps

    @property
    def schedule_steps(self) -> int:
        """Steps of the whole schedule, of which the job runs the last `steps_run`."""
        return self.num_inference_steps

    @property
    def _steps_paid(self) -> float:
        # The first three calls and the last one are always made.
        return min(self.steps_run, max(4, self.steps_run / EXPECTED_SPEEDUP[self.speed]))

    @property
    def guided_steps(self) -> int:
        """Denoising steps with guidance, if there is any: the others come after them."""
        # Rounded first: 0.1 * 30 is 3.0000000000000004.
        return math.ceil(round(self.guidance_until * self.steps_run, 6))

    @property
    def _rows(self) -> float:
        if self.guidance_scale == 1:
            return 1
        share = self.guided_steps / self.steps_run if self.steps_run else 1
        return 1 + (self.guidance_rows - 1) * share

    def _images(self) -> Iterator[Sha256 | None]:
        yield from super()._images()
        yield from (prompt.image for prompt in self.image_prompts)

    def image_seed(self, index: int, /) -> int:
        return self.seed if self.subseed_strength else self.seed + index

    def image_subseed(self, index: int, /) -> int | None:
        """Return the seed of the variation of an image; None if it is not a variation."""
        return self.subseed + index if self.subseed is not None and self.subseed_strength else None


class StrengthSpec(GenerationSpec):
    """A job that adds noise to an image up to a strength and denoises it."""

    # Blob: an upright RGB PNG, of width x height pixels in most classes. None: see `without_inputs`.
    image: Sha256 | None
    prompt: str
    strength: Strength

    @property
    def steps_run(self) -> int:
        """0 at strength 0, else at least 1."""
        return self._planned_steps[0]

    @property
    def schedule_steps(self) -> int:
        return self._planned_steps[1]

    @property
    def _planned_steps(self) -> tuple[int, int]:
        return planned_steps(self.num_inference_steps, self.strength, self.scheduler, exact=self.exact_steps)

    def _images(self) -> Iterator[Sha256 | None]:
        yield self.image
        yield from super()._images()


class ControlledSpec(GenerationSpec):
    """A job that ControlNets can guide."""

    # How images are brought to the size of the result.
    resize: Resize = Resize.CROP
    controls: tuple[Control, ...] = ()
    # The detail pass, in this order.
    refine: tuple[Refinement, ...] = ()

    @property
    def control_maps(self) -> tuple[Control, ...]:
        return self.controls

    @property
    def refine_steps(self) -> int:
        """Steps of the detail pass of one image, if each entry finds one part."""
        return sum(self.steps_of_part(refinement)[0] for refinement in self.refine)

    def steps_of_part(self, refinement: Refinement) -> tuple[int, int]:
        """Return the steps that are run for one part, and those of the whole schedule."""
        steps = refinement.num_inference_steps or self.num_inference_steps
        return planned_steps(steps, refinement.strength, self.scheduler, exact=self.exact_steps)

    @property
    def total_steps(self) -> int:
        return super().total_steps + self.refine_steps * self.num_images

    @property
    def _steps_paid(self) -> float:
        return super()._steps_paid + self.refine_steps


class RefinedSpec(StrengthSpec, ControlledSpec):
    """A job whose last steps a refiner can run."""

    # Share of the schedule after which the refiner takes over; None: it is not used.
    denoising_end: Annotated[float | None, Field(gt=0, lt=1)] = None


class Img2ImgSpec(RefinedSpec):
    """Image-to-image, with or without controls."""

    task: Literal[Task.IMG2IMG] = Task.IMG2IMG
    # Parts of the image with separate prompts.
    regions: tuple[Region, ...] = ()

    # Id of a presigned upload: `image` is the SHA-256 of the file that the client has sent to the bucket. The worker
    # decodes it. None: it was decoded and resized before the job was queued.
    upload: Annotated[str | None, Field(pattern=f"^{UPLOAD_ID}$")] = None

    @property
    def input_keys(self) -> tuple[str, ...]:
        if self.upload is None:
            return super().input_keys
        others = (input_key(digest) for digest in self.inputs if digest != self.image)
        return (upload_key(self.upload), *others)

    @property
    def _rows(self) -> float:
        return super()._rows + len(self.regions)

    def _images(self) -> Iterator[Sha256 | None]:
        yield from super()._images()
        yield from (region.mask for region in self.regions)

    @property
    def steps_run(self) -> int:
        if self.denoising_start is None:
            return super().steps_run
        # Pipelines count by the timesteps of the model's own schedule, which may differ by one.
        steps = self.num_inference_steps
        return max(1, min(math.ceil(steps * (1 - self.denoising_start)), steps))


class InpaintSpec(RefinedSpec):
    """Inpainting and outpainting. The image has the size of the region's canvas without its margins."""

    task: Literal[Task.INPAINT] = Task.INPAINT
    region: InpaintRegion

    @property
    def result_size(self) -> tuple[int, int]:
        return self.region.canvas

    def _images(self) -> Iterator[Sha256 | None]:
        yield self.image
        yield self.region.mask
        yield from super()._images()


class ControlSpec(ControlledSpec):
    """Generation from pure noise, guided by controls alone."""

    task: Literal[Task.CONTROL] = Task.CONTROL
    prompt: str
    controls: Annotated[tuple[Control, ...], Field(min_length=1)]


class EditSpec(GenerationSpec):
    """Editing by instruction."""

    task: Literal[Task.EDIT] = Task.EDIT
    image: Sha256 | None
    # The other images, in the order in which the instruction may name them.
    references: tuple[ReferenceImage, ...] = ()
    instruction: str
    # None where the model takes no guidance by the image.
    image_guidance_scale: Annotated[float | None, Field(ge=1)] = None
    resize: Resize = Resize.CROP

    @property
    def prompt(self) -> str:
        """The text for the text encoder."""
        return self.instruction

    @property
    def _pixels(self) -> float:
        """Reference images are further tokens of the denoiser."""
        return super()._pixels + sum(reference.width * reference.height for reference in self.references)

    @property
    def _rows(self) -> float:
        return 3 if self.image_guidance_scale and self.guidance_scale > 1 else super()._rows

    def _images(self) -> Iterator[Sha256 | None]:
        yield self.image
        yield from (reference.image for reference in self.references)
        yield from super()._images()


class UpscaleSpec(StrengthSpec):
    """Upscaling in tiles. `width` and `height` are those of the image."""

    task: Literal[Task.UPSCALE] = Task.UPSCALE
    # How many times wider and higher the result is.
    upscale: Annotated[int, Field(ge=2, le=4)]
    tiling: Tiling

    @property
    def grid(self) -> Grid:
        """The tiles of the result."""
        return self.tiling.grid(self.result_size)

    @property
    def passes(self) -> int:
        return self.num_images * len(self.grid)

    @property
    def _pixels(self) -> float:
        width, height = self.grid.tile
        return width * height * self.tiling.work

    @property
    def result_size(self) -> tuple[int, int]:
        return self.width * self.upscale, self.height * self.upscale


class ControlMapSpec(BaseSpec):
    """A control map of an image, without generation."""

    task: Literal[Task.CONTROL_MAP] = Task.CONTROL_MAP
    image: Sha256 | None
    type: ControlName
    resize: Resize = Resize.CROP

    @property
    def steps_run(self) -> int:
        return 0

    @property
    def control_maps(self) -> tuple[Control, ...]:
        return (Control(type=self.type, image=None, preprocess=True),)

    def _images(self) -> Iterator[Sha256 | None]:
        yield self.image


class MaskSpec(BaseSpec):
    """The mask of a thing in an image, without generation. It has the size of the image."""

    task: Literal[Task.MASK] = Task.MASK
    image: Sha256 | None
    find: MaskQuery

    @property
    def steps_run(self) -> int:
        return 0

    def _images(self) -> Iterator[Sha256 | None]:
        yield self.image


# The specs of jobs that run a denoiser.
DenoisingSpec = Img2ImgSpec | InpaintSpec | ControlSpec | EditSpec | UpscaleSpec
JobSpec = TypeAliasType("JobSpec", Annotated[DenoisingSpec | ControlMapSpec | MaskSpec, Field(discriminator="task")])
_JOB_SPEC: TypeAdapter[JobSpec] = TypeAdapter(JobSpec)


# Of stored specs. Increased when the meaning or the default of a field changes; a new field needs no new version.
SPEC_VERSION = 1


def dump_spec(spec: JobSpec) -> str:
    """Return the spec as JSON.

    Fields with default values are left out, so that earlier versions can read the specs of requests that use nothing
    new.
    """
    return json.dumps(spec.model_dump(mode="json", exclude_defaults=True) | {"task": spec.task})


def parse_spec(text: str | bytes) -> tuple[JobSpec, tuple[str, ...]]:
    """Return the spec that the JSON text holds, and the names of the fields that this version does not know.

    Such fields are not in the spec: it can be shown, but not run.

    Raises:
        ValueError: The rest is no spec.
    """
    content = json.loads(text)
    unknown: list[str] = []
    while True:
        try:
            return _JOB_SPEC.validate_json(json.dumps(content)), tuple(unknown)
        except ValidationError as error:
            # The first element is the task.
            paths = [found["loc"][1:] for found in error.errors() if found["type"] == "extra_forbidden"]
            if not paths:
                raise
        for *parents, name in paths:
            unknown.append(".".join(map(str, [*parents, name])))
            del reduce(getitem, parents, content)[name]


Model = TypeVar("Model", bound=BaseModel)


def _without_hashes(model: Model) -> Model:
    """Return a copy of the model in which `image`, `mask` and `upload` are None, at every level."""
    return model.model_copy(
        update={name: _without_hash(name, getattr(model, name)) for name in type(model).model_fields}
    )


def _without_hash(name: str, value: Any) -> Any:
    if name in ("image", "mask", "upload"):
        return None
    if isinstance(value, tuple):
        return tuple(_without_hash("", item) for item in value)
    return _without_hashes(value) if isinstance(value, BaseModel) else value
