"""Parses request bodies: multipart or JSON, with one model for both."""

from typing import Annotated, TypeVar

from anyio.to_thread import run_sync
from fastapi import Depends, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from img2img.domain.parameters import MAX_TEXT
from img2img.errors import ParameterError, RequestError

from ..dependencies import SettingsDep
from ..http.errors import UnsupportedMedia
from ..http.json_text import as_utf8, normalized
from ..schemas.image_references import parse_reference
from ..schemas.request_fields import nest_form_fields
from ..schemas.requests import ControlMapRequest, ImageRequest, Img2ImgRequest
from ..settings import ApiSettings

# More than a request has fields, so that unknown fields are reported by name.
MAX_PARTS = 64
MAX_FIELD_BYTES = 64 * 1024
# Enough for two texts full of commas. A body of nothing but brackets takes a parser half a minute and gigabytes.
MAX_JSON_VALUES = 2 * MAX_TEXT + 100


Body = TypeVar("Body", Img2ImgRequest, ControlMapRequest, ImageRequest)


async def read_img2img(request: Request, settings: SettingsDep) -> Img2ImgRequest:
    """Read the body of `POST /img2img`."""
    return await _read(request, settings, Img2ImgRequest)


async def read_control_map(request: Request, settings: SettingsDep) -> ControlMapRequest:
    """Read the body of `POST /control-maps`."""
    return await _read(request, settings, ControlMapRequest)


async def read_image(request: Request, settings: SettingsDep) -> ImageRequest:
    """Read the body of `POST /images`."""
    return await _read(request, settings, ImageRequest)


async def _read(request: Request, settings: ApiSettings, model: type[Body]) -> Body:
    """Read and validate a body of either content type."""
    media_type, options = parse_options_header(request.headers.get("content-type", ""))
    try:
        if media_type == b"multipart/form-data":
            if options.get(b"charset", b"utf-8").lower() != b"utf-8":
                raise UnsupportedMedia("The charset of a form should be UTF-8.")
            fields = await _form_fields(request, settings.max_body_bytes, model)
            return model.model_validate(nest_form_fields(fields, model.FORM_JSON))
        if media_type == b"application/json":
            return await run_sync(_from_json, await request.body(), model)
    except ValidationError as error:
        raise _validation_error(error, model) from None
    raise UnsupportedMedia("The content type should be multipart/form-data or application/json.")


def _from_json(body: bytes, model: type[Body]) -> Body:
    if sum(map(body.count, (b",", b"[", b"{"))) > MAX_JSON_VALUES:
        raise RequestError("The JSON body has more values than any request.")
    body = as_utf8(body)
    try:
        # Strict, because JSON has types: "30" and true are not numbers.
        return model.model_validate_json(body, strict=True)
    except ValidationError as error:
        changed = normalized(body, error)
        if changed is None:
            raise
        return model.model_validate_json(changed, strict=True)


def _validation_error(error: ValidationError, model: type[BaseModel]) -> RequestValidationError:
    errors = error.errors(include_url=False, include_context=False)
    # Listed once, in the first error for an unknown field.
    known = f"; known are {', '.join(model.model_fields)}"
    for item in errors:
        if item["type"] == "extra_forbidden":
            is_nested = len(item["loc"]) > 1
            item["msg"] = f"Unknown field{'' if is_nested else known}"
            known = known if is_nested else ""
    return RequestValidationError(errors)


async def _form_fields(request: Request, max_body_bytes: int, model: type[Body]) -> dict[str, str | bytes]:
    parser = MultiPartParser(
        request.headers,
        request.stream(),
        max_files=MAX_PARTS,
        max_fields=MAX_PARTS,
        max_part_size=MAX_FIELD_BYTES,
    )
    # In memory: writing to disk takes ten times as long as parsing.
    parser.spool_max_size = max_body_bytes + 1
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise RequestError(f"The form cannot be read: {error.message}") from None
    fields: dict[str, str | bytes] = {}
    for name, value in form.multi_items():
        if name in fields:
            raise ParameterError(name, "Field sent more than once")
        is_file_field = model.FILES.fullmatch(name) is not None
        is_reference = is_file_field and isinstance(value, str) and (parse_reference(value) or value == "alpha")
        is_known = is_file_field or name in model.model_fields
        if is_known and _is_empty(value):
            continue
        if is_known and not is_reference and isinstance(value, UploadFile) != is_file_field:
            raise ParameterError(name, f"In a form, this field is sent as {'a file' if is_file_field else 'text'}")
        fields[name] = value.file.read() if isinstance(value, UploadFile) else value
    return fields


def _is_empty(value: UploadFile | str) -> bool:
    """Whether a field of an HTML form was left empty: text, or a file that was not chosen."""
    return not value if isinstance(value, str) else not (value.filename or value.size)


RequestDep = Annotated[Img2ImgRequest, Depends(read_img2img)]
ControlMapRequestDep = Annotated[ControlMapRequest, Depends(read_control_map)]
ImageRequestDep = Annotated[ImageRequest, Depends(read_image)]
