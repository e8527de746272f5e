"""From a request body to its model: multipart or JSON, one model for both."""

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

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
from ..schemas.image_references import parse_reference
from ..schemas.requests import ControlMapRequest, ImageRequest, Img2ImgRequest, parse_json_field
from ..settings import ApiSettings

MAX_PARTS = 64  # the request has about 25 fields; some room, so that a stranger is named rather than counted
MAX_FIELD_BYTES = 64 * 1024
# Two texts full of commas, and some room. A body of nothing but brackets costs a parser half a minute and gigabytes.
MAX_JSON_VALUES = 2 * MAX_TEXT + 100


Body = TypeVar("Body", Img2ImgRequest, ControlMapRequest, ImageRequest)


async def read_img2img(request: Request, settings: SettingsDep) -> Img2ImgRequest:
    """The body of a submit."""
    return await _read(request, settings, Img2ImgRequest)


async def read_control_map(request: Request, settings: SettingsDep) -> ControlMapRequest:
    """The body of a request for a control map."""
    return await _read(request, settings, ControlMapRequest)


async def read_image(request: Request, settings: SettingsDep) -> ImageRequest:
    """The body of a picture sent to be kept."""
    return await _read(request, settings, ImageRequest)


async def _read(request: Request, settings: ApiSettings, model: type[Body]) -> Body:
    """Reads and validates the body, whichever of the two content types it has."""
    media_type, options = parse_options_header(request.headers.get("content-type", ""))
    if media_type == b"multipart/form-data":
        if options.get(b"charset", b"utf-8").lower() != b"utf-8":
            raise UnsupportedMedia("Form fields are taken in UTF-8 only.")
        return _from_form(await _form_fields(request, settings.max_body_bytes, model), model)
    if media_type == b"application/json":
        return await run_sync(_from_json, await request.body(), model)
    raise UnsupportedMedia("A request is multipart/form-data or application/json.")


def _from_form(fields: Mapping[str, str | bytes], model: type[Body]) -> Body:
    try:
        return model.model_validate(_nested(fields, model))
    except ValidationError as error:
        raise _refused(error, model) from None


def _nested(fields: Mapping[str, str | bytes], model: type[Body]) -> dict[str, Any]:
    """The fields as JSON would have them: the text of a structured field parsed, and files put where they belong."""
    nested: dict[str, Any] = {}
    for name, value in fields.items():
        if name in model.FORM_JSON:
            nested[name] = parse_json_field(name, value)
    for name, value in fields.items():
        if name not in model.FORM_JSON and "." in name and isinstance(value, bytes):
            _put(nested, name, value)
        elif name not in model.FORM_JSON:
            nested[name] = value
    return nested


def _put(nested: dict[str, Any], name: str, picture: bytes) -> None:
    """`controls.0.image` into the first of the controls."""
    field, index, leaf = name.split(".")
    parts = nested.get(field)
    if not isinstance(parts, list) or int(index) >= len(parts) or not isinstance(parts[int(index)], dict):
        raise ParameterError(name, f"`{field}` has no entry {index}")
    if leaf in parts[int(index)]:
        raise ParameterError(name, "Sent as a file and in the entry, too")
    parts[int(index)][leaf] = picture


def _from_json(body: bytes, model: type[Body]) -> Body:
    if sum(map(body.count, (b",", b"[", b"{"))) > MAX_JSON_VALUES:
        raise RequestError("The JSON body has more values than any request.")
    try:
        return model.model_validate_json(body, strict=True)  # JSON has types: "30" or true is no number here
    except ValidationError as error:
        raise _refused(error, model) from None


def _refused(error: ValidationError, model: type[BaseModel]) -> RequestValidationError:
    errors = error.errors(include_url=False, include_context=False)
    for one in errors:
        if one["type"] == "extra_forbidden":
            known = f"; known are {', '.join(model.model_fields)}" if len(one["loc"]) == 1 else ""
            one["msg"] = f"Unknown field{known}"
    return RequestValidationError(errors)


async def _form_fields(request: Request, max_body_bytes: int, model: type[Body]) -> dict[str, str | bytes]:
    parser = MultiPartParser(
        request.headers,
        request.stream(),
        max_files=MAX_PARTS,
        max_fields=MAX_PARTS,
        max_part_size=MAX_FIELD_BYTES,
    )
    parser.spool_max_size = max_body_bytes + 1  # in memory: writing to disk costs ten times as much as parsing
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise RequestError(f"The form cannot be read: {error.message}") from None
    fields: dict[str, str | bytes] = {}
    for name, value in form.multi_items():
        if name in fields:
            raise ParameterError(name, "Field sent more than once")
        takes_file = model.FILES.fullmatch(name) is not None
        refers = takes_file and isinstance(value, str) and (parse_reference(value) or value == "alpha")
        if isinstance(value, UploadFile) != takes_file and (takes_file or name in model.model_fields) and not refers:
            raise ParameterError(name, f"In a form, this field is sent as {'a file' if takes_file else 'text'}")
        fields[name] = value.file.read() if isinstance(value, UploadFile) else value
    return fields


RequestDep = Annotated[Img2ImgRequest, Depends(read_img2img)]
ControlMapRequestDep = Annotated[ControlMapRequest, Depends(read_control_map)]
ImageRequestDep = Annotated[ImageRequest, Depends(read_image)]
