"""What clients send: a picture and what to make of it."""

import base64
import binascii
import json
import re
from hashlib import sha256
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, WithJsonSchema
from pydantic_core import from_json

from img2img.domain.conditioning import (
    MAX_CONTROLS,
    MAX_IMAGE_PROMPTS,
    MAX_LORAS,
    ControlType,
    ControlWeight,
    Lora,
    Padding,
)
from img2img.domain.job import Priority
from img2img.domain.parameters import MAX_IMAGES, MAX_SEED, MAX_STEPS, Resize, Scheduler
from img2img.domain.webhook import Webhook

from .image_references import ImageReference, parse_reference

MAX_TEXT = 10_000  # characters
MAX_DEADLINE_S = 7 * 24 * 3600


def parse_image(value: object) -> bytes:
    """A picture: bytes from a form, base64 or a data: URI from JSON."""
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise ValueError("Input should be a picture in base64 or as a data: URI")
    if value[:5].lower() == "data:":
        header, _, value = value.partition(",")
        if not header.lower().endswith(";base64"):
            raise ValueError("A data: URI should have the form data:image/png;base64,...")
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"Input should be valid base64: {error}") from None


ImageBytes = Annotated[
    bytes,
    PlainValidator(parse_image),
    WithJsonSchema({"type": "string", "description": "The picture (PNG, JPEG or WebP) as base64 or a data: URI."}),
]


def parse_image_or_reference(value: object) -> bytes | ImageReference:
    """The picture of a request, or what it is called here."""
    reference = parse_reference(value) if isinstance(value, str) else None
    return reference or parse_image(value)


ImageOrReference = Annotated[
    bytes | ImageReference,
    PlainValidator(parse_image_or_reference),
    WithJsonSchema(
        {
            "type": "string",
            "description": "The picture (PNG, JPEG or WebP) as base64 or a data: URI; or the sha256 of one that was "
            "sent before; or the path of a result, `/jobs/{id}/images/0`.",
        }
    ),
]
ALPHA = "alpha"  # the mask that the picture's own transparency is


def parse_mask(value: object) -> bytes | ImageReference | Literal["alpha"]:
    """The mask of a request, or what it is called here."""
    return "alpha" if value == ALPHA else parse_image_or_reference(value)


MaskOrReference = Annotated[
    bytes | ImageReference | Literal["alpha"],
    PlainValidator(parse_mask),
    WithJsonSchema({"type": "string", "description": "As for `image`, or `alpha`."}),
]


def webhook_fields(value: object) -> object:
    """The object that a webhook is, where it came as text: as JSON in a form, or as a URL alone."""
    if not isinstance(value, str):
        return value
    if not value.lstrip().startswith("{"):
        return {"url": value}
    try:
        return from_json(value)
    except ValueError as error:
        raise ValueError(f"Input should be a URL or a JSON object: {error}") from None


def check_upscale_factor(value: int) -> int:
    """How many times larger a result is. Not a Literal: that takes no text, which is what a form has."""
    if value not in (2, 4):
        raise ValueError("Input should be 2 or 4")
    return value


UpscaleFactor = Annotated[
    int, AfterValidator(check_upscale_factor), WithJsonSchema({"type": "integer", "enum": [2, 4]})
]
Text = Annotated[str, Field(max_length=MAX_TEXT, pattern=r"^[^\x00]*$")]
Name = Annotated[str, Field(max_length=200)]


class _Part(BaseModel):
    """A nested part of a request. Strict: JSON has types."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ControlRequest(ControlWeight):
    """A ControlNet and the map that it follows."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    type: Annotated[ControlType, Field(description="One of the `controls` of the model's entry in `GET /models`.")]
    image: Annotated[
        ImageOrReference | None,
        Field(
            description="Absent: the request's `image`. It is brought to the size of the result; with `outpaint`, one "
            "of the size of `image` lies where that lies."
        ),
    ] = None
    preprocess: Annotated[
        bool, Field(description="Make the map from the picture; false: the picture is the map already.")
    ] = True


class ImagePromptRequest(_Part):
    """A picture that says what to show, as a prompt does (IP-Adapter)."""

    image: ImageOrReference
    scale: Annotated[float, Field(ge=0, le=2, description="How strongly it counts.")] = 0.6


