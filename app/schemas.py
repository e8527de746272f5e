"""What clients send: a picture and what to make of it."""

import base64
import binascii
from hashlib import sha256
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, WithJsonSchema
from pydantic_core import from_json

from app.contract.spec import MAX_IMAGES, MAX_SEED, Resize, Scheduler
from app.contract.webhook import Webhook
from app.references import Reference, parse_reference

MAX_TEXT = 10_000  # characters
MAX_DEADLINE_S = 7 * 24 * 3600


def picture_bytes(value: object) -> bytes:
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


Picture = Annotated[
    bytes,
    PlainValidator(picture_bytes),
    WithJsonSchema({"type": "string", "description": "The picture (PNG, JPEG or WebP) as base64 or a data: URI."}),
]


def picture_or_reference(value: object) -> bytes | Reference:
    """The picture of a request, or what it is called here."""
    reference = parse_reference(value) if isinstance(value, str) else None
    return reference or picture_bytes(value)


PictureOrReference = Annotated[
    bytes | Reference,
    PlainValidator(picture_or_reference),
    WithJsonSchema(
        {
            "type": "string",
            "description": "The picture (PNG, JPEG or WebP) as base64 or a data: URI; or the sha256 of one that was "
            "sent before; or the path of a result, `/jobs/{id}/images/0`.",
        }
    ),
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


Text = Annotated[str, Field(max_length=MAX_TEXT, pattern=r"^[^\x00]*$")]
Name = Annotated[str, Field(max_length=200)]


class Img2ImgRequest(BaseModel):
    """A picture and what to make of it."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    image: PictureOrReference
    prompt: Annotated[Text, Field(description="What to show; may be empty.", examples=["a watercolor painting"])] = ""
    negative_prompt: Annotated[Text, Field(description="What not to show.")] = ""
    strength: Annotated[
        float, Field(ge=0, le=1, description="0 keeps the picture as it is, 1 starts from (almost) pure noise.")
    ] = 0.8
    guidance_scale: Annotated[
        float, Field(ge=1, description="How strongly to follow the prompt; 1 is off and halves the work.")
    ] = 7.5
    num_inference_steps: Annotated[
        int, Field(ge=1, le=150, description="Steps of the whole schedule; about strength times as many are run.")
    ] = 30
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
    model: Annotated[Name | None, Field(description="One of `GET /models`; absent: the service's default.")] = None
    deadline_s: Annotated[
        float | None,
        Field(ge=1, le=MAX_DEADLINE_S, description="Seconds from now; a job that has not ended by then is cancelled."),
    ] = None
    webhook: Annotated[
        Webhook | None,
        BeforeValidator(webhook_fields, json_schema_input_type=Webhook | str | None),
        Field(description="Where to tell how the job ended, and which ends; a URL alone is told all of them."),
    ] = None

    def fingerprint(self) -> str:
        """Equal for equal requests, however they are written and whatever the defaults of later versions add."""
        fields = self.model_dump_json(exclude={"image"}, exclude_defaults=True)
        picture = self.image if isinstance(self.image, bytes) else repr(self.image).encode()
        return sha256(sha256(picture).digest() + fields.encode()).hexdigest()


class ImageRequest(BaseModel):
    """A picture to keep."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    image: Picture
