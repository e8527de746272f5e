"""JSON as clients write it: with a byte order mark, null for fields that are not given, and 30.0 for 30."""

from typing import Any

from pydantic import ValidationError
from pydantic_core import from_json, to_json

from img2img.errors import RequestError

BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def remove_byte_order_mark(body: bytearray) -> None:
    """Remove the byte order mark of a JSON text. Raises RequestError for UTF-16 and UTF-32."""
    if b"\0" in body[:4] or body.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise RequestError("The JSON body should be UTF-8; this looks like UTF-16 or UTF-32.")
    if body.startswith(BYTE_ORDER_MARK):
        del body[: len(BYTE_ORDER_MARK)]


def normalized(body: bytearray, error: ValidationError) -> bytes | None:
    """Return the JSON text without members that are null, and with integers for floats without fraction.

    JSON Schema does not distinguish 30.0 from 30 either.

    Args:
        error: Why it is invalid.

    Returns: None if that would not change the error.
    """
    inputs = [item["input"] for item in error.errors(include_url=False, include_context=False)]
    if not any(value is None or isinstance(value, float) for value in inputs):
        return None
    return to_json(_normalized(from_json(body)))


def _normalized(value: Any) -> Any:
    match value:
        case dict():
            return {name: _normalized(member) for name, member in value.items() if member is not None}
        case list():
            return [_normalized(member) for member in value]
        case float() if value.is_integer():
            return int(value)
    return value