class Img2ImgRequest(BaseModel):
    """A picture and what to make of it."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    # Fields that a form sends as JSON text. Their pictures can come as file parts, named like `controls.0.image`.
    FORM_JSON: ClassVar[frozenset[str]] = frozenset({"outpaint", "controls", "image_prompts", "loras"})
    FILES: ClassVar[re.Pattern[str]] = re.compile(r"image|mask|(?:controls|image_prompts)\.[0-9]\.image")

    image: Annotated[
        ImageOrReference | None,
        Field(description="The picture to start from. Only `controls` with pictures of their own can do without."),
    ] = None
    prompt: Annotated[Text, Field(description="What to show; may be empty.", examples=["a watercolor painting"])] = ""
    negative_prompt: Annotated[Text, Field(description="What not to show.")] = ""
    prompt_weighting: Annotated[
        bool,
        Field(
            description="Read `(text:1.3)` in both prompts as that text with that weight; 1 is the usual. Not nested."
        ),
    ] = False
    strength: Annotated[
        float | None,
        Field(
            ge=0,
            le=1,
            description="0 keeps the picture as it is, 1 starts from (almost) pure noise. "
            "Absent: 0.8; where something is painted anew (`mask`, `outpaint`, no `image`), 1; with `upscale`, 0.3, "
            "and not taken where one of the model's `upscalers` does it.",
        ),
    ] = None
    denoising_start: Annotated[
        float | None,
        Field(
            ge=0,
            lt=1,
            description="In the place of `strength`, for SDXL and its refiner: the picture counts as denoised up to "
            "this share of the schedule, no noise is added, and only the rest is run.",
        ),
    ] = None
    guidance_scale: Annotated[
        float | None,
        Field(
            ge=1, description="How strongly to follow the prompt; 1 is off and halves the work. Absent: the model's."
        ),
    ] = None
    num_inference_steps: Annotated[
        int | None,
        Field(
            ge=1,
            le=MAX_STEPS,
            description="Steps of the whole schedule; strength times as many are run. Absent: the model's.",
        ),
    ] = None
    scheduler: Annotated[Scheduler | None, Field(description="The sampler; absent: the model's default.")] = None
    seed: Annotated[
        int | None, Field(ge=0, le=MAX_SEED, description="Image i uses seed + i; absent: drawn, and reported.")
    ] = None
    num_images: Annotated[int, Field(ge=1, le=MAX_IMAGES, description="How many variants to make.")] = 1
    width: Annotated[
        int | None, Field(ge=1, description="Absent: follows from the height, or the model's size nearest in shape.")
    ] = None
    height: Annotated[
        int | None, Field(ge=1, description="Absent: follows from the width, or the model's size nearest in shape.")
    ] = None
    resize: Annotated[
        Resize, Field(description="How the picture is brought to that size: `pad` keeps all of it, with black bars.")
    ] = Resize.CROP
    mask: Annotated[
        MaskOrReference | None,
        Field(
            description="What to paint anew: a picture of the same size, white there and black elsewhere; or `alpha`: "
            "where `image` is transparent. All else stays bit for bit, and the result has the size of `image`; `width` "
            "and `height` are then the size at which the model works."
        ),
    ] = None
    mask_blur: Annotated[
        int | None, Field(ge=0, le=256, description="Pixels over which new fades into old, inside the mask. Absent: 4.")
    ] = None
    mask_padding: Annotated[
        int | None,
        Field(
            ge=0,
            le=4096,
            description="Let the model see only what is painted anew and so many pixels around, at its full size, so "
            "that small things get all its detail. Absent: it sees the whole picture.",
        ),
    ] = None
    outpaint: Annotated[
        Padding | None, Field(description="Pixels to add on each side, painted to fit. The picture stays bit for bit.")
    ] = None
    controls: Annotated[
        tuple[ControlRequest, ...],
        Field(max_length=MAX_CONTROLS, description="Maps that the result follows: edges, depth, segments, ..."),
    ] = ()
    image_prompts: Annotated[
        tuple[ImagePromptRequest, ...],
        Field(max_length=MAX_IMAGE_PROMPTS, description="Pictures whose content or style to take up."),
    ] = ()
    instruction: Annotated[
        Text | None,
        Field(min_length=1, description="What to change, as one would say it to a person.", examples=["make it night"]),
    ] = None
    image_guidance_scale: Annotated[
        float | None, Field(ge=1, description="How much of the picture an `instruction` keeps. Absent: 1.5.")
    ] = None
    upscale: Annotated[
        UpscaleFactor | None,
        Field(
            description="How many times wider and higher the result is, one of the model's `upscales`. The picture may "
            "have any size."
        ),
    ] = None
    loras: Annotated[
        tuple[Lora, ...],
        Field(max_length=MAX_LORAS, description="Of the `loras` of the model's entry in `GET /models`."),
    ] = ()
    model: Annotated[Name | None, Field(description="One of `GET /models`; absent: the service's default.")] = None
    deadline_s: Annotated[
        float | None,
        Field(ge=1, le=MAX_DEADLINE_S, description="Seconds from now; a job that has not ended by then is cancelled."),
    ] = None
    priority: Annotated[
        Priority, Field(description="Which jobs go first; within one priority, clients take turns.")
    ] = Priority.NORMAL
    webhook: Annotated[
        Webhook | None,
        BeforeValidator(webhook_fields, json_schema_input_type=Webhook | str | None),
        Field(description="Where to tell how the job ended, and which ends; a URL alone is told all of them."),
    ] = None

    def fingerprint(self) -> str:
        """Equal for equal requests, however they are written and whatever the defaults of later versions add."""
        fields = self.model_dump(exclude_defaults=True)
        return sha256(json.dumps(fields, sort_keys=True, default=_digest).encode()).hexdigest()


def _digest(value: object) -> str:
    return sha256(value).hexdigest() if isinstance(value, bytes) else repr(value)


class ControlMapRequest(BaseModel):
    """A picture, and the control map to make of it."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    FORM_JSON: ClassVar[frozenset[str]] = frozenset()
    FILES: ClassVar[re.Pattern[str]] = re.compile("image")

    image: ImageOrReference
    type: Annotated[ControlType, Field(description="One of the `preprocessors` of the model's entry in `GET /models`.")]
    width: Annotated[int | None, Field(ge=1, description="As of `POST /img2img`.")] = None
    height: Annotated[int | None, Field(ge=1, description="As of `POST /img2img`.")] = None
    resize: Annotated[Resize, Field(description="How the picture is brought to that size.")] = Resize.CROP
    model: Annotated[Name | None, Field(description="One of `GET /models`; absent: the service's default.")] = None
    deadline_s: Annotated[
        float | None,
        Field(ge=1, le=MAX_DEADLINE_S, description="Seconds from now; a job that has not ended by then is cancelled."),
    ] = None


class ImageRequest(BaseModel):
    """A picture to keep."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    FORM_JSON: ClassVar[frozenset[str]] = frozenset()
    FILES: ClassVar[re.Pattern[str]] = re.compile("image")

    image: ImageBytes
