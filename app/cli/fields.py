"""Options of a command generated from the fields of a request model."""

import inspect
import json
import sys
from collections.abc import Callable, Iterator
from enum import Enum
from functools import reduce
from operator import or_
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from rich.markup import escape

from .errors import WrongUsage

SHORT_NAMES = {"num_inference_steps": ("--steps",)}
PLAIN = (bool, int, float, str)
IMAGE_HELP = "A file, or a reference: the sha256 of an uploaded image, or /jobs/{id}/images/0."
JSON_HELP = "JSON, or @file with JSON; within it, an image is written as @file."


def with_model_options(model: type[BaseModel], *, but: frozenset[str]) -> Callable[[Callable[..., None]], Any]:
    """Return a decorator that replaces `**fields` of a command by an option for each field of the model.

    An option that is not given is None.

    Args:
        but: Fields without an option.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command)
        own = [one for one in signature.parameters.values() if one.kind is not inspect.Parameter.VAR_KEYWORD]
        fields = {name: field for name, field in model.model_fields.items() if name not in but}
        options = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_option(name, field))
            for name, field in fields.items()
        ]
        parameters = [*own, *options]
        command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {one.name: one.annotation for one in parameters}
        return command

    return decorate


def option_values(model: type[BaseModel], given: dict[str, Any]) -> dict[str, Any]:
    """Return the options that were given as fields of the client: images as bytes or references, the rest as JSON.

    Raises:
        WrongUsage: An option is no JSON.
        OSError: A file cannot be read.
    """
    return {
        name: _value(name, value, model.model_fields[name].annotation)
        for name, value in given.items()
        if value is not None
    }


def read_image(text: str) -> bytes | str:
    """Return the bytes of a file or, for `-`, of stdin; or the text if it is a reference."""
    from img2img.client.images import load_image

    return sys.stdin.buffer.read() if text == "-" else load_image(text)


def _option(name: str, field: FieldInfo) -> Any:
    members = list(_members(field.annotation))
    help_text = field.description or ""
    if bytes in members:
        help_text = " ".join(filter(None, [help_text, IMAGE_HELP]))
    elif any(map(_has_structure, members)):
        help_text = " ".join(filter(None, [help_text, JSON_HELP]))
    default = field.get_default(call_default_factory=True) if not field.is_required() else None
    if isinstance(default, Enum):
        default = default.value
    option = typer.Option(
        f"--{name.replace('_', '-')}",
        *SHORT_NAMES.get(name, ()),
        help=escape(help_text),
        show_default=str(default) if default not in (None, "", [], ()) else False,
        rich_help_panel="Request",
    )
    return Annotated[_type(members) | None, option]


def _type(members: list[Any]) -> Any:
    """Return the type that Typer checks, text if it knows none."""
    if len(members) == 1:
        [only] = members
        if only in PLAIN or get_origin(only) is Literal or (inspect.isclass(only) and issubclass(only, Enum)):
            return only
    return str


def _value(name: str, value: Any, annotation: Any) -> Any:
    members = list(_members(annotation))
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, str) and bytes in members:
        return read_image(value)
    if isinstance(value, str) and any(map(_has_structure, members)):
        text = Path(value[1:]).read_text("utf-8") if value.startswith("@") else value
        try:
            return _with_images(json.loads(text), annotation)
        except json.JSONDecodeError as error:
            if str in members:
                return value
            raise WrongUsage(f"--{name.replace('_', '-')} takes JSON or @file: {error}") from None
    return value


def _with_images(value: Any, annotation: Any) -> Any:
    """Return a JSON value with images as the client takes them: `@file` as bytes, base64 as a `data:` URI."""
    members = list(_members(annotation))
    if isinstance(value, str) and bytes in members:
        return _nested_image(value)
    if isinstance(value, list):
        items: Any = reduce(or_, (arg for one in members for arg in get_args(one)), NoneType)
        return [_with_images(item, items) for item in value]
    if isinstance(value, dict):
        models = [one for one in members if inspect.isclass(one) and issubclass(one, BaseModel)]
        types = {name: field.annotation for one in models for name, field in one.model_fields.items()}
        return {name: _with_images(item, types.get(name)) for name, item in value.items()}
    return value


def _nested_image(text: str) -> bytes | str:
    from img2img.client import is_image_reference

    if text.startswith("@"):
        return Path(text[1:]).read_bytes()
    return text if is_image_reference(text) or text.startswith("data:") else f"data:;base64,{text}"


def _members(annotation: Any) -> Iterator[Any]:
    """Yield the types that an annotation allows, without None and without the metadata of Annotated."""
    if get_origin(annotation) is Annotated:
        yield from _members(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, UnionType):
        for member in get_args(annotation):
            yield from _members(member)
    elif annotation not in (None, NoneType):
        yield annotation


def _has_structure(member: Any) -> bool:
    return get_origin(member) in (list, tuple, dict, set, frozenset) or (
        inspect.isclass(member) and issubclass(member, BaseModel | list | tuple | dict)
    )
