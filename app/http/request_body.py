"""Reads and validates request bodies, with limits on the work of a parser: JSON on a thread, forms as they arrive.

FastAPI is not used for this: it parses JSON on the event loop, and builds an error for every invalid value.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any, TypeVar, get_args

from anyio.to_thread import run_sync
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import from_json
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from img2img.domain.parameters import MAX_TEXT
from img2img.errors import ParameterError, RequestError, UnsupportedMedia

from .json_text import normalized, remove_byte_order_mark

# More than a request has fields, so that unknown fields are reported by name.
MAX_PARTS = 64
MAX_FIELD_BYTES = 64 * 1024
# Longest Content-Type. Parsing takes quadratic time.
MAX_MEDIA_TYPE = 1000
# Most JSON values of a body. Requests of the web UI have hundreds: the arguments of its scripts.
MAX_JSON_VALUES = 2000
# Most commas and brackets of a body, in strings or not: enough for two texts full of commas. A body of nothing but
# brackets takes a parser half a minute and gigabytes.
MAX_JSON_TOKENS = 2 * MAX_TEXT + MAX_JSON_VALUES
# A body that is parsed in less time than it takes to hand it to a thread.
SMALL_BODY = 2048
TOO_MANY_VALUES = "The JSON body has more values than any request."

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)


def unsupported_type(message: str) -> UnsupportedMedia:
    """Return the error for a body of a content type that the operation does not read."""
    error = UnsupportedMedia(message)
    error.field = "Content-Type"
    return error


def media_type_of(request: Request) -> tuple[str, dict[bytes, bytes]]:
    """Return the media type of the body in lower case, and its options. Raises UnsupportedMedia."""
    content_type = request.headers.get("content-type", "")
    if len(content_type) > MAX_MEDIA_TYPE:
        raise unsupported_type("The content type is too long.")
    media_type, options = parse_options_header(content_type)
    return media_type.decode("latin-1"), options


async def read_json(request: Request, kind: type[T], *, strict: bool, max_values: int = MAX_JSON_VALUES) -> T:
    """Read a JSON body and validate it.

    Args:
        kind: A model or another type that pydantic can validate.
        strict: Whether JSON types have to match: "30" and true are not numbers.
        max_values: Most values of the body.

    Raises:
        RequestError: The body has too many values, or is not UTF-8.
        UnsupportedMedia: It is not JSON.
        RequestValidationError: It is invalid.
    """
    if media_type_of(request)[0] != "application/json":
        raise unsupported_type("The content type should be application/json.")
    body = await read_bytes(request)
    if len(body) <= SMALL_BODY:
        return _parse_json(body, kind, strict, max_values)
    return await run_sync(_parse_json, body, kind, strict, max_values, limiter=request.app.state.cells.all[0].parsers)


async def read_bytes(request: Request) -> bytearray:
    """Read a body as it is."""
    body = bytearray()
    # Not `request.body()`, which keeps the body for as long as the request.
    try:
        async for part in request.stream():
            body += part
    except BaseException:
        # The error refers to this frame until its response is sent.
        body.clear()
        raise
    return body


def parse_json(body: bytearray, kind: type[T], *, strict: bool) -> T:
    """Parse and validate JSON text. Raises the errors of `read_json`."""
    return _parse_json(body, kind, strict, MAX_JSON_VALUES)


def _parse_json(body: bytearray, kind: type[T], strict: bool, max_values: int) -> T:
    tokens = sum(map(body.count, (b",", b"[", b"{")))
    if tokens > MAX_JSON_TOKENS + max_values - MAX_JSON_VALUES:
        raise RequestError(TOO_MANY_VALUES)
    if tokens > max_values:
        # Either long texts or too many values, each of which could have an error.
        _check_value_count(body, max_values)
    remove_byte_order_mark(body)
    adapter: TypeAdapter[T] = _adapter(kind)  # type: ignore[arg-type]
    try:
        try:
            return adapter.validate_json(body, strict=strict)
        except ValidationError as error:
            changed = normalized(body, error)
            if changed is None:
                raise
            return adapter.validate_json(changed, strict=strict)
    except ValidationError as error:
        raise _as_request_error(error) from None


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def describe_unknown_fields(error: RequestValidationError, model: type[BaseModel]) -> None:
    """Add the names of all fields to the first error for an unknown field."""
    known = f"; known are {', '.join(model.model_fields)}"
    for item in error.errors():
        if item["type"] == "extra_forbidden":
            is_nested = len(item["loc"]) > 1
            item["msg"] = f"Unknown field{'' if is_nested else known}"
            known = known if is_nested else ""


def _check_value_count(body: bytearray, max_values: int) -> None:
    try:
        value = from_json(body)
    except ValueError:
        # Reported with its position by the validation.
        return
    if count_values(value) > max_values:
        raise RequestError(TOO_MANY_VALUES)


def count_values(value: object) -> int:
    """Return the number of values in parsed JSON, which is nested no deeper than the parser allows."""
    if isinstance(value, dict):
        return 1 + sum(map(count_values, value.values()))
    if isinstance(value, list):
        return 1 + sum(map(count_values, value))
    return 1


class _CompleteFormParser(MultiPartParser):
    """Knows whether the form has ended with its closing boundary, and accepts only UTF-8."""

    is_complete = False

    def on_part_end(self) -> None:
        # Starlette reads other text as Latin-1.
        if self._current_part.file is None:
            try:
                self._current_part.data.decode()
            except UnicodeDecodeError:
                raise MultiPartException(f"The field {self._current_part.field_name} should be UTF-8.") from None
        super().on_part_end()

    def on_end(self) -> None:
        self.is_complete = True


async def read_form(request: Request, max_body_bytes: int) -> list[tuple[str, str | bytes]]:
    """Return names and values of a form, in its order: bytes of files, text of the other fields.

    Raises:
        RequestError: The form cannot be parsed, is not UTF-8, has too many parts, or ends early.
        UnsupportedMedia: It is no form, or has another charset.
    """
    media_type, options = media_type_of(request)
    if media_type != "multipart/form-data":
        raise unsupported_type("The content type should be multipart/form-data.")
    if options.get(b"charset", b"utf-8").lower() not in (b"utf-8", b"utf8"):
        raise unsupported_type("The charset of a form should be UTF-8.")
    parser = _CompleteFormParser(
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
    if not parser.is_complete:
        # Its last field would be missing or cut off.
        raise RequestError("The form ends before its closing boundary; send it again.")
    return [(name, _read(value)) for name, value in form.multi_items()]


def _read(value: UploadFile | str) -> bytes | str:
    if isinstance(value, str):
        return value
    if not value.filename and not value.size:
        # A file field of an HTML form for which no file was chosen.
        return ""
    with value.file as file:
        data: bytes = file.read()
    return data


def validated(model: type[M], fields: Mapping[str, Any]) -> M:
    """Return the fields as a model. Numbers may be text, but not JSON's true and false.

    Raises:
        RequestValidationError: With all invalid fields.
        ParameterError: A field that is true or false is something else.
    """
    for name, value in fields.items():
        known = model.model_fields.get(name)
        if isinstance(value, bool) and known and bool not in (known.annotation, *get_args(known.annotation)):
            raise ParameterError(name, "Input should not be true or false", got=value)
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        raise _as_request_error(error) from None


def _as_request_error(error: ValidationError) -> RequestValidationError:
    return RequestValidationError(error.errors(include_url=False, include_context=False))
