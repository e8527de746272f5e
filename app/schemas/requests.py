"""Request bodies: Pydantic models of `POST /img2img`, `POST /control-maps`, `POST /masks` and `POST /images`."""

import json
import re
from hashlib import sha256
from typing import Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, model_validator

from img2img.domain.conditioning import (
    MAX_CONTROLS,
    MAX_IMAGE_PROMPTS,
    MAX_REFERENCE_IMAGES,
    MAX_REGIONS,
    BlockScales,
    ControlName,
    ControlWeight,
    MaskContent,
    Padding,
)
from img2img.domain.generation_parameters import GenerationParameters
from img2img.domain.job import DeadlinePolicy, Priority
from img2img.domain.masks import MaskQuery
from img2img.domain.parameters import (
    MAX_SEED,
    MAX_SIDE,
    MAX_STEPS,
    Background,
    Resize,
    Scheduler,
    Sigmas,
    Task,
    Text,
)
from img2img.domain.refinements import MAX_REFINEMENTS, Refinement
from img2img.domain.requirements import ALL_TASKS, OptionalParameter, Requires
from img2img.domain.webhook import Webhook

from .request_fields import (
    HEXADECIMAL_SHA256,
    MAX_MASK_BLUR,
    BackgroundPrompt,
    ImageBytes,
    ImageOrReference,
    MaskOrReference,
    UpscaleFactor,
    parse_background,
    webhook_fields,
)

MAX_DEADLINE_S = 7 * 24 * 3600
# The digits of an upload's id.
MAX_UPLOAD_BYTES, MAX_UPLOAD_SIDE = 9_999_999_999, 99_999
# The seed of clients of other software that want any.
RANDOM_SEED = -1


Name = Annotated[str, Field(max_length=200)]
Width = Annotated[
    int | None,
    Field(
        ge=1,
        le=MAX_SIDE,
        description="Width of the result. Default: derived from `height`, or the nearest bucket of the model.",
    ),
]
Height = Annotated[
    int | None,
    Field(
        ge=1,
        le=MAX_SIDE,
        description="Height of the result. Default: derived from `width`, or the nearest bucket of the model.",
    ),
]
ModelName = Annotated[Name | None, Field(description="One of `GET /models`. Default: the service's default model.")]
Deadline = Annotated[
    float | None,
    Field(
        ge=1,
        le=MAX_DEADLINE_S,
        description="Seconds from now by which the job should have ended. Jobs with an earlier deadline go first among "
        "those of one API key and priority, in the queue and in the worker.",
    ),
]
Policy = Annotated[
    DeadlinePolicy,
    Field(
        description="What happens at the deadline: `cancel` cancels a job that has not ended; with `best_effort` it "
        "goes on, and `deadline_missed` is set; `reject` is `cancel`, and refuses a request whose ETA is later."
    ),
]


class ControlRequest(ControlWeight):
    """A control map that a ControlNet follows."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    type: Annotated[ControlName, Field(description="One of the `controls` of the model's entry in `GET /models`.")]
    image: Annotated[
        ImageOrReference | None,
        Field(
            description="Default: the request's `image`. The image is resized to the size of the result. With "
            "`outpaint`, an image of the size of `image` gets the same margins."
        ),
    ] = None
    preprocess: Annotated[
        bool, Field(description="Make the control map from the image. If false, the image is the control map.")
    ] = True


class ImagePromptRequest(BaseModel):
    """An image whose content the result should take up (IP-Adapter)."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    image: ImageOrReference
    scale: Annotated[float, Field(ge=0, le=2, description="How strongly the result follows the image.")] = 0.6
    blocks: Annotated[
        BlockScales | None,
        Field(
            description="Scales of the blocks of the UNet in place of `scale`, as `set_ip_adapter_scale` of diffusers "
            "takes them, for `image_prompt_blocks` of the model. Blocks that are not named get 0.",
            examples=[{"up": {"block_0": [0.0, 1.0, 0.0]}}],
        ),
    ] = None

    @model_validator(mode="after")
    def _has_one_scale(self) -> Self:
        if self.blocks is not None and "scale" in self.model_fields_set:
            raise ValueError("`blocks` takes the place of `scale`; leave one of the two out")
        return self


