"""Structured fields of forms, which are sent as JSON text."""

import json
from typing import Any

from img2img.errors import ParameterError

# Values in one structured field. More would cost time and memory to parse.
MAX_VALUES = 200


def parse_json_field(name: str, text: str | bytes) -> Any:
    """Return the value of a structured field. Raises ParameterError."""
    if text.count("[") + text.count("{") + text.count(",") > MAX_VALUES:  # type: ignore[arg-type]
        raise ParameterError(name, "Input has more values than any request")
    try:
        return json.loads(text)
    except ValueError as error:
        raise ParameterError(name, f"In a form, this field is JSON text: {error}", got=text) from None
