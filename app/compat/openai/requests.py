"""Bodies of OpenAI's requests: forms and JSON."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from anyio.to_thread import run_sync
from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field, model_validator

from img2img.domain.conditioning import MAX_REFERENCE_IMAGES
from img2img.domain.parameters import MAX_IMAGES
from img2img.domain.text_forms import Matches
from img2img.errors import ParameterError

from ...http.request_body import media_type_of, read_form, read_json, unsupported_type
from ...schemas.request_fields import parse_image, parse_json_field
from ...schemas.requests import Img2ImgRequest
from ...schemas.responses import ImageFormat
from ..blocking_jobs import BlockingJobs

# Fields that OpenAI has too, or that it has in other words.
_THEIRS = {"image", "images", "mask", "model", "prompt", "num_images", "background"}
OWN_FIELDS = frozenset(Img2ImgRequest.model_fields) - _THEIRS
# OpenAI's names of fields of `POST /img2img`.
NAMES = {"width": "size", "height": "size", "num_images": "n", "instruction": "prompt"}


class Variation(BaseModel):
    """The fields of a variation that are not images. Empty text and null count as not given."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _without_empty(cls, fields: Any) -> Any:
        return {name: value for name, value in fields.items() if name == "prompt" or value not in ("", None)}

    model: str | None = None
    n: Annotated[int, Field(ge=1, le=MAX_IMAGES)] = 1
    size: Annotated[
        str,
        Matches(r"^(auto|[1-9][0-9]{1,4}x[1-9][0-9]{1,4})$", "`auto`, or width x height in pixels, such as 1024x1024"),
    ] = "auto"
    response_format: Literal["b64_json", "url"] = "b64_json"
    # Ignored.
    user: str | None = None


class Edit(Variation):
    """The fields of an edit that are not images. `hints` knows which of them are applied."""

    prompt: str
    background: Literal["auto", "opaque", "transparent"] = "auto"
    quality: Literal["auto", "low", "medium", "high", "standard", "hd"] = "auto"
    input_fidelity: Literal["low", "high"] = "low"
    moderation: Literal["auto", "low"] = "auto"
    output_format: ImageFormat = ImageFormat.PNG
    output_compression: Annotated[int | None, Field(ge=0, le=100)] = None
    stream: bool = False
    partial_images: Annotated[int, Field(ge=0, le=3)] = 0


@dataclass
class Body:
    """The parts of a body.

    Attributes:
        fields: Fields of OpenAI.
        own: Fields of `POST /img2img`.
        files: Images by name.
        names: Names that the client has given to fields of `POST /img2img`.
    """

    fields: dict[str, Any]
    own: dict[str, Any]
    files: dict[str, list[bytes]]
    names: dict[str, str]

    def images(self, most: int, model: str | None = None) -> list[bytes]:
        """Return the images. Raises ParameterError if there is none, or more than a number.

        Args:
            model: The model that takes no more, if that is the reason.
        """
        unknown = sorted(set(self.files) - {"image", "mask"})
        if unknown:
            raise ParameterError(unknown[0], "Unknown file; known are image, mask")
        images = self.files.get("image", [])
        if not images:
            raise ParameterError("image", "Field required")
        if len(images) > most:
            taken = "one image" if most == 1 else f"at most {most} images"
            subject = f"The model {model} takes {taken}" if model else f"Input should be {taken}"
            raise ParameterError("image", f"{subject}, not {len(images)}")
        return images

    def mask(self) -> bytes | None:
        """Return the mask, if there is one. Raises ParameterError if there are several."""
        masks = self.files.get("mask", [])
        if len(masks) > 1:
            raise ParameterError("mask", f"Input should be one mask, not {len(masks)}")
        return masks[0] if masks else None

    def client_names(self) -> dict[str, str]:
        """Return the client's names of fields of `POST /img2img`."""
        names = {own: name for own, name in NAMES.items() if own not in self.own} | self.names
        return names | {"images": names.get("image", "image")}


async def read_body(request: Request, jobs: BlockingJobs) -> Body:
    """Read a form or JSON."""
    media_type, _ = media_type_of(request)
    if media_type not in ("multipart/form-data", "application/json"):
        raise unsupported_type("The content type should be multipart/form-data or application/json.")
    if media_type == "multipart/form-data":
        return _from_form(await read_form(request, jobs.settings.max_body_bytes))
    return await run_sync(_from_json, await read_json(request, dict[str, Any], strict=False))


def _from_json(fields: dict[str, Any]) -> Body:
    """Return the parts of a JSON body, in which images are objects: `{"image_url": "data:..."}`."""
    files, names = {}, {}
    for name, field in (("images", "image"), ("image", "image"), ("mask", "mask")):
        value = fields.pop(name, None)
        if value:
            images = value if isinstance(value, list) else [value]
            files[field] = [_image_from_json(name, image) for image in images[: MAX_REFERENCE_IMAGES + 1]]
            names[field] = name
    own = {name: fields.pop(name) for name in OWN_FIELDS & fields.keys()}
    return Body(fields, {name: value for name, value in own.items() if value is not None}, files, names)


def _image_from_json(name: str, image: Any) -> bytes:
    url = image.get("image_url") if isinstance(image, dict) else image
    url = url.get("url") if isinstance(url, dict) else url
    if isinstance(image, dict) and url is None:
        raise ParameterError(name, "Input should have an `image_url`; files of OpenAI are not known here", got=image)
    try:
        return parse_image(url)
    except ValueError as error:
        raise ParameterError(name, str(error)) from None


def _from_form(form: list[tuple[str, str | bytes]]) -> Body:
    """Return the parts of a form. Clients may send `image` as `image[]`."""
    body = Body({}, {}, {}, {})
    for name, value in form:
        if isinstance(value, bytes):
            body.files.setdefault(name.removesuffix("[]"), []).append(value)
            body.names[name.removesuffix("[]")] = name
        elif value == "" and name != "prompt":
            continue
        elif name in body.own or name in body.fields:
            raise ParameterError(name, "Field sent more than once")
        elif name in OWN_FIELDS:
            body.own[name] = parse_json_field(name, value) if name in Img2ImgRequest.FORM_JSON else value
        else:
            body.fields[name] = value
    return body