class RegionRequest(BaseModel):
    """A part of the image with a separate prompt."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    mask: Annotated[
        ImageOrReference,
        Field(description="White where the prompt acts, and grey where it acts in part. Resized like `image`."),
    ]
    prompt: Annotated[Text, Field(description="Prompt of this part.", examples=["a red house"])]
    weight: Annotated[
        float,
        Field(gt=0, le=1, description="Share of this prompt where the mask is white; the rest is that of `prompt`."),
    ] = 1.0


class ImageAndPrompt(BaseModel):
    """The first fields of a request. In a base class, so that they come first in the OpenAPI document."""

    image: Annotated[
        ImageOrReference | None,
        Field(description="Input image. Required unless every control has an image."),
    ] = None
    prompt: Annotated[
        Text,
        Field(description="What the result should show; may be empty.", examples=["a watercolor painting"]),
        Requires(tasks=ALL_TASKS - {Task.EDIT}),
    ] = ""


class Img2ImgRequest(GenerationParameters, ImageAndPrompt):
    """An image and the parameters of its transformation."""

    # Fields that a form sends as JSON text. Their images can be sent as files, named like `controls.0.image`.
    FORM_JSON: ClassVar[frozenset[str]] = frozenset(
        {"outpaint", "controls", "image_prompts", "loras", "refine", "regions", "freeu"}
    )
    FILES: ClassVar[re.Pattern[str]] = re.compile(
        r"images?|mask|(?:controls|image_prompts)\.[0-9]\.image|regions\.[0-9]\.mask"
    )
    # Fields that a form sends once for each entry.
    REPEATED: ClassVar[frozenset[str]] = frozenset({"images"})

    strength: Annotated[
        float | None,
        Field(
            ge=0,
            le=1,
            description="How much of the image is replaced: 0 returns the image, 1 starts from (almost) pure noise. "
            "Default: 0.8; with `mask` or `outpaint` 1; with `upscale` 0.3. Refused if one of the model's `upscalers` "
            "makes the result.",
        ),
        Requires(
            tasks=ALL_TASKS - {Task.EDIT},
            not_by_upscaler="it starts from pure noise, and the image guides every step",
        ),
    ] = None
    guidance_scale: Annotated[
        float | None,
        Field(
            ge=1,
            description="How strongly the result follows the prompt. 1 turns guidance off and halves the work. "
            "Default: the model's.",
        ),
        Requires(capability="guidance", lacking="works without guidance only: input should be 1 or absent", neutral=1),
    ] = None
    num_inference_steps: Annotated[
        int | None,
        Field(
            ge=1,
            le=MAX_STEPS,
            description="Steps of the whole schedule; about `strength` times as many are run. Default: the model's.",
        ),
    ] = None
    scheduler: Annotated[Scheduler | None, Field(description="The sampler. Default: the model's.")] = None
    sigmas: Annotated[
        Sigmas | None,
        Field(
            description="Noise levels of the steps (schedule type): one of those that the model's entry in "
            "`GET /models` lists for the scheduler in `scheduler_sigmas`. Default: those of the scheduler itself, or "
            "without `scheduler` the model's."
        ),
    ] = None
    seed: Annotated[
        int | None,
        Field(
            ge=-1,
            le=MAX_SEED,
            description="Image i uses seed + i. Default, and with -1: random, and reported in the job.",
        ),
        AfterValidator(lambda seed: None if seed == RANDOM_SEED else seed),
    ] = None
    subseed: Annotated[
        int | None,
        Field(
            ge=-1,
            le=MAX_SEED,
            description="Seed of a variation of the image of `seed`, with a `subseed_strength`. Default, and with -1: "
            "random, and reported in the job.",
        ),
        AfterValidator(lambda seed: None if seed == RANDOM_SEED else seed),
        OptionalParameter(
            tasks=ALL_TASKS - {Task.UPSCALE},
            needs="subseed_strength",
            lacking="does not support variation seeds; leave it out",
        ),
    ] = None
    denoising_end: Annotated[
        float | None,
        Field(
            gt=0,
            le=1,
            description="For models with a `refiner`: the share of the schedule after which it takes over, by default "
            "`default_denoising_end` of the model. 1: it is not used.",
        ),
        Requires(
            tasks=frozenset({Task.IMG2IMG, Task.INPAINT}),
            excludes=("controls",),
            capability="refiner",
            lacking="has no refiner; leave `denoising_end` out",
            neutral=1,
        ),
    ] = None
    width: Annotated[Width, Requires(tasks=ALL_TASKS - {Task.UPSCALE})] = None
    height: Annotated[Height, Requires(tasks=ALL_TASKS - {Task.UPSCALE})] = None
    resize: Annotated[
        Resize,
        Field(
            description="How images are brought to the size of the result: `crop` cuts, `pad` adds black bars, "
            "`stretch` changes the aspect ratio."
        ),
        Requires(tasks=ALL_TASKS - {Task.UPSCALE}),
    ] = Resize.CROP
    mask: Annotated[
        MaskOrReference | None,
        Field(
            description="Inpainting mask of the same size as `image`: white pixels are regenerated, black and "
            "transparent pixels are returned unchanged. Grey counts as white from 128 on, unless the inpainting is "
            "soft. `alpha` regenerates the "
            'transparent pixels of `image`. An object such as `{"text": "the house"}` lets the model find the mask, '
            "see `masks` of its entry in `GET /models`. The result has the size of `image`; `width` and `height` set "
            "the size at which the model works."
        ),
        Requires(tasks=frozenset({Task.INPAINT})),
    ] = None
    mask_blur: Annotated[
        int | None,
        Field(
            ge=0,
            le=MAX_MASK_BLUR,
            description="Pixels over which the new content fades into the old, inside the mask, at most half the "
            "thickness of the mask. Default: 4.",
        ),
        Requires(tasks=frozenset({Task.INPAINT})),
    ] = None
    mask_content: Annotated[
        MaskContent,
        Field(
            description="What the masked part holds before noise is added, below strength 1: the image, latents of "
            "noise, or latents of zeros."
        ),
        Requires(tasks=frozenset({Task.INPAINT}), capability="mask_content", lacking="takes the original only"),
    ] = MaskContent.ORIGINAL
    soft_inpainting: Annotated[
        bool,
        Field(
            description="Read grey of the mask, and its blur, as how much is regenerated (differential diffusion): "
            "darker parts change in fewer steps. For models with `soft_inpainting` in `parameters`."
        ),
        OptionalParameter(
            tasks=frozenset({Task.INPAINT}),
            excludes=("mask_content", "controls", "denoising_end"),
            lacking="does not support soft inpainting; leave it out",
        ),
    ] = False
    mask_padding: Annotated[
        int | None,
        Field(
            ge=0,
            le=4096,
            description="Crops the model's view to the regenerated area plus this many pixels on each side, so that "
            "small areas are generated at the model's full resolution. Default: the model sees the whole image.",
        ),
        Requires(tasks=frozenset({Task.INPAINT})),
    ] = None
    outpaint: Annotated[
        Padding | None,
        Field(description="Pixels to add on each side (outpainting). The pixels of `image` are returned unchanged."),
        Requires(tasks=frozenset({Task.INPAINT}), neutral=Padding()),
    ] = None
    background: Annotated[
        Background | BackgroundPrompt,
        PlainValidator(parse_background, json_schema_input_type=Background | BackgroundPrompt),
        Field(
            description="`transparent` makes the background of the result transparent: the PNG has an alpha channel, "
            "and so has its conversion to WebP. An object with a `prompt` keeps the foreground of `image`, and "
            "inpaints the rest. For models with `matting` in `GET /models`."
        ),
        Requires(capability="matting", lacking="cannot find backgrounds: its operator has to add `matting` to it"),
    ] = Background.KEEP  # type: ignore[assignment]  # jobs have the first kind only
    controls: Annotated[
        tuple[ControlRequest, ...],
        Field(
            max_length=MAX_CONTROLS,
            description="Control maps (edges, depth, segmentation, ...) that the result follows (ControlNet).",
        ),
        Requires(tasks=frozenset({Task.IMG2IMG, Task.INPAINT, Task.CONTROL})),
    ] = ()
    regions: Annotated[
        tuple[RegionRequest, ...],
        Field(
            max_length=MAX_REGIONS,
            description="Parts of the image with separate prompts: each step mixes the predictions for all prompts "
            "by the masks. `prompt` acts on the rest. For models with `regions` in `GET /models`.",
        ),
        Requires(
            tasks=frozenset({Task.IMG2IMG}),
            excludes=("controls", "speed", "denoising_end"),
            capability="regions",
            lacking="has one prompt for the whole image; leave `regions` out",
        ),
    ] = ()
    image_prompts: Annotated[
        tuple[ImagePromptRequest, ...],
        Field(
            max_length=MAX_IMAGE_PROMPTS,
            description="Images whose content or style the result should take up (IP-Adapter).",
        ),
        Requires(
            capability="image_prompts",
            lacking="has no IP-Adapter; leave them out",
            tasks_of_model="adapter_tasks",
            not_by_upscaler="it has no IP-Adapter",
        ),
    ] = ()
    refine: Annotated[
        tuple[Refinement, ...],
        Field(
            max_length=MAX_REFINEMENTS,
            description="Detail pass: parts of the result that are found by words, such as faces, and generated again "
            "at the native size of the model. For models with inpainting and `masks` by `text` in `GET /models`.",
        ),
        Requires(
            tasks=frozenset({Task.IMG2IMG, Task.INPAINT, Task.CONTROL}),
            capability="can_refine",
            lacking="cannot refine results, for which it needs inpainting and a segmenter for words; leave it out, or "
            "its operator can add one as `segmenters.text` in the model file",
        ),
    ] = ()
    images: Annotated[
        tuple[ImageOrReference, ...],
        Field(
            max_length=MAX_REFERENCE_IMAGES,
            description="Images that `instruction` refers to, after `image` or instead of it; the result has the size "
            "of the first. The model's `max_images` is the number of all of them.",
        ),
        Requires(tasks=frozenset({Task.EDIT})),
    ] = ()
    instruction: Annotated[
        Text | None,
        Field(
            min_length=1,
            description="Edit instruction, such as `make it night`, for models with the task `edit`.",
        ),
    ] = None
    image_guidance_scale: Annotated[
        float | None,
        Field(ge=1, description="How closely the result of an `instruction` follows `image`. Default: 1.5."),
        Requires(
            tasks=frozenset({Task.EDIT}),
            capability="image_guidance",
            lacking="takes no guidance by the image; leave it out",
            guidance=True,
        ),
    ] = None
    upscale: Annotated[
        UpscaleFactor | None,
        Field(
            description="How many times wider and higher the result is than `image`: one of the model's `upscales`. "
            "The image may have any size."
        ),
    ] = None
    model: ModelName = None
    deadline_s: Deadline = None
    deadline_policy: Policy = DeadlinePolicy.CANCEL
    priority: Annotated[
        Priority,
        Field(
            description="Order in the queue. Jobs of one priority are taken round-robin across API keys. `high` needs "
            "an API key with the scope `priority`."
        ),
    ] = Priority.NORMAL
    reuse: Annotated[
        bool,
        Field(
            description="If an earlier job of yours had the same image, parameters and model, with all defaults "
            "resolved, end at once with a copy of its images, and name it in `reused_from`. Needs a `seed`."
        ),
    ] = False
    webhook: Annotated[
        Webhook | None,
        BeforeValidator(webhook_fields, json_schema_input_type=Webhook | str | None),
        Field(description="URL that is called when the job ends, and the events to send; all events if only a URL."),
    ] = None

    def fingerprint(self) -> str:
        """Return a hash that is equal for equal requests, also if a later version adds fields with defaults."""
        return _fingerprint(self)


def _fingerprint(request: BaseModel) -> str:
    # Images are validated by functions, so pydantic cannot check their types when it serializes them.
    fields = request.model_dump(exclude_defaults=True, warnings=False)
    return sha256(json.dumps(fields, sort_keys=True, default=_digest).encode()).hexdigest()


def _digest(value: object) -> str:
    return sha256(value).hexdigest() if isinstance(value, bytes) else repr(value)


class ControlMapRequest(BaseModel):
    """An image and the type of the control map to make of it."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    FORM_JSON: ClassVar[frozenset[str]] = frozenset()
    FILES: ClassVar[re.Pattern[str]] = re.compile("image")
    REPEATED: ClassVar[frozenset[str]] = frozenset()

    image: ImageOrReference
    type: Annotated[ControlName, Field(description="One of the `preprocessors` of the model's entry in `GET /models`.")]
    width: Width = None
    height: Height = None
    resize: Annotated[Resize, Field(description="How the image is brought to that size.")] = Resize.CROP
    model: ModelName = None
    deadline_s: Deadline = None
    deadline_policy: Policy = DeadlinePolicy.CANCEL

    def fingerprint(self) -> str:
        """Return a hash that is equal for equal requests."""
        return _fingerprint(self)


