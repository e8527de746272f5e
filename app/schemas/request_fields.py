"""Types of request fields: images, masks, webhooks and fields that forms send as JSON text."""

import base64
import binascii
import json
import re
import string
from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainValidator, WithJsonSchema
from pydantic_core import from_json

from img2img.domain.masks import MaskQuery
from img2img.domain.parameters import Background, Text
from img2img.domain.text_forms import Matches
from img2img.errors import ParameterError

from .image_references import ImageReference, parse_reference

# The SHA-256 of an image.
HEXADECIMAL_SHA256 = Matches(r"^[0-9a-f]{64}$", "the SHA-256 in hexadecimal: 64 digits 0-9 and a-f")
# Value of `mask`: the transparency of the image is the mask.
ALPHA: Literal["alpha"] = "alpha"
# Values in JSON text: a structured field of a form, or a webhook. More would cost time and memory to parse.
MAX_TEXT_VALUES = 200
# The name of a file of a form that belongs to an entry of a structured field.
ENTRY_FILE = re.compile(r"(\w+)\.([0-9])\.(image|mask)", re.ASCII)


# Removes white space, and converts the alphabet for URLs (RFC 4648, section 5) to the usual one.
BASE64_VARIANTS = str.maketrans("-_", "+/", string.whitespace)
# Characters of base64 that data: URIs encode. `urllib.parse.unquote` takes gigabytes for a text full of `%`.
PERCENT_CODES = {
    "%2B": "+",
    "%2b": "+",
    "%2F": "/",
    "%2f": "/",
    "%3D": "=",
    "%3d": "=",
    "%0A": "",
    "%0a": "",
    "%0D": "",
}
PERCENT_CODES |= {"%0d": "", "%20": ""}
# URLs, and names and paths of files.
LOCATION = re.compile(r"(?!data:)[a-z][a-z0-9+.-]*:|[~.\\]|.*\.[a-z0-9]{3,4}$", re.IGNORECASE)
MAX_LOCATION = 2000
MAX_MASK_BLUR = 256  # pixels
MIN_TEXT = 40
# The value of a form field, or those of one that is sent several times.
FormValue = str | bytes | list[str | bytes]
NOT_READ = "URLs and file names are not read: send the bytes of the image, as base64 or as a file of a form"
# These would be base64 by chance.
REFERENCE_PATHS = ("/jobs/", "/uploads/")
NO_REFERENCE = (
    "Input should be the path of a result, `/jobs/` with an id and `/images/0`, or the `image` that `POST /uploads` "
    "has returned"
)


def parse_image(value: object) -> bytes:
    """Return the bytes of an image: as they are from a form, from base64 or a data: URI in JSON.

    Base64 may be broken into lines, without padding, and in the alphabet for URLs.
    """
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise ValueError("Input should be an image in base64 or as a data: URI")
    text = value
    if text[:5].lower() == "data:":
        header, _, text = text.partition(",")
        if not header.rstrip().lower().endswith(";base64"):
            raise ValueError("A data: URI should have the form data:image/png;base64,...")
        # Base64 needs few codes, and many take time.
        if text.count("%") > len(text) // 8 + 64:
            raise ValueError("Input should be valid base64")
        for code, character in PERCENT_CODES.items():
            text = text.replace(code, character)
    # Other characters make `translate` slow: a second for 30 MB, in which no other thread runs.
    if not text.isascii():
        raise ValueError("Input should be an image in base64 or as a data: URI: it has characters that base64 has not")
    text = text.translate(BASE64_VARIANTS).rstrip("=")
    # A word or a path can be base64 without padding by chance. An image is longer.
    if len(text) < MIN_TEXT and len(text) % 4 and "=" not in value:
        raise ValueError(NOT_READ)
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        if len(value) <= MAX_LOCATION and LOCATION.match(value):
            raise ValueError(NOT_READ) from None
        raise ValueError(f"Input should be an image in base64 or as a data: URI: {error}") from None


ImageBytes = Annotated[
    bytes,
    PlainValidator(parse_image),
    WithJsonSchema({"type": "string", "description": "The image (PNG, JPEG or WebP) as base64 or a data: URI."}),
]


def parse_image_or_reference(value: object) -> bytes | ImageReference:
    """Return the bytes of an image, or a reference to a stored one."""
    reference = parse_reference(value) if isinstance(value, str) else None
    if reference is None and isinstance(value, str) and value.startswith(REFERENCE_PATHS):
        raise ValueError(NO_REFERENCE)
    try:
        return reference or parse_image(value)
    except ValueError as error:
        if str(error) == NOT_READ:
            raise ValueError(f"{NOT_READ}, or send them to `POST /images` and give its `sha256`") from None
        raise


ImageOrReference = Annotated[
    bytes | ImageReference,
    PlainValidator(parse_image_or_reference),
    WithJsonSchema(
        {
            "type": "string",
            "description": "An image (PNG, JPEG or WebP) as base64 or a data: URI; or the `sha256` of an image sent to "
            "`POST /images`; or the `image` of an upload from `POST /uploads`; or the path of a result, "
            "`/jobs/{id}/images/0`.",
        }
    ),
]


