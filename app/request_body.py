"""From the body of a submit to an Img2ImgRequest: multipart or JSON, one model."""

from typing import Annotated

from anyio.to_thread import run_sync
from fastapi import Depends, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from app.contract.errors import ParameterError, RequestError, UnsupportedMedia
from app.deps import SettingsDep
from app.schemas import Img2ImgRequest

MAX_PARTS = 64  # the request has 13 fields; some room, so that a stranger is named rather than counted
MAX_FIELD_BYTES = 64 * 1024


async def read_request(request: Request, settings: SettingsDep) -> Img2ImgRequest:
    """Reads and validates the body, whichever of the two content types it has."""
    media_type, options = parse_options_header(request.headers.get("content-type", ""))
    try:
        if media_type == b"multipart/form-data":
            if options.get(b"charset", b"utf-8").lower() != b"utf-8":
                raise UnsupportedMedia("Form fields are taken in UTF-8 only.")
            return Img2ImgRequest.model_validate(await _form_fields(request, settings.max_body_bytes))
        if media_type == b"application/json":
            body = await request.body()
            # Strict: JSON has types, so "30" or true is not a number here. Forms have only text.
            return await run_sync(lambda: Img2ImgRequest.model_validate_json(body, strict=True))
    except ValidationError as error:
        raise RequestValidationError(error.errors(include_url=False, include_context=False)) from None
    raise UnsupportedMedia("A request is multipart/form-data or application/json.")


async def _form_fields(request: Request, max_body_bytes: int) -> dict[str, str | bytes]:
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
        if isinstance(value, UploadFile) != (name == "image") and name in Img2ImgRequest.model_fields:
            raise ParameterError(name, "`image` is sent as a file, every other field as text")
        fields[name] = value.file.read() if isinstance(value, UploadFile) else value
    return fields


RequestDep = Annotated[Img2ImgRequest, Depends(read_request)]