class MaskRequest(MaskQuery):
    """An image, and the thing in it whose mask is wanted: named by `text`, by `points` or by a `box`."""

    FORM_JSON: ClassVar[frozenset[str]] = frozenset({"points", "labels", "box"})
    FILES: ClassVar[re.Pattern[str]] = re.compile("image")
    REPEATED: ClassVar[frozenset[str]] = frozenset()

    image: ImageOrReference
    model: ModelName = None
    deadline_s: Deadline = None
    deadline_policy: Policy = DeadlinePolicy.CANCEL

    @property
    def query(self) -> MaskQuery:
        """The part that the worker reads."""
        return MaskQuery(**{name: getattr(self, name) for name in MaskQuery.model_fields})

    def fingerprint(self) -> str:
        """Return a hash that is equal for equal requests."""
        return _fingerprint(self)


class UploadRequest(BaseModel):
    """An image that the client is about to send to the bucket."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sha256: Annotated[str, HEXADECIMAL_SHA256, Field(description="SHA-256 of the file.")]
    bytes: Annotated[int, Field(ge=1, le=MAX_UPLOAD_BYTES, description="Size of the file in bytes.", examples=[524288])]
    content_type: Annotated[
        Literal["image/png", "image/jpeg", "image/webp"], Field(description="Media type of the file.")
    ]
    width: Annotated[
        int | None,
        Field(
            ge=1,
            le=MAX_UPLOAD_SIDE,
            description="Width after applying the EXIF orientation. With `width` and `height`, jobs are accepted "
            "without reading the image; a worker checks that it has this size.",
            examples=[1600],
        ),
    ] = None
    height: Annotated[int | None, Field(ge=1, le=MAX_UPLOAD_SIDE, examples=[1200])] = None

    @model_validator(mode="after")
    def _both_sides(self) -> Self:
        if (self.width is None) != (self.height is None):
            raise ValueError("`width` and `height` should be given together")
        return self

    @property
    def size(self) -> tuple[int, int] | None:
        """Width and height, None if they are not given."""
        return (self.width, self.height) if self.width and self.height else None


class ImageRequest(BaseModel):
    """An image to store."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    FORM_JSON: ClassVar[frozenset[str]] = frozenset()
    FILES: ClassVar[re.Pattern[str]] = re.compile("image")
    REPEATED: ClassVar[frozenset[str]] = frozenset()

    image: ImageBytes