class MaskObject(MaskQuery):
    """The thing in the image that is masked: named by `text`, by `points` or by a `box`."""

    blur: Annotated[int | None, Field(ge=0, le=MAX_MASK_BLUR, description="The same as `mask_blur`.")] = None

    @property
    def query(self) -> MaskQuery:
        """The part that the worker reads."""
        return MaskQuery(**self.model_dump(exclude={"blur"}))


def parse_mask(value: object) -> bytes | ImageReference | MaskObject | Literal["alpha"]:
    """Return the bytes of a mask, a reference to a stored one, what to find in the image, or `alpha`.

    Raises:
        ValueError: It is none of them. Errors of an object name its fields.
    """
    if isinstance(value, str) and is_object(value):
        value = _parse_json_text(value)
    if isinstance(value, dict):
        # As JSON, which has lists in place of tuples.
        return MaskObject.model_validate_json(json.dumps(value), strict=True)
    if isinstance(value, MaskObject):
        return value
    return "alpha" if value == ALPHA else parse_image_or_reference(value)


def is_object(text: str) -> bool:
    """Return whether the text of a form field holds a JSON object."""
    return text.lstrip().startswith("{")


MaskOrReference = Annotated[
    bytes | ImageReference | MaskObject | Literal["alpha"],
    PlainValidator(
        parse_mask,
        json_schema_input_type=Annotated[str, Field(description="An image in one of the forms of `image`, or `alpha`.")]
        | MaskObject,
    ),
]


def parse_json_field(name: str, text: str | bytes) -> Any:
    """Return the value of a field that a form sends as JSON text. Raises ParameterError."""
    try:
        return _parse_json_text(text.decode() if isinstance(text, bytes) else text)
    except ValueError as error:
        raise ParameterError(name, f"In a form, this field is JSON text: {error}", got=text) from None


def _parse_json_text(text: str) -> Any:
    """Return the value of JSON text. Raises ValueError, also for many values, before they take time and memory."""
    if sum(map(text.count, "[{,")) > MAX_TEXT_VALUES:
        raise ValueError("Input has more values than any request")
    return from_json(text)


def webhook_fields(value: object) -> object:
    """Return the fields of a webhook that was sent as text: a JSON object, or a URL. None for empty text."""
    if not isinstance(value, str):
        return value
    if not value.strip():
        return None
    if not is_object(value):
        return {"url": value}
    try:
        return _parse_json_text(value)
    except ValueError as error:
        raise ValueError(f"Input should be a URL or a JSON object: {error}") from None


class BackgroundPrompt(BaseModel):
    """A new background for `image`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt: Annotated[Text, Field(description="Prompt of the new background.", examples=["a beach at sunset"])]


def parse_background(value: object) -> Background | BackgroundPrompt:
    """Return what happens to the background.

    Raises:
        ValueError: It is none of the values. Errors of an object name its fields.
    """
    if isinstance(value, str) and is_object(value):
        value = _parse_json_text(value)
    if isinstance(value, dict):
        return BackgroundPrompt.model_validate(value, strict=True)
    if isinstance(value, str) and value in list(Background):
        return Background(value)
    raise ValueError(f"Input should be {', '.join(Background)} or an object with a `prompt`")


def check_upscale_factor(value: int) -> int:
    """Raise ValueError unless the factor is 2 or 4. A Literal would not accept the text that a form sends."""
    if value not in (2, 4):
        raise ValueError("Input should be 2 or 4")
    return value


UpscaleFactor = Annotated[
    int, AfterValidator(check_upscale_factor), WithJsonSchema({"type": "integer", "enum": [2, 4]})
]


def nest_form_fields(fields: Mapping[str, FormValue], structured: Collection[str]) -> dict[str, Any]:
    """Return the fields of a form as in JSON: parses structured fields and inserts files into them.

    Raises:
        ParameterError: A structured field is not JSON, or has no entry for a file.
    """
    nested: dict[str, Any] = {}
    for name, value in fields.items():
        if name in structured and not isinstance(value, list):
            nested[name] = parse_json_field(name, value)
    for name, value in fields.items():
        entry = ENTRY_FILE.fullmatch(name)
        if entry and entry[1] in structured and isinstance(value, bytes):
            _insert(nested, entry, value)
        elif name not in structured:
            nested[name] = value
    return nested


def _insert(nested: dict[str, Any], entry: re.Match[str], image: bytes) -> None:
    """Insert an image: `controls.0.image` into the first of the controls."""
    field, index, leaf = entry.groups()
    parts = nested.get(field)
    if not isinstance(parts, list) or int(index) >= len(parts) or not isinstance(parts[int(index)], dict):
        raise ParameterError(entry[0], f"`{field}` has no entry {index}")
    if leaf in parts[int(index)]:
        raise ParameterError(entry[0], "Sent twice: as a file and in the entry")
    parts[int(index)][leaf] = image
